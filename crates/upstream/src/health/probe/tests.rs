//! Checks against endpoints that do as they like.

use std::time::Duration;

use http::HeaderMap;
use proptest::prelude::*;
use tokio::io::duplex;

use super::*;
use crate::health::GrpcCheck;

fn endpoint() -> Endpoint {
    "app.test:8080".parse().unwrap()
}

/// What a check says about an endpoint that sends this, and what it asked.
async fn against(check: Check, answer: Vec<u8>) -> (Result<(), CheckError>, String) {
    let (ours, mut theirs) = duplex(4096);
    let server = tokio::spawn(async move {
        let mut asked = vec![0; 4096];
        let count = theirs.read(&mut asked).await.unwrap_or(0);
        // the check may have gone before all of it is read
        let _ = theirs.write_all(&answer).await;
        let _ = theirs.shutdown().await;
        String::from_utf8_lossy(&asked[..count]).into_owned()
    });
    let result = tokio::time::timeout(Duration::from_secs(2), run(&check, &endpoint(), ours)).await;
    (result.unwrap_or(Err(CheckError::Timeout)), server.await.unwrap())
}

#[tokio::test]
async fn a_request_is_as_it_should_be() {
    let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static("*/*"))]);
    let check = HttpCheck::new("/live?deep=1".parse().unwrap()).with_headers(headers);
    let (result, asked) = against(Check::Http(check), b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()).await;
    assert!(result.is_ok(), "{result:?}");
    assert!(asked.starts_with("GET /live?deep=1 HTTP/1.1\r\n"), "{asked}");
    for line in ["host: app.test:8080", "user-agent: portcullis-health", "connection: close", "accept: */*"] {
        assert_eq!(asked.lines().filter(|l| l.eq_ignore_ascii_case(line)).count(), 1, "{line}: {asked}");
    }
    let check = HttpCheck::default().with_method(Method::HEAD).with_host(HeaderValue::from_static("other"));
    let (result, asked) =
        against(Check::Http(check), b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n".to_vec()).await;
    assert!(result.is_ok(), "{result:?}");
    assert!(asked.starts_with("HEAD / HTTP/1.1\r\nhost: other\r\n"), "{asked}");
}

#[tokio::test]
async fn answers_and_verdicts() {
    let plain = HttpCheck::default();
    let redirects = plain.clone().with_statuses(vec![200..=200, 300..=399]);
    let text = plain.clone().with_body_contains("ready");
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nrea\r\n2\r\ndy\r\n0\r\n\r\n";
    let far = format!("HTTP/1.1 200 OK\r\n\r\n{}ready", "x".repeat(MAX_BODY));
    let near = format!("HTTP/1.1 200 OK\r\n\r\n{}ready", "x".repeat(MAX_BODY - 5));
    let big_head = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(MAX_HEAD + 1));
    for (check, answer, verdict) in [
        (&plain, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab", "Ok(())"),
        (&plain, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "Ok(())"),
        (&plain, "HTTP/1.0 200 OK\r\n\r\n", "Ok(())"),
        (&plain, "HTTP/1.1 302 Found\r\nlocation: /x\r\n\r\n", "Err(Status(302))"),
        (&plain, "HTTP/1.1 503 No\r\n\r\n", "Err(Status(503))"),
        (&redirects, "HTTP/1.1 302 Found\r\nlocation: /x\r\n\r\n", "Ok(())"),
        (&redirects, "HTTP/1.1 204 No Content\r\n\r\n", "Err(Status(204))"),
        (&text, "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nI'm ready", "Ok(())"),
        (&text, "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nread", "Err(Body)"),
        (&text, chunked, "Ok(())"),
        (&text, &near, "Ok(())"),
        (&text, &far, "Err(Body)"),
        (&plain, &big_head, "Err(Http("),
        (&plain, "SSH-2.0-OpenSSH\r\n", "Err(Http("),
        (&plain, "", "Err(Http("),
        (&text, "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nI'm", "Err(Http("),
    ] {
        let (result, _) = against(Check::Http(check.clone()), answer.as_bytes().to_vec()).await;
        let result = format!("{result:?}");
        assert!(result.starts_with(verdict), "{}: {result}", &answer[..answer.len().min(60)]);
    }
}

#[tokio::test]
async fn bytes_over_tcp() {
    let ping = TcpCheck::default().with_send("PING\r\n").with_expect("+PONG");
    for (check, answer, verdict) in [
        (&TcpCheck::default(), "", "Ok(())"),
        (&ping, "+PONG\r\n", "Ok(())"),
        (&ping, "+PONG", "Ok(())"),
        (&ping, "+PON", "Err(Bytes)"),
        (&ping, "-LOADING", "Err(Bytes)"),
        (&ping, "", "Err(Bytes)"),
    ] {
        let (result, asked) = against(Check::Tcp(check.clone()), answer.as_bytes().to_vec()).await;
        assert_eq!(format!("{result:?}"), verdict, "{answer}");
        assert_eq!(asked.as_bytes(), &check.send[..]);
    }
    let long: Vec<u8> = (0..2000_u32).map(|n| n as u8).collect();
    let check = TcpCheck::default().with_send("x").with_expect(long.clone());
    assert!(against(Check::Tcp(check), long).await.0.is_ok());
}

/// An answer of the health service: the head's status and fields, the message, and the trailers' gRPC status.
struct Answer(u16, &'static [(&'static str, &'static str)], Vec<u8>, Option<&'static str>);

async fn grpc(check: GrpcCheck, answer: Answer) -> (Result<(), CheckError>, Vec<u8>, String) {
    let (ours, theirs) = duplex(4096);
    let server = tokio::spawn(async move {
        let mut connection = h2::server::handshake(theirs).await.unwrap();
        let (request, mut respond) = connection.accept().await.unwrap().unwrap();
        tokio::spawn(async move { while connection.accept().await.is_some() {} });
        let target = request.uri().to_string();
        let asked = request.into_body().data().await.unwrap().unwrap().to_vec();
        let mut response = http::Response::builder().status(answer.0);
        for (name, value) in answer.1 {
            response = response.header(*name, *value);
        }
        let mut stream = respond.send_response(response.body(()).unwrap(), false).unwrap();
        stream.send_data(answer.2.into(), answer.3.is_none()).unwrap();
        if let Some(status) = answer.3 {
            let trailers = HeaderMap::from_iter([(
                http::HeaderName::from_static("grpc-status"),
                HeaderValue::from_static(status),
            )]);
            stream.send_trailers(trailers).unwrap();
        }
        (asked, target)
    });
    let result = run(&Check::Grpc(check), &endpoint(), ours).await;
    let (asked, target) = server.await.unwrap();
    (result, asked, target)
}

#[tokio::test]
async fn the_health_service_of_grpc() {
    const KIND: &[(&str, &str)] = &[("content-type", "application/grpc+proto")];
    let message = |status| vec![0, 0, 0, 0, 2, 8, status];
    for (answer, verdict) in [
        (Answer(200, KIND, message(1), Some("0")), "Ok(())"),
        (Answer(200, KIND, message(2), Some("0")), "Err(NotServing(\"NOT_SERVING\"))"),
        (Answer(200, KIND, message(3), Some("0")), "Err(NotServing(\"SERVICE_UNKNOWN\"))"),
        (Answer(200, KIND, vec![0; 5], Some("0")), "Err(NotServing(\"UNKNOWN\"))"),
        (Answer(200, KIND, message(1), Some("12")), "Err(GrpcStatus(\"12\"))"),
        (Answer(200, KIND, message(1), None), "Err(Grpc(\"there are no trailers\"))"),
        (Answer(200, KIND, vec![0; 2000], Some("0")), "Err(Grpc(\"the message is too long\"))"),
        (Answer(200, KIND, vec![9; 3], Some("0")), "Err(Grpc(\"the message is broken\"))"),
        (Answer(503, KIND, message(1), Some("0")), "Err(Status(503))"),
        (
            Answer(200, &[("content-type", "text/html")], message(1), Some("0")),
            "Err(Grpc(\"the content type is not application/grpc\"))",
        ),
        (
            Answer(200, &[("content-type", "application/grpc"), ("grpc-status", "5")], vec![], None),
            "Err(GrpcStatus(\"5\"))",
        ),
    ] {
        let (result, asked, target) = grpc(GrpcCheck::default().with_service("a.B"), answer).await;
        assert_eq!(format!("{result:?}"), verdict);
        assert_eq!(asked, b"\0\0\0\0\x05\x0a\x03a.B");
        assert_eq!(target, "http://app.test:8080/grpc.health.v1.Health/Check");
    }
    let (result, _) = against(Check::Grpc(GrpcCheck::default()), b"HTTP/1.1 400 Bad\r\n\r\n".to_vec()).await;
    assert!(matches!(result, Err(CheckError::Http2(_))), "{result:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_answer_panics(answer: Vec<u8>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let checks = [
                Check::Http(HttpCheck::default().with_body_contains("x")),
                Check::Tcp(TcpCheck::default().with_send("y").with_expect("x")),
                Check::Grpc(GrpcCheck::default()),
            ];
            for check in checks {
                let _ = against(check, answer.clone()).await;
            }
        });
    }
}
