//! Endpoints that stop, hang, refuse and hang up.

use std::{
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use http::{Method, Response};
use portcullis_testkit::origin::{Answer, RawOrigin};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    config::plain,
    support::{
        SOON,
        client::{Client, Protocol, empty, full},
        edge::Edge,
        origin::Origin,
        run, within,
    },
};

/// An address where nobody listens: it is bound, so nobody else will.
fn refused() -> (std::net::TcpStream, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // the client's end of this keeps its port, and no listener is there
    let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let addr = stream.local_addr().unwrap();
    (stream, addr)
}

fn cluster(endpoints: &[SocketAddr], more: &str) -> String {
    let endpoints: Vec<_> = endpoints.iter().map(|addr| format!("\"{addr}\"")).collect();
    format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"https\"\n\
         [[certificate]]\nself_signed = [\"localhost\"]\n[[route]]\ncluster = \"app\"\n\
         [[cluster]]\nname = \"app\"\nendpoints = [{}]\n{more}",
        endpoints.join(", ")
    )
}

#[test]
fn nobody_notices_that_one_of_two_stops() {
    run(async {
        let (staying, stopping) = (Origin::text("staying").await, Origin::text("stopping").await);
        let edge = Edge::run(&cluster(&[staying.addr(), stopping.addr()], "")).await;
        let done = Arc::new(AtomicBool::new(false));
        let mut askers = tokio::task::JoinSet::new();
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            let done = Arc::clone(&done);
            askers.spawn(async move {
                // each of the three asks about twenty times a second
                let mut every = tokio::time::interval(Duration::from_millis(50));
                let mut after = 0;
                while after < 20 {
                    every.tick().await;
                    after += u32::from(done.load(Ordering::SeqCst));
                    let reply = client.get("/").await;
                    assert_eq!(reply.status, 200, "{protocol:?} {reply:?}");
                }
            });
        }
        stopping.wait_for_requests(10).await;
        drop(stopping);
        done.store(true, Ordering::SeqCst);
        while let Some(result) = askers.join_next().await {
            result.unwrap();
        }
        assert!(staying.requests() > 60);
    });
}

#[test]
fn a_refusing_endpoint_alone_is_a_502() {
    run(async {
        let (_held, addr) = refused();
        let edge = Edge::run(&cluster(&[addr], "")).await;
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            for _ in 0..3 {
                let reply = client.get("/").await;
                assert_eq!(reply.status, 502, "{protocol:?}");
                assert!(!reply.body.contains(&addr.to_string()), "what is behind is nobody's business");
            }
        }
    });
}

#[test]
fn a_refusing_endpoint_beside_a_good_one_is_nothing() {
    run(async {
        let (_held, addr) = refused();
        let origin = Origin::text("ok").await;
        let edge = Edge::run(&cluster(&[addr, origin.addr()], "")).await;
        let mut client = Client::connect(Protocol::H2, edge.https(), "localhost").await;
        for method in [Method::GET, Method::POST, Method::PATCH] {
            for _ in 0..4 {
                // nothing of the request was sent to whom did not answer: any method goes on to the other
                let request = client.request(method.clone(), "/").body(full("body")).unwrap();
                assert_eq!(client.fetch(request).await.status, 200, "{method}");
            }
        }
        assert_eq!(origin.requests(), 12);
    });
}

#[test]
fn a_hanging_endpoint_is_a_504_in_time() {
    run(async {
        let origin = RawOrigin::script(vec![Answer::Hang]).await;
        let edge = Edge::run(&cluster(&[origin.addr()], "response_timeout = \"400ms\"\n")).await;
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            let begin = Instant::now();
            assert_eq!(client.get("/").await.status, 504, "{protocol:?}");
            let took = begin.elapsed();
            assert!(
                (Duration::from_millis(350)..Duration::from_secs(3)).contains(&took),
                "{protocol:?} {took:?}"
            );
        }
        assert_eq!(origin.requests(), 3, "whoever was asked and hangs may be at work: nobody is asked twice");
    });
}

/// An endpoint that takes a POST and hangs up without an answer may have acted on it.
#[test]
fn what_may_have_been_done_is_not_done_twice() {
    run(async {
        let (one, two) =
            (RawOrigin::script(vec![Answer::Close]).await, RawOrigin::script(vec![Answer::Close]).await);
        let edge = Edge::run(&cluster(&[one.addr(), two.addr()], "")).await;
        let mut client = Client::connect(Protocol::H1, edge.https(), "localhost").await;
        let post = client.request(Method::POST, "/pay").body(full("1")).unwrap();
        assert_eq!(client.fetch(post).await.status, 502);
        assert_eq!(one.requests() + two.requests(), 1);
    });
}

/// Pooled connections that the origin closes, some at once and some just when the next request is on its way.
#[test]
fn a_stale_connection_is_never_a_502() {
    run(async {
        let turn = Arc::new(AtomicU32::new(0));
        let origin = RawOrigin::with(move |mut conn| {
            let turn = Arc::clone(&turn);
            async move {
                let mut buffer = Vec::new();
                let mut left = 1 + turn.fetch_add(1, Ordering::SeqCst) % 3;
                while let Ok(Some(_)) = conn.read_request(&mut buffer).await {
                    if left == 0 {
                        // the request has come; no byte of an answer has gone
                        return;
                    }
                    left -= 1;
                    if conn.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.is_err() {
                        return;
                    }
                    if left == 0 && turn.load(Ordering::SeqCst).is_multiple_of(2) {
                        // closed right behind the answer, with a keep-alive promised
                        return;
                    }
                }
            }
        })
        .await;
        let edge = Edge::run(&cluster(&[origin.addr()], "max_fails = 0\n")).await;
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            for at in 0..60 {
                let request = client.request(Method::GET, "/").body(empty()).unwrap();
                let reply = client.fetch(request).await;
                assert_eq!(reply.status, 200, "{protocol:?}: request {at}");
            }
        }
        assert!(origin.connections() > 60, "{}", origin.connections());
    });
}

#[test]
fn a_client_that_goes_away_frees_the_origin() {
    run(async {
        let (gone, mut goes) = tokio::sync::mpsc::unbounded_channel();
        let origin = RawOrigin::with(move |mut conn| {
            let gone = gone.clone();
            async move {
                let mut buffer = Vec::new();
                conn.read_request(&mut buffer).await.unwrap();
                // nothing is answered; the edge closes when its client has gone, long before any timeout
                assert!(matches!(conn.read(&mut [0]).await, Ok(0) | Err(_)));
                gone.send(()).unwrap();
            }
        })
        .await;
        let edge = Edge::run(&cluster(&[origin.addr()], "")).await;
        for (at, protocol) in Protocol::ALL.into_iter().enumerate() {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            let request = client.request(Method::GET, "/").body(empty()).unwrap();
            let asking = tokio::spawn(async move { client.send(request).await.map(drop) });
            origin.wait_for_requests(at + 1).await;
            asking.abort();
            within(SOON, &format!("{protocol:?}: the origin is let go"), goes.recv()).await.unwrap();
        }
    });
}

#[test]
fn endpoints_come_back() {
    run(async {
        let well = Arc::new(AtomicBool::new(false));
        let state = Arc::clone(&well);
        let ill = RawOrigin::with(move |mut conn| {
            let well = state.load(Ordering::SeqCst);
            async move {
                let mut buffer = Vec::new();
                while well && matches!(conn.read_request(&mut buffer).await, Ok(Some(_))) {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nback";
                    if conn.write_all(answer).await.is_err() {
                        return;
                    }
                }
            }
        })
        .await;
        let origin = Origin::start(|_| async { Response::new(full("other")) }).await;
        let config = cluster(&[ill.addr(), origin.addr()], "max_fails = 1\nfail_timeout = \"500ms\"\n");
        let edge = Edge::run(&config).await;
        let mut client = Client::connect(Protocol::H2, edge.https(), "localhost").await;
        for _ in 0..20 {
            assert_eq!(client.get("/").await.body, "other");
        }
        assert!(ill.connections() <= 3, "left alone after it failed, by each worker: {}", ill.connections());
        well.store(true, Ordering::SeqCst);
        let back = async {
            while client.get("/").await.body != "back" {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        within(SOON, "asked again after its pause", back).await;
    });
}

#[test]
fn requests_over_plain_http_fail_over_too() {
    run(async {
        let (_held, addr) = refused();
        let origin = Origin::text("ok").await;
        let config = plain(origin.addr()).replace("endpoints = [", &format!("endpoints = [\"{addr}\", "));
        let edge = Edge::run(&config).await;
        for _ in 0..4 {
            assert_eq!(Client::plain(edge.http(), "a.test").await.get("/").await.body, "ok");
            assert_eq!(Client::plain_h2(edge.http(), "a.test").await.get("/").await.body, "ok");
        }
    });
}
