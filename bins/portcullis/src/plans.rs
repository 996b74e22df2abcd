//! Plans made from the command line.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, bail};
use portcullis_edge::plan::{
    AccessLogPlan, AdminPlan, CertificateSource, ClusterPlan, ListenerMode, ListenerPlan, LogOutput,
    PlainHttp, Plan, RouteAction, RoutePlan,
};
use tracing::info;

use crate::cli::ProxyArgs;

/// Where nothing is said.
pub(crate) const DEFAULT_PORT: u16 = 8443;

/// HTTPS on one port, HTTP/3 included.
pub(crate) fn https(address: SocketAddr) -> ListenerPlan {
    ListenerPlan::new(address, ListenerMode::Https { http3: true, plain_http: PlainHttp::Redirect })
}

/// `portcullis proxy`.
pub(crate) fn proxy(args: &ProxyArgs) -> anyhow::Result<Plan> {
    let (host, port) = host_and_port(&args.from)?;
    let address = reachable(args.address);
    let mut plan = Plan::default();
    plan.listeners.push(https(SocketAddr::new(address, port)));
    if let Some(from) = args.redirect_from {
        let mode = ListenerMode::RedirectToHttps { port };
        plan.listeners.push(ListenerPlan::new(SocketAddr::new(address, from), mode));
    }
    plan.certificates.push(match (&args.cert, &args.key) {
        (Some(cert), Some(key)) => CertificateSource::Files { cert: cert.clone(), key: key.clone() },
        _ => CertificateSource::SelfSigned { names: vec![host.to_owned()] },
    });
    plan.clusters.push(ClusterPlan::new("app", args.to.iter().cloned()));
    plan.routes.push(RoutePlan::new(Some(host), RouteAction::Forward { cluster: "app".to_owned() }));
    plan.admin = args.admin.map(AdminPlan::new);
    if !args.quiet {
        plan.access_log.push(AccessLogPlan::new(LogOutput::Stdout));
    }
    Ok(plan)
}

fn host_and_port(from: &str) -> anyhow::Result<(&str, u16)> {
    let from = from.strip_prefix("https://").unwrap_or(from).trim_end_matches('/');
    if from.contains('/') {
        bail!("--from takes a host such as example.test or example.test:443, without a path, not `{from}`");
    }
    let (host, port) = match from.rsplit_once(':') {
        Some((host, port)) => {
            let port =
                port.parse().with_context(|| format!("`{port}` in --from is not a port (1 to 65535)"))?;
            (host, port)
        }
        None => (from, DEFAULT_PORT),
    };
    if host.is_empty() {
        bail!("--from names no host; give one such as example.test");
    }
    Ok((host, port))
}

/// `::` stands for every address, IPv4 too; where the system has no IPv6 that is `0.0.0.0`.
fn reachable(address: IpAddr) -> IpAddr {
    if address == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && !has_ipv6() {
        info!("this system has no IPv6: listening on 0.0.0.0");
        return IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    }
    address
}

/// Whether the system has IPv6, by trying.
pub(crate) fn has_ipv6() -> bool {
    std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        assert_eq!(host_and_port("example.test").unwrap(), ("example.test", 8443));
        assert_eq!(host_and_port("example.test:443").unwrap(), ("example.test", 443));
        assert_eq!(host_and_port("https://example.test/").unwrap(), ("example.test", 8443));
        for bad in ["", ":443", "a:b", "a:70000", "a/b"] {
            assert!(host_and_port(bad).is_err(), "{bad}");
        }
    }
}
