//! `portcullis-listener` alone: a TCP echo that holds at most 1,000 connections, survives running out of
//! descriptors and says who holds the port if it is taken.
#![allow(clippy::print_stdout)]

use std::num::NonZeroUsize;

use futures_util::StreamExt;
use portcullis_listener::{AcceptOptions, BindPlan, Incoming, Limits, TcpOptions};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = TcpOptions::default();
    let plan = BindPlan::new().tcp("127.0.0.1:7000".parse()?, options.clone());
    let bound = plan.bind(NonZeroUsize::MIN)?.remove(0);
    println!("echo on {}", bound.local_addr);
    for socket in bound.tcp {
        let listener = TcpListener::from_std(socket)?;
        let mut incoming = Incoming::new(listener, Limits::new(1000), AcceptOptions::default(), &options);
        while let Some(conn) = incoming.next().await {
            // the permit is inside `conn.io`: dropping it lets the next connection in
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(conn.io);
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    }
    Ok(())
}
