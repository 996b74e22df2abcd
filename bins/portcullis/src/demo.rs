//! `portcullis` without a command: an edge in front of a demo origin.

mod origin;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::ExitCode,
};

use anyhow::Context;
use portcullis_edge::{
    EdgeError,
    plan::{AccessLogPlan, CertificateSource, ClusterPlan, LogOutput, Plan, RouteAction, RoutePlan},
};

use crate::{
    cli::DemoArgs,
    plans::{self, DEFAULT_PORT},
};

pub(crate) fn run(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    let port = args.port.unwrap_or(DEFAULT_PORT);
    let origin = origin::start().context("could not start the demo origin")?;
    let mut plan = Plan::default();
    let v4 = args.address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    plan.listeners.push(plans::https(SocketAddr::new(v4, port)));
    // `localhost` is both; a port of the system's choice would be another one for each
    if args.address.is_none() && port != 0 && plans::has_ipv6() {
        plan.listeners.push(plans::https(SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port)));
    }
    let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    plan.certificates.push(CertificateSource::SelfSigned { names: names.to_vec() });
    plan.clusters.push(ClusterPlan::new("demo", [origin.to_string()]));
    plan.routes.push(RoutePlan::new(None, RouteAction::Forward { cluster: "demo".to_owned() }));
    plan.access_log.push(AccessLogPlan::new(LogOutput::Stdout));
    crate::run(plan, None, &hints(args, port)).map_err(|error| match error.downcast_ref::<EdgeError>() {
        Some(EdgeError::Bind(bind)) if bind.is_in_use() => {
            error.context(format!("port {port} is taken; `--port` chooses another one"))
        }
        _ => error,
    })
}

fn hints(args: &DemoArgs, port: u16) -> Vec<String> {
    let url = match args.address {
        _ if port == 0 => "https://localhost:PORT".to_owned(),
        Some(address) if !address.is_loopback() && !address.is_unspecified() => {
            format!("https://{}", SocketAddr::new(address, port))
        }
        _ => format!("https://localhost:{port}"),
    };
    let authority = url.trim_start_matches("https://");
    format!(
        "\n\
         try (the certificate was made just now and is in no trust store, hence -k):\n  \
         curl -k --http1.1 {url}/            what the origin received, over HTTP/1.1\n  \
         curl -k --http2   {url}/            the same over HTTP/2\n  \
         curl -k --http3-only {url}/         the same over HTTP/3, if your curl has it; or:\n  \
         cargo run --release -p portcullis-loadgen -- get --http3 --insecure {url}/\n  \
         curl -i http://{authority}/         plain HTTP to the same port: redirected\n  \
         curl -k -o /dev/null {url}/bytes/1073741824    a download of 1 GiB\n  \
         open {url}/ in a browser: the page has a WebSocket echo to try\n\
         \n\
         in front of your own application:\n  \
         portcullis proxy --from example.test --to 127.0.0.1:3000\n\
         Ctrl-C drains and stops.\n"
    )
    .lines()
    .map(str::to_owned)
    .collect()
}
