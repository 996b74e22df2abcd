//! tower layers for the edge of a network, each usable by itself under any service that speaks [`http`].
//!
//! | module | does | answers by itself |
//! |---|---|---|
//! | [`access_log`] | hands one record per request to a sink, when the response body is over | never |
//! | [`metrics`] | tells an observer of every request and response | never |
//! | [`health`] | a liveness path that answers even where the service behind it is saturated | 200, 503 |
//! | [`request_id`] | one id for each request, checked, for the service, the log and the client | never |
//! | [`maintenance`] | a page while a site is closed | 503 by default |
//! | [`body_limit`] | how long a request's body may be | 413 |
//! | [`deadline`] | how long a request may take | 504 by default |
//! | [`concurrency`] | how many requests run at once, by a number or by latency | 503 |
//! | `compression` (feature) | compresses responses for who accepts that | never |
//! | `request_decompression` (the same) | decompresses request bodies, within bounds | 400, 413, 415 |
//! | `files` (feature) | a service that serves a directory | 200, 206, 304, 404, 405, 412, 416, 500, a redirect |
//! | [`rate_limit`] | how often who may ask, by rules | 429 by default |
//! | [`filter`] | ordered rules: paths, methods, hosts, fields, networks, countries | 404, 403, any |
//! | `basic_auth` | names and passwords, with argon2 hashes (feature `basic-auth`) | 401, 503 |
//! | `jwt` | signed tokens (feature `jwt`) | 401, 403, 400, 503 |
//! | [`forward_auth`] | asks another service who may pass | what that says, 500, 503 |
//! | [`header_limits`] | how many fields a request may carry | 431 |
//! | [`redirect`] | a service that sends everything to HTTPS | 308 or 301, 400 |
//! | [`security_headers`] | response fields that harden browsers | never |
//! | [`alt_svc`] | advertises HTTP/3 | never |
//! | [`early_data`] | holds back what must not be replayed | 425 |
//! | [`identity`] | who a request is from, and fields that clients can't set | never |
//! | [`misdirected`] | keeps connections to the hosts they were made for | 421 |
//!
//! **What they read.** Facts about the connection come from `Arc<ConnInfo>` in the request's extensions. A layer says in
//! its documentation what it does without one.
//!
//! **Bodies.** Every layer is generic over the request body and the response body. One that answers by itself needs a
//! way to make a response body: `Default` where its answer is empty, `From<Bytes>` where it holds text. axum's `Body`,
//! `http_body_util::Full<Bytes>` and most boxed bodies have both.
//!
//! **Readiness.** `poll_ready` is that of the inner service, but for [`health`], whose documentation says why, and [`access_log`], which also waits where its sink asks for it.
//!
//! What tower-http has as it is needed here (catching panics, setting a field) is not written again. Where a layer does what one of tower or tower-http
//! does too, its documentation says what is different.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use http::{Extensions, Method, Request};
use ipnet::IpNet;
use portcullis_conn::{ConnInfo, ConnectProtocol};

pub mod access_log;
pub mod alt_svc;
#[cfg(feature = "basic-auth")]
pub mod basic_auth;
pub mod body_limit;
#[cfg(any(feature = "compression", feature = "files"))]
pub mod coding;
#[cfg(feature = "compression")]
pub mod compression;
pub mod concurrency;
pub mod deadline;
pub mod early;
pub mod early_data;
#[cfg(feature = "files")]
pub mod files;
pub mod filter;
pub mod forward_auth;
pub mod header_limits;
pub mod health;
pub mod identity;
#[cfg(feature = "jwt")]
pub mod jwt;
pub mod maintenance;
pub mod metrics;
pub mod misdirected;
mod overruled;
pub mod rate_limit;
pub mod redirect;
#[cfg(feature = "compression")]
pub mod request_decompression;
pub mod request_id;
pub mod security_headers;

mod cidr;
mod cookie;
mod host;
mod percent;

#[cfg(test)]
mod test_support;

/// The client's address where it isn't the peer's: put into a request's extensions by whoever believes a forwarded
/// address, after checking that the peer is trusted to give one. Every layer that asks for the client ([`rate_limit`], [`filter`], [`forward_auth`],
/// [`maintenance`], [`access_log`]) prefers it to [`ConnInfo::client_ip`]. An IPv4 address inside an IPv6 one is taken as itself, and the unspecified address,
/// which connections over unix sockets have for a peer, as none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientIp(pub IpAddr);

/// Whether the client's own connection is encrypted where this one need not be: put into a request's extensions by whoever believes what a
/// proxy tells of it, after checking that the peer is trusted to. [`forward_auth`] and [`security_headers`] prefer it to [`ConnInfo::is_secure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientSecure(pub bool);

/// The client's address, if anything is known about it. The unspecified one is nobody's: a peer on a unix socket has none.
fn client_ip(extensions: &Extensions) -> Option<IpAddr> {
    let ip = match extensions.get::<ClientIp>() {
        Some(ClientIp(ip)) => *ip,
        None => conn_info(extensions)?.client_ip(),
    };
    let ip = match ip {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(ip, |v4: Ipv4Addr| IpAddr::V4(v4)),
        IpAddr::V4(_) => ip,
    };
    (!ip.is_unspecified()).then_some(ip)
}

/// The method that a request is routed and forwarded by: an extended CONNECT (RFC 8441, RFC 9220), which says so by [`ConnectProtocol`] among its extensions, is
/// the GET that HTTP/1.1 has in its place.
fn method_of<B>(request: &Request<B>) -> &Method {
    let extended =
        request.method() == Method::CONNECT && request.extensions().get::<ConnectProtocol>().is_some();
    if extended { &Method::GET } else { request.method() }
}

/// A network of IPv4 in its own form: as a part of `::ffff:0:0/96` (RFC 4291 section 2.5.5.2) it would meet no address, since those are in theirs.
fn unmapped(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network };
    let v4 = v6.addr().to_ipv4_mapped().filter(|_| v6.prefix_len() >= 96);
    v4.and_then(|v4| ipnet::Ipv4Net::new(v4, v6.prefix_len() - 96).ok()).map_or(network, IpNet::V4)
}

/// RFC 9110 section 10.2.3: a delay is told in whole seconds. Rounded up, so that who obeys doesn't come too early.
fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// Places for what may be at work at once, for all clones of a layer.
#[cfg(any(feature = "compression", feature = "files"))]
fn places(most: usize) -> Arc<tokio::sync::Semaphore> {
    // what a semaphore has no room for is no bound anyway
    Arc::new(tokio::sync::Semaphore::new(most.min(tokio::sync::Semaphore::MAX_PERMITS)))
}

fn conn_info(extensions: &Extensions) -> Option<&Arc<ConnInfo>> {
    extensions.get::<Arc<ConnInfo>>()
}

/// Whether the client's own connection is encrypted, if anything is known about it.
fn client_secure(extensions: &Extensions) -> Option<bool> {
    match extensions.get::<ClientSecure>() {
        Some(ClientSecure(secure)) => Some(*secure),
        None => Some(conn_info(extensions)?.is_secure()),
    }
}

fn is_secure(extensions: &Extensions) -> bool {
    conn_info(extensions).is_some_and(|info| info.is_secure())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::conn;

    #[test]
    fn who_is_a_client() {
        for (told, peer, expected) in [
            (None, "198.51.100.7:1", Some("198.51.100.7")),
            (None, "[::ffff:198.51.100.7]:1", Some("198.51.100.7")),
            (Some("192.0.2.1"), "198.51.100.7:1", Some("192.0.2.1")),
            (Some("::ffff:192.0.2.1"), "198.51.100.7:1", Some("192.0.2.1")),
            // a unix socket, behind which a proxy may tell
            (None, "0.0.0.0:0", None),
            (None, "[::]:0", None),
            (None, "[::ffff:0.0.0.0]:0", None),
            (Some("192.0.2.1"), "0.0.0.0:0", Some("192.0.2.1")),
            (Some("::"), "198.51.100.7:1", None),
        ] {
            let mut extensions = Extensions::new();
            extensions.insert(Arc::new(conn(peer)));
            if let Some(told) = told {
                extensions.insert(ClientIp(told.parse().unwrap()));
            }
            let expected = expected.map(|ip| ip.parse().unwrap());
            assert_eq!(client_ip(&extensions), expected, "{told:?} {peer}");
        }
        assert_eq!(client_ip(&Extensions::new()), None);
    }
}
