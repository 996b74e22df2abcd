//! An edge of one's own: the whole of portcullis in a program, with a layer that the program brings.
#![allow(clippy::print_stdout)]

use http::{HeaderValue, Request};
use portcullis_edge::{Body, Edge, plan::ClusterPlan};
use tower::util::MapRequestLayer;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let edge = Edge::builder()
        .https("127.0.0.1:8443".parse()?)
        .self_signed(["localhost"])
        .route("*", ClusterPlan::new("app", ["127.0.0.1:3000"]))
        .layer(MapRequestLayer::new(|mut request: Request<Body>| {
            request.headers_mut().insert("x-edge", HeaderValue::from_static("mine"));
            request
        }))
        .admin("127.0.0.1:9090".parse()?)
        .build()?;
    for listening in edge.listening() {
        println!("listening on {listening}");
    }
    let ctrl_c = async {
        let _ = tokio::signal::ctrl_c().await;
    };
    edge.run(ctrl_c).await?;
    Ok(())
}
