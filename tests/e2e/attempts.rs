//! How often a request is sent, for how long it is waited for, and what is done with those that there is no room for.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{Method, Response};
use http_body_util::BodyExt;
use portcullis_testkit::origin::{Answer, RawOrigin};
use tokio::{io::AsyncWriteExt, task::JoinSet, time::sleep};

use crate::support::{
    SOON,
    client::{Client, empty, full},
    edge::Edge,
    origin::Origin,
    run, within,
};

fn config(endpoints: &[SocketAddr], keys: &str) -> String {
    let endpoints: Vec<_> = endpoints.iter().map(|addr| format!("\"{addr}\"")).collect();
    format!(
        "[admin]\naddress = \"127.0.0.1:0\"\n[[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"http\"\n\
         [[route]]\ncluster = \"app\"\n[[cluster]]\nname = \"app\"\nendpoints = [{}]\nmax_fails = 0\n{keys}",
        endpoints.join(", ")
    )
}

/// One of HTTP/1 and one of HTTP/2.
async fn clients(edge: &Edge) -> [(&'static str, Client); 2] {
    let addr = edge.http();
    [("h1", Client::plain(addr, "a.test").await), ("h2", Client::plain_h2(addr, "a.test").await)]
}

#[track_caller]
fn assert_between(took: Duration, least: u64, most: u64, what: &str) {
    let range = Duration::from_millis(least)..Duration::from_millis(most);
    assert!(range.contains(&took), "{what}: {took:?}");
}

#[test]
fn a_slow_endpoint_is_hedged_for_a_get_and_not_for_a_post() {
    run(async {
        let (slow, quick) = (RawOrigin::script(vec![Answer::Hang]).await, Origin::text("quick").await);
        let keys = "balance = \"round-robin\"\nhedge_after = \"200ms\"\nresponse_timeout = \"1500ms\"\n";
        let edge = Edge::run(&config(&[slow.addr(), quick.addr()], keys)).await;
        for (protocol, mut client) in clients(&edge).await {
            let asked = (slow.requests(), quick.requests());
            let mut hedged = 0;
            for _ in 0..6 {
                let begin = Instant::now();
                let reply = within(SOON, "an answer", client.get("/")).await;
                assert_eq!((reply.status.as_u16(), &*reply.body), (200, "quick"), "{protocol}");
                // who was asked of the slow one first has waited, and not for its timeout
                assert!(begin.elapsed() < Duration::from_millis(1400), "{protocol}: {:?}", begin.elapsed());
                hedged += usize::from(begin.elapsed() >= Duration::from_millis(200));
            }
            assert!(hedged >= 2, "{protocol}: {hedged} of 6 were sent to the slow one first");
            assert_eq!((quick.requests() - asked.1, slow.requests() - asked.0), (6, hedged), "{protocol}");
        }
        let hedges = edge.metric("portcullis_upstream_hedges_total").await;
        assert!(hedges >= 4.0, "{hedges}");
        let mut client = Client::plain(edge.http(), "a.test").await;
        let asked = slow.requests() + quick.requests();
        let mut statuses = Vec::new();
        for _ in 0..4 {
            let post = client.request(Method::POST, "/").body(empty()).unwrap();
            statuses.push(within(SOON, "an answer", client.fetch(post)).await.status.as_u16());
        }
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 200, 504, 504]);
        assert_eq!(slow.requests() + quick.requests(), asked + 4, "each was sent once");
        assert_eq!(edge.metric("portcullis_upstream_hedges_total").await, hedges);
    });
}

#[test]
fn all_attempts_together_have_their_time() {
    run(async {
        // nothing; a head that never ends
        let hangs =
            [RawOrigin::script(vec![Answer::Hang]).await, RawOrigin::script(vec![Answer::Hang]).await];
        let trickles = RawOrigin::with(|mut conn| async move {
            let _ = conn.read_request(&mut Vec::new()).await;
            let _ = conn.write_all(b"HTTP/1.1 200 OK\r\nx: ").await;
            while conn.write_all(b"y").await.is_ok() {
                sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        let keys = "total_timeout = \"700ms\"\nresponse_timeout = \"300ms\"\n";
        let hanging = Edge::run(&config(&[hangs[0].addr(), hangs[1].addr()], keys)).await;
        for (protocol, mut client) in clients(&hanging).await {
            let begin = Instant::now();
            let reply = within(SOON, "an answer", client.get("/")).await;
            assert_eq!(reply.status, 504, "{protocol}");
            assert_between(begin.elapsed(), 550, 2000, protocol);
        }
        assert!(hangs.iter().all(|origin| origin.requests() >= 2), "the other one was tried, too");
        // each attempt may take longer than all of them
        let keys = "total_timeout = \"700ms\"\n";
        let trickling = Edge::run(&config(&[trickles.addr()], keys)).await;
        for (protocol, mut client) in clients(&trickling).await {
            let begin = Instant::now();
            assert_eq!(within(SOON, "an answer", client.get("/")).await.status, 504, "{protocol}");
            assert_between(begin.elapsed(), 650, 2000, protocol);
        }
    });
}

/// What has begun is not answered twice: it is cut.
#[test]
fn a_body_that_trickles_has_no_longer() {
    run(async {
        let origin = RawOrigin::with(|mut conn| async move {
            let _ = conn.read_request(&mut Vec::new()).await;
            let _ = conn.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n").await;
            while conn.write_all(b"y").await.is_ok() {
                sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        let edge = Edge::run(&config(&[origin.addr()], "total_timeout = \"700ms\"\n")).await;
        for (protocol, mut client) in clients(&edge).await {
            let begin = Instant::now();
            let request = client.request(Method::GET, "/").body(empty()).unwrap();
            let response = within(SOON, "a head", client.send(request)).await.unwrap();
            assert_eq!(response.status(), 200);
            let body = within(SOON, "the end of it", response.into_body().collect()).await;
            assert!(body.is_err(), "{protocol}: it was cut, and that must show");
            assert_between(begin.elapsed(), 650, 2000, protocol);
        }
    });
}

/// An origin that answers when it may.
async fn gated() -> (Origin, Arc<tokio::sync::Semaphore>) {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let held = Arc::clone(&gate);
    let origin = Origin::start(move |_| {
        let held = Arc::clone(&held);
        async move {
            held.acquire().await.unwrap().forget();
            Response::new(full("ok"))
        }
    })
    .await;
    (origin, gate)
}

#[test]
fn who_waits_for_a_connection_waits_so_long() {
    run(async {
        let (origin, gate) = gated().await;
        let keys = "max_connections = 1\nqueue_timeout = \"400ms\"\nmax_attempts = 1\n";
        let edge = Edge::run(&format!("threads = 1\n{}", config(&[origin.addr()], keys))).await;
        let addr = edge.http();
        let first = tokio::spawn(async move { Client::plain(addr, "a").await.get("/").await });
        within(SOON, "the first", origin.wait_for_requests(1)).await;
        for (protocol, mut client) in clients(&edge).await {
            let begin = Instant::now();
            let reply = within(SOON, "a refusal", client.get("/")).await;
            assert_eq!(reply.status, 503, "{protocol}");
            assert_between(begin.elapsed(), 350, 2000, protocol);
        }
        assert_eq!(origin.requests(), 1);
        gate.add_permits(1);
        assert_eq!(within(SOON, "the first", first).await.unwrap().body, "ok");
    });
}

#[test]
fn there_are_no_more_requests_at_a_time_than_may_be() {
    run(async {
        let (origin, gate) = gated().await;
        let edge = Edge::run(&config(&[origin.addr()], "max_requests = 2\nmax_attempts = 1\n")).await;
        let addr = edge.http();
        let mut first = JoinSet::new();
        for _ in 0..2 {
            first.spawn(async move { Client::plain(addr, "a").await.get("/").await });
        }
        within(SOON, "two of them", origin.wait_for_requests(2)).await;
        for (protocol, mut client) in clients(&edge).await {
            let reply = within(Duration::from_secs(2), "a refusal at once", client.get("/")).await;
            assert_eq!(reply.status, 503, "{protocol}");
            assert!(!reply.field("retry-after").is_empty(), "{protocol}: {reply:?}");
        }
        gate.add_permits(3);
        assert!(first.join_all().await.iter().all(|reply| reply.body == "ok"));
        assert_eq!(Client::plain(addr, "a").await.get("/").await.body, "ok", "there is room again");
    });
}

/// RFC 9112 section 9.3.1: the endpoint closed a kept connection with the request on its way, and that is no answer to it.
#[test]
fn a_put_goes_out_again_byte_for_byte() {
    run(async {
        let origin = RawOrigin::with(|mut conn| async move {
            let mut buffer = Vec::new();
            for answers in [true, false] {
                let Ok(Some(_)) = conn.read_request(&mut buffer).await else { return };
                if !answers || conn.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.is_err() {
                    return;
                }
            }
        })
        .await;
        let edge = Edge::run(&format!("threads = 1\n{}", config(&[origin.addr()], ""))).await;
        let body: Vec<u8> = (0..50_000_u32).map(|n| (n * 7 % 251) as u8).collect();
        for (protocol, mut client) in clients(&edge).await {
            for at in 0..4 {
                let before = origin.received().concat().len();
                let put = client.request(Method::PUT, "/").body(full(body.clone())).unwrap();
                assert_eq!(within(SOON, "an answer", client.fetch(put)).await.status, 204, "{protocol} {at}");
                assert!(origin.received().concat().len() > before + body.len());
            }
        }
        let received = origin.received();
        let (mut whole, mut twice) = (0, 0);
        for received in &received {
            let bodies: Vec<_> =
                received.windows(4).enumerate().filter(|(_, end)| *end == b"\r\n\r\n").collect();
            assert!(
                bodies.iter().all(|(at, _)| received.get(at + 4..at + 4 + body.len()) == Some(&body[..]))
            );
            whole += bodies.len();
            twice += usize::from(bodies.len() == 2);
        }
        assert!(twice >= 2, "a kept connection was closed with a PUT on its way {twice} times");
        assert_eq!(whole, 8 + twice, "each of those went out once more");
    });
}
