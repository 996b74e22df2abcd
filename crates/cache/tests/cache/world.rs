//! A cache in front of an origin that is a function.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, request, uri::Scheme};
use http_body_util::{BodyExt, Full};
use portcullis_cache::{Cache, CacheBody, CacheLayer, CacheOptions, CacheRules, CacheStats};
use portcullis_testkit::body::ScriptBody;
use tower::{Layer, Service, ServiceExt, util::BoxCloneService};

type Origin = BoxCloneService<Request<Full<Bytes>>, Response<ScriptBody>, Infallible>;

/// A cache in front of an origin.
pub(crate) struct World {
    pub(crate) layer: CacheLayer,
    pub(crate) cache: Cache<Origin>,
    pub(crate) seen: Arc<Mutex<Vec<request::Parts>>>,
    origin: Origin,
}

pub(crate) fn https() -> CacheOptions {
    CacheOptions::default().with_scheme(Some(Scheme::HTTPS))
}

/// What a client got.
#[derive(Debug)]
pub(crate) struct Got {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Got {
    pub(crate) fn field(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn cache_status(&self) -> &str {
        self.field("cache-status").strip_prefix("portcullis; ").unwrap()
    }

    /// Ages count by the real clock, of which some seconds may pass.
    pub(crate) fn is_aged(&self, age: u64) -> bool {
        (age..age + 20).contains(&self.field("age").parse().unwrap())
    }

    pub(crate) fn is_hit(&self) -> bool {
        self.cache_status().starts_with("hit")
    }
}

impl World {
    pub(crate) fn with<F>(options: CacheOptions, answer: F) -> Self
    where
        F: Fn(usize, &request::Parts) -> Response<ScriptBody> + Send + Sync + Clone + 'static,
    {
        Self::over(CacheLayer::new(options), answer)
    }

    pub(crate) fn over<F>(layer: CacheLayer, answer: F) -> Self
    where
        F: Fn(usize, &request::Parts) -> Response<ScriptBody> + Send + Sync + Clone + 'static,
    {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let origin = BoxCloneService::new(tower::service_fn({
            let seen = Arc::clone(&seen);
            move |request: Request<Full<Bytes>>| {
                let parts = request.into_parts().0;
                let mut seen = seen.lock().unwrap();
                let response = answer(seen.len(), &parts);
                seen.push(parts);
                async move { Ok(response) }
            }
        }));
        let cache = layer.layer(origin.clone());
        Self { layer, cache, seen, origin }
    }

    /// Of HTTPS, with rules.
    pub(crate) fn ruled<F>(rules: CacheRules, answer: F) -> Self
    where
        F: Fn(usize, &request::Parts) -> Response<ScriptBody> + Send + Sync + Clone + 'static,
    {
        Self::with(https(), answer).also_with(rules)
    }

    /// Another layer over the same store, before the same origin.
    pub(crate) fn also_with(&self, rules: CacheRules) -> Self {
        let layer = self.layer.with_rules(rules);
        let cache = layer.layer(self.origin.clone());
        Self { layer, cache, seen: Arc::clone(&self.seen), origin: self.origin.clone() }
    }

    pub(crate) fn new<F>(answer: F) -> Self
    where
        F: Fn(usize, &request::Parts) -> Response<ScriptBody> + Send + Sync + Clone + 'static,
    {
        Self::with(https(), answer)
    }

    /// An origin that counts in its bodies and sends these fields.
    pub(crate) fn counting(fields: &'static [(&'static str, &'static str)]) -> Self {
        Self::new(move |n, _| reply(200, fields, &format!("body {n}")))
    }

    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Got {
        let response = self.start(request).await;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body = String::from_utf8(body.to_vec()).unwrap();
        Got { status: parts.status, headers: parts.headers, body }
    }

    pub(crate) async fn start(&self, request: Request<Full<Bytes>>) -> Response<CacheBody<ScriptBody>> {
        let mut cache = self.cache.clone();
        cache.ready().await.unwrap().call(request).await.unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Got {
        self.send(get(path, &[])).await
    }

    pub(crate) fn calls(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    pub(crate) fn last(&self) -> HeaderMap {
        self.seen.lock().unwrap().last().unwrap().headers.clone()
    }

    pub(crate) fn stats(&self) -> CacheStats {
        self.layer.run_pending();
        self.layer.stats()
    }
}

pub(crate) fn request(method: Method, uri: &str, fields: &[(&'static str, &str)]) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::default());
    *request.method_mut() = method;
    *request.uri_mut() = uri.parse().unwrap();
    for (name, value) in fields {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    request
}

pub(crate) fn get(path: &str, fields: &[(&'static str, &str)]) -> Request<Full<Bytes>> {
    let mut request = request(Method::GET, path, fields);
    if !request.headers().contains_key("host") {
        request.headers_mut().insert("host", "a.example.com".parse().unwrap());
    }
    request
}

pub(crate) fn reply(status: u16, fields: &[(&'static str, &str)], body: &str) -> Response<ScriptBody> {
    stream(status, fields, ScriptBody::new().data(body.to_owned()))
}

pub(crate) fn stream(status: u16, fields: &[(&'static str, &str)], body: ScriptBody) -> Response<ScriptBody> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in fields {
        response.headers_mut().append(*name, value.parse().unwrap());
    }
    response
}

/// Lets tasks in the background run: they have nothing to wait for.
pub(crate) async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

pub(crate) const FRESH: &[(&str, &str)] = &[("cache-control", "max-age=60")];

/// The example of RFC 9110 section 5.6.7.
pub(crate) const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

pub(crate) trait Also {
    fn also(self, field: (&'static str, &str)) -> Self;
}

impl Also for Response<ScriptBody> {
    fn also(mut self, (name, value): (&'static str, &str)) -> Self {
        self.headers_mut().append(name, value.parse().unwrap());
        self
    }
}

/// An origin with one version of one thing, that knows what a client has.
pub(crate) fn validating(
    cc: &'static str,
    etag: Option<&'static str>,
    modified: Option<&'static str>,
) -> World {
    World::new(move |n, request| {
        let has = |name, value: Option<&str>| {
            value.is_some_and(|v| request.headers.get(name) == Some(&v.parse().unwrap()))
        };
        let same = has("if-none-match", etag) || has("if-modified-since", modified);
        let mut response = if same { reply(304, &[("x-n", "new")], "") } else { reply(200, &[], "body") };
        response = response.also(("cache-control", cc)).also(("x-call", &n.to_string()));
        for (name, value) in [("etag", etag), ("last-modified", modified)] {
            if let Some(value) = value {
                response = response.also((name, value));
            }
        }
        response
    })
}
