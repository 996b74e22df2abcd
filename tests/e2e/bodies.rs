//! Bodies and their ends.

use bytes::Bytes;
use http::{HeaderMap, Method, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use portcullis_testkit::origin::{Answer, RawOrigin};
use tokio::io::AsyncWriteExt;

use crate::{
    config::{plain, secure},
    support::{
        SOON,
        client::{Body, BoxError, Client, Protocol, empty, full},
        edge::Edge,
        origin::Origin,
        raw, run, within,
    },
};

fn frames(frames: Vec<Result<Frame<Bytes>, BoxError>>) -> Body {
    StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync()
}

#[test]
fn head_has_a_length_and_no_body() {
    run(async {
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n";
        let origin = RawOrigin::script(vec![Answer::raw(answer)]).await;
        let edge = Edge::run(&secure(origin.addr())).await;
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            for _ in 0..2 {
                let head = client.request(Method::HEAD, "/").body(empty()).unwrap();
                let reply = within(SOON, "a head", client.fetch(head)).await;
                assert_eq!((reply.status.as_u16(), reply.body.as_str()), (200, ""), "{protocol:?}");
                assert_eq!(reply.field("content-length"), "5000", "{protocol:?}");
            }
        }
        assert_eq!(origin.requests(), 6);
    });
}

#[test]
fn responses_without_a_body_leave_the_connection_usable() {
    run(async {
        for head in [
            "HTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 77\r\n\r\n",
            "HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n",
        ] {
            let origin = RawOrigin::script(vec![Answer::raw(head)]).await;
            let edge = Edge::run(&secure(origin.addr())).await;
            for protocol in Protocol::ALL {
                let mut client = Client::connect(protocol, edge.https(), "localhost").await;
                for _ in 0..3 {
                    let reply = within(SOON, "a response", client.get("/")).await;
                    assert_eq!(reply.status.as_str(), &head[9..12], "{protocol:?}");
                    assert_eq!(reply.body, "", "{protocol:?} {head}");
                }
            }
        }
    });
}

#[test]
fn trailers_go_both_ways() {
    run(async {
        let origin = Origin::start(|request| async move {
            let body = request.into_body().collect().await.unwrap();
            let seen =
                body.trailers().map_or(String::new(), |trailers| format!("{:?}", trailers.get("x-sum")));
            let data = body.to_bytes();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "7".parse().unwrap());
            let echo = format!("{} {seen}", String::from_utf8_lossy(&data));
            let mut response =
                Response::new(frames(vec![Ok(Frame::data(echo.into())), Ok(Frame::trailers(trailers))]));
            response.headers_mut().insert("trailer", "grpc-status".parse().unwrap());
            response
        })
        .await;
        let edge = Edge::run(&secure(origin.addr())).await;
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", "42".parse().unwrap());
            let body = frames(vec![Ok(Frame::data("abc".into())), Ok(Frame::trailers(trailers))]);
            let request =
                client.request(Method::POST, "/").header("te", "trailers").header("trailer", "x-sum");
            let reply = client.fetch(request.body(body).unwrap()).await;
            assert_eq!(reply.body, "abc Some(\"42\")", "{protocol:?}: up");
            let trailers = reply.trailers.expect("trailers");
            assert_eq!(trailers["grpc-status"], "7", "{protocol:?}: down");
        }
    });
}

#[test]
fn a_chunked_upload_arrives_whole() {
    run(async {
        let origin = RawOrigin::script(vec![Answer::ok("got it")]).await;
        let edge = Edge::run(&secure(origin.addr())).await;
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            let pieces = ["first,", "second,", "third"].map(|piece| Ok(Frame::data(Bytes::from(piece))));
            let request = client.request(Method::PUT, "/upload").body(frames(pieces.into())).unwrap();
            assert_eq!(client.fetch(request).await.body, "got it", "{protocol:?}");
            let sent = origin.received_text();
            let last = &sent[sent.rfind("PUT /upload").unwrap()..];
            assert!(last.contains("\r\ntransfer-encoding: chunked\r\n"), "{protocol:?}: {last}");
            assert!(!last.contains("content-length"), "{protocol:?}: {last}");
            assert!(last.ends_with("\r\n0\r\n\r\n"), "{protocol:?}: {last}");
        }
    });
}

/// A response that its origin cuts must not look whole to anybody.
#[test]
fn a_cut_response_is_no_whole_one() {
    run(async {
        for (name, answer) in [
            ("a length", Answer::ReplyThenClose("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello".into())),
            (
                "a length and a reset",
                Answer::ReplyThenReset("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello".into()),
            ),
            (
                "chunks",
                Answer::ReplyThenClose(
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n".into(),
                ),
            ),
            (
                "an unfinished trailer section",
                Answer::ReplyThenClose(
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n".into(),
                ),
            ),
            (
                "a chunk that is none",
                Answer::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nXYZ\r\n"),
            ),
        ] {
            let origin = RawOrigin::script(vec![answer]).await;
            let edge = Edge::run(&secure(origin.addr())).await;
            for protocol in Protocol::ALL {
                let mut client = Client::connect(protocol, edge.https(), "localhost").await;
                let request = client.request(Method::GET, "/").body(empty()).unwrap();
                let reply = within(SOON, "an end", client.try_fetch(request)).await;
                // with a reset the head may not have been read yet
                let well = reply.as_ref().map_or(true, |reply| reply.status == 502);
                assert!(well, "{protocol:?}, {name}: {reply:?}");
            }
        }
    });
}

/// Without a length the end of the connection is the end of the body (RFC 9112 section 6.3 item 8).
#[test]
fn a_body_until_close_is_whole() {
    run(async {
        let origin =
            RawOrigin::script(vec![Answer::ReplyThenClose("HTTP/1.1 200 OK\r\n\r\nto the end".into())]).await;
        let edge = Edge::run(&secure(origin.addr())).await;
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            for _ in 0..2 {
                assert_eq!(client.get("/").await.body, "to the end", "{protocol:?}");
            }
        }
    });
}

/// An upload that its client gives up must not look whole to the origin.
#[test]
fn a_cut_upload_is_no_whole_one() {
    run(async {
        let origin = RawOrigin::script(vec![Answer::ok("whole?")]).await;
        let edge = Edge::run(&secure(origin.addr())).await;
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            let pieces = vec![Ok(Frame::data("part".into())), Err("given up".into())];
            let request = client.request(Method::POST, "/").body(frames(pieces)).unwrap();
            let reply = within(SOON, "an end", client.try_fetch(request)).await;
            assert!(
                reply.is_err() || reply.as_ref().is_ok_and(|reply| reply.status.is_client_error()),
                "{reply:?}"
            );
            let mut next = Client::connect(protocol, edge.https(), "localhost").await;
            assert_eq!(next.get("/next").await.body, "whole?", "{protocol:?}");
        }
        // what was not finished on a connection is not followed by anything there
        for connection in origin.received() {
            let text = String::from_utf8_lossy(&connection);
            assert!(text.find("POST /").is_none_or(|at| !text[at..].contains("GET /next")), "{text}");
        }
        assert_eq!(origin.requests(), 3, "only the ones that came whole: {}", origin.received_text());
    });
}

/// RFC 9112 section 9.3.2: requests that are sent ahead are answered in their order.
#[test]
fn pipelined_requests_are_answered_in_order() {
    run(async {
        let origin = Origin::start(|request| async move {
            let path = request.uri().path().to_owned();
            drop(request.into_body().collect().await);
            Response::new(full(format!("[{path}]")))
        })
        .await;
        let edge = Edge::run(&plain(origin.addr())).await;
        let mut bytes = String::new();
        for at in 0..10 {
            bytes += &format!("POST /{at} HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\n\r\nabc");
        }
        bytes += "GET /last HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
        let mut stream = tokio::net::TcpStream::connect(edge.http()).await.unwrap();
        // cut where it hurts: inside of heads and bodies
        for piece in bytes.as_bytes().chunks(37) {
            stream.write_all(piece).await.unwrap();
            stream.flush().await.unwrap();
        }
        let answered = raw::drain(&mut stream).await;
        assert_eq!(answered.statuses(), [200; 11]);
        let at: Vec<_> = answered.text.match_indices('[').map(|(at, _)| &answered.text[at..at + 3]).collect();
        assert_eq!(at, ["[/0", "[/1", "[/2", "[/3", "[/4", "[/5", "[/6", "[/7", "[/8", "[/9", "[/l"]);
        assert!(answered.closed);
    });
}

/// An origin may answer before it has the whole body; nothing of the rest is taken for a request.
#[test]
fn an_early_answer_to_an_upload() {
    run(async {
        let origin = RawOrigin::with(|mut conn| async move {
            use tokio::io::AsyncReadExt;
            let mut buffer = Vec::new();
            while !buffer.windows(4).any(|window| window == b"\r\n\r\n") {
                if conn.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                    return;
                }
            }
            let answer =
                b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno\n";
            let _ = conn.write_all(answer).await;
            let _ = conn.shutdown().await;
            // whatever still comes is thrown away, as servers do
            let mut rest = vec![0; 1 << 16];
            while conn.read(&mut rest).await.unwrap_or(0) > 0 {}
        })
        .await;
        let edge = Edge::run(&secure(origin.addr())).await;
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            let piece = Bytes::from(vec![b'G'; 64 << 10]);
            let pieces = (0..64).map(|_| Ok(Frame::data(piece.clone()))).collect();
            let request = client.request(Method::POST, "/").body(frames(pieces)).unwrap();
            let reply = within(SOON, "the answer", client.try_fetch(request)).await;
            match reply {
                Ok(reply) => assert_eq!(reply.status, 413, "{protocol:?}"),
                // HTTP/1.1: the edge closes with bytes unread, and the client may see the reset first
                Err(error) => assert_eq!(protocol, Protocol::H1, "{error}"),
            }
        }
    });
}
