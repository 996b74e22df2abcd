//! `portcullis-listener` under a plain TCP server: an echo that holds at most 1,000 connections, 50 of one client, survives
//! running out of descriptors and says who holds the port if it is taken.
#![allow(clippy::print_stdout)]

use std::time::Duration;

use futures_util::StreamExt;
use portcullis_listener::{ClientLimit, Incoming, LimitOptions, Limits};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let limits = Limits::with_options(LimitOptions::default().with_per_client(Some(ClientLimit::new(50))));
    let mut incoming = Incoming::bind("127.0.0.1:7000".parse()?, &limits)?;
    println!("echo on {}", incoming.local_addr());

    let handle = limits.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            handle.close();
        }
    });
    while let Some(conn) = incoming.next().await {
        // the permit is inside `conn.io`: dropping it lets the next connection in
        tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(conn.io);
            tokio::io::copy(&mut read, &mut write).await
        });
    }
    let drained = limits.drain(Duration::from_secs(10)).await;
    println!("{drained:?}: {:?}", limits.stats());
    Ok(())
}
