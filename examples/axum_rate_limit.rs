//! `portcullis-middleware` under an axum app: ten requests a second and a thousand a day for each API key, or for each address
//! of those that have none; and fifty a second from one address, whatever keys it names. Every answer tells what is left.
#![allow(clippy::print_stdout)]

use std::{net::SocketAddr, num::NonZeroU32, time::Duration};

use axum::{Router, extract::ConnectInfo, http::HeaderName, http::Request, routing::get};
use portcullis_middleware::{
    ClientIp,
    rate_limit::{KeyPart, RateKey, RateLimitLayer, RateLimitOptions, RateRule},
};
use tower::{ServiceBuilder, util::MapRequestLayer};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let key = RateKey::from(KeyPart::Field(HeaderName::from_static("x-api-key"))).or(KeyPart::CLIENT.into());
    let rule = |name, requests, per, key: &RateKey| {
        Some(RateRule::new(NonZeroU32::new(requests)?, per).with_name(name).with_key(key.clone()))
    };
    // nobody has checked a key by now: with another in each request a client would have a bucket of its own each time, so its address
    // is bounded before keys are looked at. Behind a layer that checks keys, the rules by key would do.
    let client = RateKey::from(KeyPart::CLIENT);
    let address = rule("address", 50, Duration::from_secs(1), &client).ok_or("no requests")?;
    let second = rule("second", 10, Duration::from_secs(1), &key).ok_or("no requests")?;
    let day = rule("day", 1000, Duration::from_secs(86_400), &key).ok_or("no requests")?;
    let rules = RateLimitOptions::new(address).with_rule(second).with_rule(day).with_fields(true);

    // the layer knows nothing of axum: it is told who the client is
    let client = MapRequestLayer::new(|mut request: Request<axum::body::Body>| {
        if let Some(ConnectInfo(peer)) = request.extensions().get::<ConnectInfo<SocketAddr>>().copied() {
            request.extensions_mut().insert(ClientIp(peer.ip()));
        }
        request
    });
    let limited = ServiceBuilder::new().layer(client).layer(RateLimitLayer::new(&rules));
    let app = Router::new().route("/", get(async || "hello\n")).layer(limited);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:7011").await?;
    println!("http://{}", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}
