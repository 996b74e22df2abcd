//! Trailers (RFC 9110 section 6.5) of requests and responses, through each pair of protocols.

use std::{convert::Infallible, net::SocketAddr};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use portcullis_testkit::origin::{Answer, RawOrigin};
use tokio::{net::TcpListener, task::JoinSet};

use crate::{
    config::{plain, secure},
    support::{
        SOON,
        client::{Body, Client, Protocol},
        edge::Edge,
        raw, run, within,
    },
};

/// What goes through; one of the names comes twice.
const GOOD: [(&str, &str); 4] =
    [("grpc-status", "7"), ("x-sum", "42"), ("x-twice", "one"), ("x-twice", "two, three")];
/// RFC 9110 section 6.5.1, of those that the libraries at both ends let pass: what would be taken for more than it is if it were
/// merged into the head.
const BAD: [(&str, &str); 4] = [
    ("cookie", "a=b"),
    ("x-forwarded-for", "192.0.2.1"),
    ("www-authenticate", "Basic"),
    ("x_real_ip", "192.0.2.1"),
];

fn section() -> HeaderMap {
    let mut section = HeaderMap::new();
    for (name, value) in GOOD.into_iter().chain(BAD) {
        section.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    section
}

/// The names, without which libraries of HTTP/1.1 send nothing.
fn names() -> String {
    section().keys().map(HeaderName::as_str).collect::<Vec<_>>().join(", ")
}

fn body(text: &str) -> Body {
    let frames = [Ok(Frame::data(Bytes::from(text.to_owned()))), Ok(Frame::trailers(section()))];
    StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync()
}

fn text(section: Option<&HeaderMap>) -> String {
    let fields = section.into_iter().flatten();
    let mut lines: Vec<_> =
        fields.map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
    lines.sort_unstable();
    lines.join("; ")
}

async fn echo(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let whole = request.into_body().collect().await.unwrap();
    let seen = text(whole.trailers());
    let answer = format!("{}|{seen}", String::from_utf8(whole.to_bytes().to_vec()).unwrap());
    Ok(Response::builder().header("trailer", names()).body(body(&answer)).unwrap())
}

/// Says which trailers it saw, and sends its own.
async fn server(h2: bool) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut all = JoinSet::new();
        while let Ok((io, _)) = listener.accept().await {
            let io = TokioIo::new(io);
            all.spawn(async move {
                // the edge ends its connections as it likes
                let _ = match h2 {
                    false => http1::Builder::new().serve_connection(io, service_fn(echo)).await,
                    true => {
                        let builder = http2::Builder::new(TokioExecutor::new());
                        builder.serve_connection(io, service_fn(echo)).await
                    }
                };
            });
        }
    });
    (addr, task)
}

#[test]
fn what_may_pass_goes_both_ways_through_every_pair_of_protocols() {
    run(async {
        let mut good: Vec<_> = GOOD.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        good.sort_unstable();
        let good = good.join("; ");
        for (behind, h2) in [("http1", false), ("http2", true)] {
            let (addr, _task) = server(h2).await;
            let edge = Edge::run(&format!("{}protocol = \"{behind}\"\n", secure(addr))).await;
            for protocol in Protocol::ALL {
                let mut client = Client::connect(protocol, edge.https(), "localhost").await;
                for _ in 0..2 {
                    let request = client.request(Method::POST, "/").header("te", "trailers");
                    let request = request.header("trailer", names()).body(body("hello")).unwrap();
                    let reply = within(SOON, "an answer", client.fetch(request)).await;
                    let pair = format!("{protocol:?} before {behind}");
                    assert_eq!(reply.body, format!("hello|{good}"), "{pair}: up");
                    assert_eq!(text(reply.trailers.as_ref()), good, "{pair}: down");
                }
            }
        }
    });
}

/// Those that HTTP/1.1 alone can carry: of the message's frame, of the connection, and of the proxy's own.
#[test]
fn what_frames_or_routes_does_not_pass_as_a_trailer() {
    run(async {
        let bad = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\nConnection: x-sum\r\nKeep-Alive: 5\r\n\
                   Host: evil.test\r\nTE: trailers\r\nTrailer: x\r\nUpgrade: h2c\r\nAuthorization: Basic eA==\r\n\
                   Set-Cookie: a=b\r\nContent-Type: text/html\r\nX-Forwarded-Host: evil.test\r\n\
                   Proxy-Connection: close\r\nForwarded: for=evil\r\nCache-Control: public\r\n";
        let body = format!("5\r\nhello\r\n0\r\nX-Sum: 42\r\n{bad}X-Last: 1\r\n\r\n");
        let answer =
            format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, X-Last\r\n\r\n{body}");
        let origin = RawOrigin::script(vec![Answer::raw(answer)]).await;
        let edge = Edge::run(&plain(origin.addr())).await;
        let request = format!(
            "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n\
             Trailer: X-Sum, X-Last\r\nConnection: te\r\n\r\n{body}"
        );
        let answered = raw::send(edge.http(), request).await;
        assert_eq!(answered.statuses(), [200], "{answered:?}");
        for (way, text) in [("up", origin.received_text()), ("down", answered.text)] {
            let (_, behind) =
                text.split_once("5\r\nhello\r\n0\r\n").unwrap_or_else(|| panic!("{way}: {text}"));
            let mut lines: Vec<_> = behind.trim_end().split("\r\n").map(str::to_ascii_lowercase).collect();
            lines.sort_unstable();
            assert_eq!(lines, ["x-last: 1", "x-sum: 42"], "{way}");
        }
    });
}
