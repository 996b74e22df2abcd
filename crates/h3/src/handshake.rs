//! From a connection attempt to a connection that speaks HTTP/3.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use portcullis_conn::{Confirm, ConnInfo, EarlyData, TlsInfo, TlsVersion, Transport};
use quinn::crypto::rustls::HandshakeData;
use rustls::pki_types::CertificateDer;
use tokio_util::sync::CancellationToken;
use tower_service::Service;
use tracing::debug;

use crate::{
    BoxError, RecvBody, codes,
    connection::{self, ConnContext},
    endpoint::{Handshake, Pending},
    limits::{Counters, count},
    watch::Watch,
};

/// Runs a connection from its first packet to its close.
pub(crate) async fn run<S, B>(handshake: Handshake, service: S, drain: CancellationToken)
where
    S: Service<Request<RecvBody>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let Handshake { incoming, options, traced, counters, local_port, permit, mut hold, pending, early } =
        handshake;
    let begun = tokio::time::Instant::now();
    let started = tokio::time::timeout(options.handshake_timeout, async {
        let connecting = match traced {
            Some(config) => incoming.accept_with(config)?,
            None => incoming.accept()?,
        };
        let (quinn, unconfirmed) = shake_hands(connecting, early).await?;
        let control = connection::open_control(&quinn, &options).await?;
        Ok::<_, BoxError>((quinn, control, unconfirmed))
    })
    .await;
    let (quinn, control, unconfirmed) = match started {
        Ok(Ok(started)) => started,
        Ok(Err(error)) => {
            count(&counters.handshake_failures);
            debug!(error, "a QUIC handshake failed");
            return;
        }
        Err(_) => {
            count(&counters.handshake_failures);
            debug!("a QUIC handshake took too long");
            return;
        }
    };
    if unconfirmed.is_none() {
        counters.paths.handshake(begun.elapsed());
    }
    let early = unconfirmed.map(|unconfirmed| {
        let (early, confirm) = EarlyData::new();
        let deadline = begun + options.handshake_timeout;
        let (quinn, counters) = (quinn.clone(), counters.clone());
        tokio::spawn(confirm_handshake(quinn, unconfirmed, confirm, (begun, deadline), counters, pending));
        early
    });
    // the address is proven now
    if hold.is_none() {
        match permit.limits().admit(quinn.remote_address().ip()) {
            Ok(admitted) => hold = admitted,
            Err(_) => {
                count(&counters.refused);
                quinn.close(codes::var(codes::EXCESSIVE_LOAD), b"too many connections of this client");
                return;
            }
        }
    }
    count(&counters.accepted);
    let _watch = Watch::begin(&quinn, &counters);
    let info = describe(&quinn, local_port, early);
    connection::drive(control, ConnContext::new(quinn, info, options, counters), service, &drain).await;
    drop((hold, permit));
}

/// With `early`, ready as soon as the client's hello is understood: requests may come with it.
async fn shake_hands(
    mut connecting: quinn::Connecting,
    early: bool,
) -> Result<(quinn::Connection, Option<quinn::ZeroRttAccepted>), quinn::ConnectionError> {
    if !early {
        return Ok((connecting.await?, None));
    }
    connecting.handshake_data().await?;
    match connecting.into_0rtt() {
        Ok((quinn, unconfirmed)) => Ok((quinn, Some(unconfirmed))),
        Err(connecting) => Ok((connecting.await?, None)),
    }
}

/// Tells of the end of a handshake; one that does not end in time closes the connection.
async fn confirm_handshake(
    quinn: quinn::Connection,
    unconfirmed: quinn::ZeroRttAccepted,
    confirm: Confirm,
    (begun, deadline): (tokio::time::Instant, tokio::time::Instant),
    counters: Arc<Counters>,
    _pending: Pending,
) {
    match tokio::time::timeout_at(deadline, unconfirmed).await {
        // what it resolves to means something to clients only; it does so too when the connection is lost
        Ok(_) if quinn.close_reason().is_none() => {
            counters.paths.handshake(begun.elapsed());
            confirm.confirm();
        }
        Ok(_) => {}
        Err(_) => quinn.close(codes::var(codes::NO_ERROR), b"the handshake took too long"),
    }
}

fn describe(quinn: &quinn::Connection, local_port: u16, early: Option<EarlyData>) -> ConnInfo {
    let peer = quinn.remote_address();
    // where the system does not tell which of our addresses was used, the unspecified one stands for it
    let local_ip = quinn.local_ip().unwrap_or(match peer {
        std::net::SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        std::net::SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    });
    let mut tls = TlsInfo::default();
    tls.early_data = early;
    // QUIC has no other (RFC 9001 section 4.2)
    tls.version = Some(TlsVersion::Tls13);
    if let Some(data) = quinn.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok()) {
        tls.server_name = data.server_name;
        tls.alpn = data.protocol;
    }
    if let Some(chain) =
        quinn.peer_identity().and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok())
    {
        tls.peer_chain = *chain;
    }
    ConnInfo::new(Transport::Quic, peer, (local_ip, local_port).into()).with_tls(tls)
}
