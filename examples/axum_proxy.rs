//! `portcullis-proxy` and `portcullis-upstream` in an axum app: what the app has no route for goes to a cluster.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use axum::{Router, error_handling::HandleError, routing::get};
use http::Version;
use portcullis_proxy::{Fault, ProxyOptions, ReverseProxy, UpstreamFault};
use portcullis_upstream::{Cluster, ClusterOptions, Endpoint, Error};
use tower::ServiceBuilder;

/// Who is at fault: 504 for what took too long, 502 for the rest.
fn to_fault(error: Error) -> Fault {
    let fault =
        if error.is_timeout() { UpstreamFault::ResponseTimeout } else { UpstreamFault::ConnectFailed };
    Fault::upstream(fault).with_source(error)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let endpoints = ["127.0.0.1:3000", "127.0.0.1:3001"].iter().map(|e| e.parse::<Endpoint>());
    let cluster = Cluster::new("app", endpoints.collect::<Result<_, _>>()?, ClusterOptions::default())?;
    let client = ServiceBuilder::new().map_err(to_fault).service(cluster.client());
    let proxy = ReverseProxy::new(ProxyOptions::default(), client);
    // the cause is for the log, and never in the answer
    let answer = async |fault: Fault| {
        eprintln!("{fault}: {:?}", std::error::Error::source(&fault));
        fault.respond(Version::HTTP_11)
    };
    let app = Router::new()
        .route("/hello", get(async || "hello from the app\n"))
        .fallback_service(HandleError::new(proxy, answer));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:7005").await?;
    println!("http://{}", listener.local_addr()?);
    Ok(axum::serve(listener, app).await?)
}
