//! HTTP datagrams, RFC 9297.

#![allow(clippy::unwrap_used, clippy::large_futures, reason = "a test may panic")]

mod common;

use bytes::Bytes;
use common::{Server, raw_head, service, soon};
use http::{Request, Response};
use portcullis_h3::{DatagramError, HttpDatagrams, QuicOptions, RecvBody};
use portcullis_testkit::body::ScriptBody;

/// A control stream that offers datagrams.
const OFFER: &[u8] = &[0x00, 0x04, 0x02, 0x33, 0x01];

/// Sends three datagrams back, and says how large one may be.
async fn echo(request: Request<RecvBody>) -> Response<ScriptBody> {
    let Some(datagrams) = request.extensions().get::<HttpDatagrams>().cloned() else {
        return Response::builder().status(501).body(ScriptBody::new()).unwrap();
    };
    for _ in 0..3 {
        let Some(datagram) = datagrams.recv().await else { return Response::new(ScriptBody::new()) };
        datagrams.send(&[&b"back: "[..], &datagram].concat()).unwrap();
    }
    let most = datagrams.max_size().unwrap();
    assert!(matches!(datagrams.send(&vec![0; most + 1]), Err(DatagramError::TooLarge { .. })));
    Response::new(ScriptBody::new().data("done"))
}

async fn ask(raw: &quinn::Connection) -> quinn::RecvStream {
    let (mut send, recv) = raw.open_bi().await.unwrap();
    send.write_all(&raw_head(None)).await.unwrap();
    send.finish().unwrap();
    recv
}

#[tokio::test]
async fn they_belong_to_their_request_and_go_both_ways() {
    let server = Server::start(QuicOptions::default().with_datagrams(true), service(echo)).await;
    let raw = server.raw().await;
    let mut control = raw.open_uni().await.unwrap();
    control.write_all(OFFER).await.unwrap();
    let mut answers = [ask(&raw).await, ask(&raw).await];
    // what comes before its request is dropped, so not at once
    common::until(|| server.limits.stats().requests == 2).await;
    for n in 0..3u8 {
        // of streams 0 and 4
        raw.send_datagram(Bytes::from(vec![0, b'a', n])).unwrap();
        raw.send_datagram(Bytes::from(vec![1, b'b', n])).unwrap();
    }
    // of no request
    raw.send_datagram(Bytes::from_static(b"\x21nobody")).unwrap();
    let mut got = Vec::new();
    for _ in 0..6 {
        got.push(soon(raw.read_datagram()).await.unwrap().to_vec());
    }
    got.sort();
    let expected: Vec<_> = [(0, b'a'), (1, b'b')]
        .iter()
        .flat_map(|(id, name)| (0..3).map(move |n| [&[*id][..], b"back: ", &[*name, n]].concat()))
        .collect();
    assert_eq!(got, expected);
    for answer in &mut answers {
        assert!(soon(answer.read_to_end(4096)).await.unwrap().ends_with(b"done"));
    }
}

#[tokio::test]
async fn who_does_not_offer_gets_none() {
    let served = service(|request: Request<RecvBody>| async move {
        let datagrams = request.extensions().get::<HttpDatagrams>().unwrap().clone();
        assert!(matches!(datagrams.send(b"x"), Err(DatagramError::NotOffered)));
        Response::new(ScriptBody::new().data("refused"))
    });
    let server = Server::start(QuicOptions::default().with_datagrams(true), served).await;
    let raw = server.raw().await;
    let mut control = raw.open_uni().await.unwrap();
    control.write_all(common::CONTROL).await.unwrap();
    assert!(soon(ask(&raw).await.read_to_end(4096)).await.unwrap().ends_with(b"refused"));
}

#[tokio::test]
async fn they_are_there_by_choice_and_end_with_the_connection() {
    let server = Server::start(QuicOptions::default(), service(echo)).await;
    let raw = server.raw().await;
    assert_eq!(raw.max_datagram_size(), None);
    assert_eq!(soon(ask(&raw).await.read_to_end(4096)).await.unwrap()[0], 0x01);

    let (told, ended) = tokio::sync::oneshot::channel();
    let told = std::sync::Arc::new(std::sync::Mutex::new(Some(told)));
    let served = service(move |request: Request<RecvBody>| {
        let told = told.clone();
        async move {
            let datagrams = request.extensions().get::<HttpDatagrams>().unwrap().clone();
            tokio::spawn(async move {
                let last = datagrams.recv().await;
                let _ = told.lock().unwrap().take().unwrap().send((last, datagrams.send(b"x").is_err()));
            });
            Response::new(ScriptBody::new())
        }
    });
    let server = Server::start(QuicOptions::default().with_datagrams(true), served).await;
    let raw = server.raw().await;
    let mut control = raw.open_uni().await.unwrap();
    control.write_all(OFFER).await.unwrap();
    soon(ask(&raw).await.read_to_end(4096)).await.unwrap();
    raw.close(quinn::VarInt::from_u32(0x100), b"");
    assert_eq!(soon(ended).await.unwrap(), (None, true));
}

#[tokio::test]
async fn one_of_no_stream_closes_the_connection() {
    let server = Server::start(QuicOptions::default().with_datagrams(true), service(echo)).await;
    for datagram in [&b""[..], &[0x40], &[0xff; 8]] {
        let raw = server.raw().await;
        raw.send_datagram(Bytes::copy_from_slice(datagram)).unwrap();
        match soon(raw.closed()).await {
            quinn::ConnectionError::ApplicationClosed(close) => {
                assert_eq!(close.error_code.into_inner(), 0x33);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn what_is_not_read_is_bounded() {
    let (go, gate) = tokio::sync::watch::channel(false);
    let served = service(move |request: Request<RecvBody>| {
        let mut gate = gate.clone();
        async move {
            let datagrams = request.extensions().get::<HttpDatagrams>().unwrap().clone();
            gate.wait_for(|open| *open).await.unwrap();
            // the last of them are there
            let first = datagrams.recv().await.unwrap()[0];
            Response::new(ScriptBody::new().data(vec![first]))
        }
    });
    let server = Server::start(QuicOptions::default().with_datagrams(true), served).await;
    let raw = server.raw().await;
    let mut control = raw.open_uni().await.unwrap();
    control.write_all(OFFER).await.unwrap();
    let mut answer = ask(&raw).await;
    common::until(|| server.limits.stats().requests == 1).await;
    for n in 0..100u8 {
        raw.send_datagram_wait(Bytes::from(vec![0, n])).await.unwrap();
    }
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    go.send(true).unwrap();
    let answer = soon(answer.read_to_end(4096)).await.unwrap();
    assert_eq!(answer.last(), Some(&68));
}
