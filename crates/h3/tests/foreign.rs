//! A client of another hand: the published h3 crate, which knows nothing of ours.

#![allow(clippy::unwrap_used, clippy::large_futures, reason = "a test may panic")]

mod common;

use bytes::{Buf, Bytes};
use common::{Server, service, soon};
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use portcullis_h3::QuicOptions;
use portcullis_testkit::body::ScriptBody;

#[tokio::test]
async fn the_published_client_gets_sends_and_reads_trailers() {
    let server = Server::start(
        QuicOptions::default(),
        service(|request| async move {
            let line = format!("{} {}", request.method(), request.uri());
            let agent = request.headers().get("user-agent").cloned();
            let collected = request.into_body().collect().await.unwrap();
            let trailer = collected.trailers().and_then(|trailers| trailers.get("x-sum").cloned());
            let length = collected.to_bytes().len();
            let mut trailers = HeaderMap::new();
            trailers.insert("x-length", length.into());
            if let Some(trailer) = trailer {
                trailers.insert("x-sum", trailer);
            }
            let mut response =
                Response::new(ScriptBody::new().data(line).data(vec![b'.'; 200_000]).trailers(trailers));
            response.headers_mut().insert("x-agent", agent.unwrap());
            response
        }),
    )
    .await;
    let raw = server.raw().await;
    let (mut driver, mut send) = h3::client::new(h3_quinn::Connection::new(raw)).await.unwrap();
    let driving = tokio::spawn(async move { std::future::poll_fn(|cx| driver.poll_close(cx)).await });
    for length in [0, 5, 300_000] {
        // Huffman-coded fields, as that crate writes them
        let ask = Request::post("https://localhost/path?with=query")
            .header("user-agent", "Mozilla/5.0 (X11; Linux x86_64)")
            .header("cookie", "a=b")
            .body(())
            .unwrap();
        let mut stream = soon(send.send_request(ask)).await.unwrap();
        if length > 0 {
            stream.send_data(Bytes::from(vec![b'x'; length])).await.unwrap();
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "7".parse().unwrap());
        stream.send_trailers(trailers).await.unwrap();
        stream.finish().await.unwrap();
        let response = soon(stream.recv_response()).await.unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["x-agent"]),
            (200, &"Mozilla/5.0 (X11; Linux x86_64)".parse().unwrap())
        );
        let mut body = Vec::new();
        while let Some(mut data) = soon(stream.recv_data()).await.unwrap() {
            body.extend_from_slice(&data.copy_to_bytes(data.remaining()));
        }
        let line = b"POST https://localhost/path?with=query";
        assert!(body.starts_with(line) && body.len() == line.len() + 200_000);
        let trailers = soon(stream.recv_trailers()).await.unwrap().unwrap();
        assert_eq!((&trailers["x-length"], &trailers["x-sum"]), (&length.into(), &"7".parse().unwrap()));
    }
    drop(send);
    let ended = soon(driving).await.unwrap();
    assert!(ended.is_h3_no_error(), "{ended}");
}
