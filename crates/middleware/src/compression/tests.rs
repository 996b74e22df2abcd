use super::*;
use crate::test_support::{Iter, get, through};
use http::{HeaderMap, HeaderValue};
use http_body_util::{BodyExt, Full, StreamBody};
use std::{convert::Infallible, io::Read};
use tower::{Service, ServiceExt};

fn text() -> String {
    "all work and no play makes a dull proxy\n".repeat(100)
}

fn asked(fields: &[(&'static str, &'static str)]) -> Request<()> {
    let mut request = get("/");
    for (name, value) in fields {
        request.headers_mut().append(*name, HeaderValue::from_static(value));
    }
    request
}

fn answer(
    fields: &'static [(&'static str, &'static str)],
) -> impl Fn(Request<()>) -> Response<Full<Bytes>> + Clone {
    move |_| {
        let mut response = Response::new(Full::from(text()));
        response.headers_mut().insert("content-type", HeaderValue::from_static("text/plain"));
        response.headers_mut().insert("etag", HeaderValue::from_static("\"a\""));
        for (name, value) in fields {
            match *name {
                ":status" => *response.status_mut() = value.parse().unwrap(),
                name => drop(response.headers_mut().insert(name, HeaderValue::from_static(value))),
            }
        }
        response
    }
}

/// Another hand's decoders.
fn decode(coding: Option<&str>, bytes: &[u8]) -> String {
    let mut out = Vec::new();
    match coding {
        None => out.extend_from_slice(bytes),
        Some("gzip") => drop(flate2::read::GzDecoder::new(bytes).read_to_end(&mut out).unwrap()),
        Some("br") => drop(brotli::Decompressor::new(bytes, 4096).read_to_end(&mut out).unwrap()),
        Some("zstd") => drop(zstd::stream::read::Decoder::new(bytes).unwrap().read_to_end(&mut out).unwrap()),
        Some(other) => panic!("{other}"),
    }
    String::from_utf8(out).unwrap()
}

#[tokio::test]
async fn every_coding_comes_out_as_it_went_in() {
    for (accept, coding) in [("gzip", "gzip"), ("br", "br"), ("zstd", "zstd"), ("gzip, br;q=0.5", "gzip")] {
        let layer = CompressionLayer::default();
        let response =
            through(&layer, answer(&[("content-length", "4000")]), asked(&[("accept-encoding", accept)]))
                .await;
        let headers = response.headers().clone();
        assert_eq!(headers["content-encoding"], coding);
        assert_eq!(headers["vary"], "accept-encoding");
        assert_eq!(headers["etag"], "W/\"a\"");
        assert!(!headers.contains_key("content-length"));
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        assert!(bytes.len() < 400, "{}", bytes.len());
        assert_eq!(decode(Some(coding), &bytes), text());
    }
}

#[tokio::test]
async fn what_stays_as_it_is() {
    let accept = [("accept-encoding", "gzip")];
    for (asks, says, vary) in [
        (&accept[..], &[("content-encoding", "br")][..], false),
        (&accept, &[("content-range", "bytes 0-1/2")], false),
        (&accept, &[(":status", "206")], false),
        (&accept, &[(":status", "204")], false),
        (&accept, &[("cache-control", "public, No-Transform")], false),
        (&accept, &[("content-digest", "sha-256=:x:")], false),
        (&accept, &[("content-type", "image/png")], false),
        (&accept, &[("content-type", "text/event-stream")], false),
        (&accept, &[("content-type", "application/grpc")], false),
        // these could have been compressed
        (&[], &[], true),
        (&[("accept-encoding", "gzip;q=0")], &[], true),
        (&[("accept-encoding", "identity;q=0, *;q=0")], &[], true),
    ] {
        let response = through(&CompressionLayer::default(), answer(says), asked(asks)).await;
        let (parts, body) = response.into_parts();
        assert_eq!(parts.headers.contains_key("vary"), vary, "{says:?}");
        assert_eq!(parts.headers["etag"], "\"a\"", "{says:?}");
        let body = body.into_plain().expect("it is the service's own");
        assert_eq!(body.collect().await.unwrap().to_bytes(), text(), "{says:?}");
    }
}

#[tokio::test]
async fn small_ones_and_those_without_a_length() {
    let layer = CompressionLayer::new(CompressionOptions::default().with_min_size(4000));
    let asks = || asked(&[("accept-encoding", "gzip")]);
    assert_eq!(text().len(), 4000);
    assert!(through(&layer, answer(&[]), asks()).await.headers().contains_key("content-encoding"));
    let more = CompressionLayer::new(CompressionOptions::default().with_min_size(4001));
    assert!(!through(&more, answer(&[]), asks()).await.headers().contains_key("content-encoding"));
    let head = |mut request: Request<()>| {
        *request.method_mut() = Method::HEAD;
        request
    };
    // HEAD: by what it says
    for (said, expected) in [("3999", false), ("4000", true)] {
        let fields: &'static [(&str, &str)] = match said {
            "3999" => &[("content-length", "3999")],
            _ => &[("content-length", "4000")],
        };
        let empty = move |request| answer(fields)(request).map(|_| Full::default());
        let response = through(&layer, empty, head(asks())).await;
        assert_eq!(response.headers().contains_key("content-encoding"), expected);
        assert_eq!(response.headers().contains_key("content-length"), !expected);
        assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
    }
}

#[tokio::test]
async fn rfc9111_4_3_4_a_304_has_the_tag_that_was_asked_for() {
    for (condition, tag, vary) in
        [("\"x\", W/\"a\"", "W/\"a\"", "origin, accept-encoding"), ("\"a\"", "\"a\"", "origin")]
    {
        let not_modified = answer(&[(":status", "304"), ("vary", "origin")]);
        let asks = asked(&[("if-none-match", condition)]);
        let response = through(&CompressionLayer::default(), not_modified, asks).await;
        assert_eq!(response.headers()["etag"], tag);
        assert_eq!(response.headers()["vary"], vary);
    }
}

/// A body that gives what is sent to it, and is pending in between.
struct Piecewise(tokio::sync::mpsc::Receiver<Frame<Bytes>>);

impl Body for Piecewise {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|frame| frame.map(Ok))
    }
}

#[tokio::test]
async fn pieces_go_out_as_they_come_and_trailers_after_them() {
    for coding in ["gzip", "br", "zstd"] {
        let (send, receive) = tokio::sync::mpsc::channel(4);
        let body = std::sync::Mutex::new(Some(receive));
        let service = tower::service_fn(move |_: Request<()>| {
            let mut response = Response::new(Piecewise(body.lock().unwrap().take().unwrap()));
            response.headers_mut().insert("content-type", HeaderValue::from_static("text/plain"));
            std::future::ready(Ok::<_, Infallible>(response))
        });
        let request = Request::get("/").header("accept-encoding", coding).body(()).unwrap();
        let response = CompressionLayer::default().layer(service).oneshot(request).await.unwrap();
        let mut body = response.into_body();
        let mut bytes = Vec::new();
        for piece in ["one ", "two "] {
            send.send(Frame::data(Bytes::from(piece))).await.unwrap();
            // more is not there, and what was sent comes all the same
            bytes.extend_from_slice(&body.frame().await.unwrap().unwrap().into_data().unwrap());
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        send.send(Frame::trailers(trailers.clone())).await.unwrap();
        drop(send);
        let rest = body.collect().await.unwrap();
        assert_eq!(rest.trailers(), Some(&trailers), "{coding}");
        bytes.extend_from_slice(&rest.to_bytes());
        assert_eq!(decode(Some(coding), &bytes), "one two ");
    }
}

#[tokio::test]
async fn a_body_that_fails_is_not_taken_for_whole() {
    let service = tower::service_fn(|_: Request<()>| {
        let frames = [Ok(Frame::data(Bytes::from("part"))), Err("cut")];
        let mut response = Response::new(StreamBody::new(Iter(frames.into_iter())));
        response.headers_mut().insert("content-type", HeaderValue::from_static("text/plain"));
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let layer = CompressionLayer::default();
    let response = layer.layer(service).oneshot(asked(&[("accept-encoding", "gzip")])).await.unwrap();
    assert_eq!(response.headers()["content-encoding"], "gzip");
    assert_eq!(response.into_body().collect().await.unwrap_err().to_string(), "cut");
}

#[tokio::test]
async fn past_so_many_at_once_a_response_goes_out_as_it_is() {
    let layer = CompressionLayer::new(CompressionOptions::default().with_max_at_once(2));
    let ask = async || {
        // clones share the places
        through(&layer.clone(), answer(&[]), asked(&[("accept-encoding", "br")])).await
    };
    let is_coded = |response: &Response<_>| response.headers().contains_key("content-encoding");
    let (one, two, three) = (ask().await, ask().await, ask().await);
    assert!(is_coded(&one) && is_coded(&two) && !is_coded(&three));
    assert!(three.headers()["vary"] == "accept-encoding" && three.headers()["etag"] == "\"a\"");
    assert_eq!(three.into_body().collect().await.unwrap().to_bytes(), text());
    // what has no body to encode needs no place, and a body that is gone has given its back
    let mut head = asked(&[("accept-encoding", "br")]);
    *head.method_mut() = Method::HEAD;
    assert!(is_coded(&through(&layer, answer(&[]), head).await));
    drop(one);
    let four = ask().await;
    assert!(is_coded(&four) && !is_coded(&ask().await));
    let none = CompressionLayer::new(CompressionOptions::default().with_max_at_once(0));
    assert!(!is_coded(&through(&none, answer(&[]), asked(&[("accept-encoding", "br")])).await));
}

#[tokio::test]
async fn the_service_that_was_ready_is_called() {
    let (mock, mut handle) = tower_test::mock::pair::<Request<()>, Response<Full<Bytes>>>();
    let mut service = CompressionLayer::default().layer(mock);
    handle.allow(1);
    let call = service.ready().await.unwrap().call(asked(&[("accept-encoding", "gzip")]));
    let (response, ()) = tokio::join!(call, async {
        let (request, send) = handle.next_request().await.unwrap();
        assert_eq!(request.headers()["accept-encoding"], "gzip");
        send.send_response(Response::new(Full::default()));
    });
    assert_eq!(response.unwrap().status(), 200);
}
