//! Stopping without losing anything.

#![allow(clippy::unwrap_used, clippy::large_futures, reason = "a test may panic")]

mod common;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use common::{Server, get, service, soon, until};
use http::Response;
use http_body_util::BodyExt;
use portcullis_h3::{
    ConnLimits, QuicOptions,
    client::{ClientError, Connection},
};
use portcullis_testkit::body::ScriptBody;
use tokio::sync::Semaphore;

#[tokio::test]
async fn an_idle_connection_does_not_hold_a_drain() {
    let hello = service(|_| async { Response::new(ScriptBody::new().data("hello")) });
    let mut server = Server::start(QuicOptions::default(), hello).await;
    // one that has served, one that never did
    let (used, _unused) = (server.connect().await, server.connect().await);
    let response = soon(used.send(get("/"))).await.unwrap();
    soon(response.into_body().collect()).await.unwrap();

    let begin = Instant::now();
    soon(server.stop()).await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    assert_eq!(server.limits.open(), 0);
    until(|| used.is_closed()).await;
}

#[tokio::test]
async fn requests_in_flight_are_served_and_new_ones_are_not() {
    let (entered, go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let mut server = Server::start(QuicOptions::default(), {
        let (entered, go) = (entered.clone(), go.clone());
        service(move |_| {
            let (entered, go) = (entered.clone(), go.clone());
            async move {
                entered.add_permits(1);
                go.acquire().await.unwrap().forget();
                Response::new(ScriptBody::new().data(vec![7; 700_000]).pend().data(vec![8; 300_000]))
            }
        })
    })
    .await;
    let connection = server.connect().await;
    let requests: Vec<_> = (0..5)
        .map(|_| {
            let connection = connection.clone();
            tokio::spawn(async move {
                let response = connection.send(get("/")).await.unwrap();
                response.into_body().collect().await.unwrap().to_bytes().len()
            })
        })
        .collect();
    soon(entered.acquire_many(5)).await.unwrap().forget();

    let done = server.stop();
    // the client learns of it, and asks for no more
    soon(async {
        loop {
            match tokio::time::timeout(Duration::from_millis(20), connection.send(get("/late"))).await {
                Ok(Err(ClientError::GoingAway | ClientError::Reset { code: 0x10b })) => break,
                Ok(other) => panic!("answered: {other:?}"),
                // one that crossed the first GOAWAY; its future is dropped, which cancels it
                Err(_) => {}
            }
        }
    })
    .await;
    assert!(!done.is_finished());
    // for the five, and for any that crossed
    go.add_permits(100);
    for request in requests {
        assert_eq!(soon(request).await.unwrap(), 1_000_000);
    }
    soon(done).await.unwrap();
    // a new connection finds nobody
    assert!(server.try_connect_briefly().await.is_none());
}

/// A client that is frozen with its response on the way: it acknowledges nothing and closes nothing, as one whose
/// network or power is gone.
#[tokio::test]
async fn a_client_that_went_away_does_not_hold_a_drain() {
    let (entered, go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let mut server = Server::start(QuicOptions::default(), {
        let (entered, go) = (entered.clone(), go.clone());
        service(move |_| {
            let (entered, go) = (entered.clone(), go.clone());
            async move {
                entered.add_permits(1);
                go.acquire().await.unwrap().forget();
                Response::new(ScriptBody::new().data("hello"))
            }
        })
    })
    .await;
    let (addr, tls) = (server.addr, Arc::new(server.client_tls()));
    let client = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.spawn(async move {
            let connection = Connection::connect(addr, "localhost", tls).await.unwrap();
            connection.send(get("/")).await.map(drop)
        });
        // polled until the request is with the server, and never again
        runtime.block_on(async { entered.acquire().await.unwrap().forget() });
        runtime
    });
    let frozen = client.await.unwrap();
    go.add_permits(1);

    let begin = Instant::now();
    soon(server.stop()).await.unwrap();
    assert!(begin.elapsed() < common::GRACE / 2, "{:?}", begin.elapsed());
    frozen.shutdown_background();
}

#[tokio::test]
async fn what_is_left_after_the_grace_is_aborted() {
    let entered = Arc::new(Semaphore::new(0));
    let hang = {
        let entered = entered.clone();
        service(move |_| {
            let entered = entered.clone();
            async move {
                entered.add_permits(1);
                std::future::pending().await
            }
        })
    };
    let grace = Duration::from_millis(200);
    let mut server = Server::start_with(QuicOptions::default(), hang, ConnLimits::new(10), grace).await;
    let connection = server.connect().await;
    let request = tokio::spawn(async move { connection.send(get("/")).await.map(drop) });
    soon(entered.acquire()).await.unwrap().forget();
    let begin = Instant::now();
    soon(server.stop()).await.unwrap();
    assert!(begin.elapsed() >= grace && begin.elapsed() < grace * 10, "{:?}", begin.elapsed());
    let error = soon(request).await.unwrap().unwrap_err();
    assert!(matches!(error, ClientError::Connection(_)), "{error:?}");
    assert_eq!(server.limits.open(), 0);
}

#[tokio::test]
async fn while_draining_connections_are_refused() {
    let (entered, go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let mut server = Server::start(QuicOptions::default(), {
        let (entered, go) = (entered.clone(), go.clone());
        service(move |_| {
            let (entered, go) = (entered.clone(), go.clone());
            async move {
                entered.add_permits(1);
                go.acquire().await.unwrap().forget();
                Response::new(ScriptBody::new())
            }
        })
    })
    .await;
    let connection = server.connect().await;
    let request = tokio::spawn({
        let connection = connection.clone();
        async move { connection.send(get("/")).await.map(|response| response.status()) }
    });
    soon(entered.acquire()).await.unwrap().forget();
    server.stop();
    soon(async { while server.try_connect().await.is_ok() {} }).await;
    assert_eq!(server.limits.stats().refused, 1);
    go.add_permits(1);
    assert_eq!(soon(request).await.unwrap().unwrap(), 200);
    soon(server.stop()).await.unwrap();
}

#[tokio::test]
async fn dropping_the_serve_future_closes_everything() {
    let hello = service(|_| async { Response::new(ScriptBody::new().data("hello")) });
    let server = Server::start(QuicOptions::default(), hello).await;
    let connection = server.connect().await;
    server.abort();
    until(|| connection.is_closed()).await;
    until(|| server.limits.open() == 0).await;
}
