use super::*;
use crate::storage::MemoryStorage;
use http::StatusCode;
use http_body_util::{BodyExt, Full};
use tower::{ServiceExt, service_fn};

fn layer(is_used: bool) -> (MemoryStorage, Arc<Answers>, Http01Layer) {
    let storage = MemoryStorage::new();
    let answers = Arc::new(Answers::new(Arc::new(storage.clone()), Arc::default()));
    (storage, Arc::clone(&answers), Http01Layer::new(answers, is_used))
}

async fn ask(layer: &Http01Layer, method: Method, path: &str) -> (StatusCode, String, Option<String>) {
    let behind = service_fn(|request: Request<()>| async move {
        let text = format!("behind {} {}", request.method(), request.uri());
        let mut response = Response::new(Full::<Bytes>::from(text));
        *response.status_mut() = StatusCode::IM_A_TEAPOT;
        Ok::<_, std::convert::Infallible>(response)
    });
    let request = Request::builder().method(method).uri(path).body(()).unwrap();
    let response = layer.layer(behind).oneshot(request).await.unwrap();
    let length = response.headers().get(CONTENT_LENGTH).map(|value| value.to_str().unwrap().to_owned());
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap(), length)
}

#[tokio::test]
async fn known_tokens_alone_are_answered() {
    let (_, answers, layer) = layer(true);
    answers.put_http("tok", "tok.thumb", "a.example").unwrap();
    let known = "/.well-known/acme-challenge/tok";
    let yes = |body: &str| (StatusCode::OK, body.to_owned(), Some("9".to_owned()));
    assert_eq!(ask(&layer, Method::GET, known).await, yes("tok.thumb"));
    assert_eq!(ask(&layer, Method::HEAD, known).await, yes(""));
    assert_eq!(ask(&layer, Method::GET, &format!("{known}?a=b")).await, yes("tok.thumb"));
    for (method, path) in [
        (Method::POST, known),
        (Method::GET, "/"),
        (Method::GET, "/.well-known/acme-challenge/"),
        (Method::GET, "/.well-known/acme-challenge/other"),
        (Method::GET, "/.well-known/acme-challenge/tok/x"),
        (Method::GET, "/x/.well-known/acme-challenge/tok"),
        (Method::GET, "/.well-known/acme-challenge/t%6fk"),
    ] {
        let want = (StatusCode::IM_A_TEAPOT, format!("behind {method} {path}"), None);
        assert_eq!(ask(&layer, method, path).await, want);
    }
    assert_eq!(layer.answers().answer("tok").await.as_deref(), Some("tok.thumb"));
}

#[tokio::test]
async fn with_another_challenge_it_does_nothing() {
    let (_, answers, layer) = layer(false);
    answers.put_http("tok", "tok.thumb", "a.example").unwrap();
    let (status, ..) = ask(&layer, Method::GET, "/.well-known/acme-challenge/tok").await;
    assert_eq!(status, StatusCode::IM_A_TEAPOT);
    assert_eq!(layer.answers().answer("tok").await, None);
}
