//! `portcullis-upstream` alone: a client that spreads requests over two endpoints and passes over one that fails.
#![allow(clippy::print_stdout)]

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use portcullis_upstream::{Cluster, ClusterOptions, Endpoint};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let endpoints = ["127.0.0.1:3000", "127.0.0.1:3001"].iter().map(|e| e.parse::<Endpoint>());
    let cluster = Cluster::new("app", endpoints.collect::<Result<_, _>>()?, ClusterOptions::default())?;
    let client = cluster.client();
    for _ in 0..10 {
        let request = Request::get("/").header("host", "app.test").body(Empty::<Bytes>::new())?;
        match client.send(request).await {
            Ok(response) => {
                let status = response.status();
                println!("{status}: {} bytes", response.into_body().collect().await?.to_bytes().len());
            }
            Err(error) => println!("{error}"),
        }
    }
    println!("{:#?}", cluster.stats());
    Ok(())
}
