//! `portcullis-middleware`'s filter in an axum app: paths that are hidden, and a part that is for some networks alone, however its path is spelt.
#![allow(clippy::print_stdout)]

use std::sync::Arc;

use axum::Router;
use http::StatusCode;
use portcullis_listener::{Incoming, Limits};
use portcullis_middleware::filter::{
    CidrSet, ClientSet, FilterLayer, FilterOptions, FilterRules, FilterSets, PathPattern, Rule,
};
use portcullis_server::{HttpOptions, Plain, ServerCounters, serve};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // a file's text would do as well, and `office.replace` when it changes
    let office = ClientSet::new(CidrSet::parse("127.0.0.0/8\n::1 # this machine")?);
    let admin = PathPattern::Prefix("/admin".to_owned());
    let options = FilterOptions::default()
        .with_deny(["/.git", "/.env"])
        .with_rule(Rule::allow().with_path(admin.clone()).with_client_set("office"))
        .with_rule(Rule::deny(StatusCode::FORBIDDEN).with_path(admin));
    let sets = FilterSets::default().with_clients("office", office);
    let filter = FilterLayer::new(FilterRules::compile(&options, &sets)?);
    let app = Router::new().fallback(|| async { "hello\n" }).layer(filter);

    let incoming = Incoming::bind("127.0.0.1:7001".parse()?, Limits::new(1000))?;
    println!("http://{}/admin", incoming.local_addr());
    let shutdown = async { tokio::signal::ctrl_c().await.unwrap_or_default() };
    serve(incoming, Plain, app, HttpOptions::default(), Arc::new(ServerCounters::default()), shutdown).await;
    Ok(())
}
