//! Who may pass, asked by an axum app. The tests of single layers have the details.
#![cfg(all(feature = "basic-auth", feature = "jwt"))]
#![allow(clippy::unwrap_used, reason = "a test may end where it cannot go on")]

use std::{net::SocketAddr, sync::Arc};

use axum::{Extension, Router, body::Body, routing::get};
use http::{HeaderName, Request, StatusCode};
use http_body_util::BodyExt;
use portcullis_conn::{ConnInfo, Transport};
use portcullis_middleware::{
    basic_auth::{BasicAuthLayer, BasicAuthOptions, UserStore, Users, hash_password},
    filter::{
        Action, CidrSet, ClientSet, FilterLayer, FilterOptions, FilterRules, FilterSets, PathPattern, Rule,
    },
    forward_auth::{ForwardAuthLayer, ForwardAuthOptions},
    identity::Authenticated,
    jwt::{Algorithm, JwtLayer, JwtOptions, KeySet, Keys},
};
use tower::ServiceExt;

const SECRET: &[u8] = b"a secret that has thirty-two bytes";

fn request(target: &str, authorization: Option<&str>, client: [u8; 4]) -> Request<Body> {
    let peer = SocketAddr::from((client, 1000));
    let mut request = Request::get(target).header("host", "a.example").body(Body::empty()).unwrap();
    if let Some(value) = authorization {
        request.headers_mut().insert("authorization", value.parse().unwrap());
    }
    request.extensions_mut().insert(Arc::new(ConnInfo::new(Transport::Tcp, peer, peer)));
    request
}

async fn text(response: http::Response<Body>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

async fn who(Extension(who): Extension<Authenticated>) -> String {
    format!("{} by {:?}", who.user, who.by)
}

/// A token for HS256 whose `exp` is in the year 2100.
fn token() -> String {
    let claims = serde_json::json!({ "sub": "carol", "exp": 4_102_444_800_u64 });
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET);
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap()
}

#[tokio::test]
async fn each_route_has_its_own_way_in() {
    let users = Users::parse(&format!("alice:{}", hash_password(b"open").unwrap())).unwrap();
    let basic = BasicAuthLayer::new(&BasicAuthOptions::default(), UserStore::new(users));
    let keys = KeySet::new(Keys::from_secret(SECRET).unwrap());
    let jwt = JwtLayer::new(&JwtOptions::new([Algorithm::Hs256]), keys).unwrap();
    // an axum app is a service that can be asked
    let check = get(|request: Request<Body>| async move {
        let allowed = request.headers().get("x-original-uri").is_some_and(|uri| uri == "/forward?key=1");
        let status = if allowed { StatusCode::NO_CONTENT } else { StatusCode::FORBIDDEN };
        (status, [("x-user", "dave")])
    });
    let user = HeaderName::from_static("x-user");
    let options = ForwardAuthOptions::new("/check".parse().unwrap()).with_user_field(Some(user));
    let forward = ForwardAuthLayer::new(options, Router::new().route("/check", check));
    let app = Router::new()
        .route("/basic", get(who).layer(basic))
        .route("/jwt", get(who).layer(jwt))
        .route("/forward", get(who).layer(forward));
    let bearer = format!("Bearer {}", token());
    for (target, authorization, status, said) in [
        ("/basic", Some("Basic YWxpY2U6b3Blbg=="), 200, "alice by Basic"),
        ("/basic", Some("Basic YWxpY2U6c2h1dA=="), 401, ""),
        ("/basic", Some(&*bearer), 401, ""),
        ("/jwt", Some(&*bearer), 200, "carol by Jwt"),
        ("/jwt", None, 401, ""),
        ("/forward?key=1", None, 200, "dave by Forward"),
        ("/forward?key=2", None, 403, ""),
    ] {
        let response = app.clone().oneshot(request(target, authorization, [192, 0, 2, 1])).await.unwrap();
        assert_eq!(response.status(), status, "{target}");
        assert_eq!(text(response).await, said, "{target}");
    }
}

#[tokio::test]
async fn rules_by_path_and_client() {
    let office = ClientSet::new(CidrSet::parse("192.0.2.0/24 # the office").unwrap());
    let admin = PathPattern::Prefix("/admin".to_owned());
    let options = FilterOptions::default()
        .with_deny(["/.git"])
        .with_rule(Rule::allow().with_path(admin.clone()).with_client_set("office"))
        .with_rule(Rule::new(Action::Close).with_path(admin));
    let sets = FilterSets::default().with_clients("office", office);
    let layer = FilterLayer::new(FilterRules::compile(&options, &sets).unwrap());
    let app = Router::new().fallback(|| async { "served" }).layer(layer.clone());
    for (target, client, status) in [
        ("/", [198, 51, 100, 1], 200),
        ("/admin/x", [192, 0, 2, 9], 200),
        ("/admin/x", [198, 51, 100, 1], 403),
        ("/%61dmin/x", [198, 51, 100, 1], 403),
        ("/.git/config", [192, 0, 2, 9], 404),
    ] {
        let response = app.clone().oneshot(request(target, None, client)).await.unwrap();
        assert_eq!(response.status(), status, "{target}");
    }
    assert_eq!(layer.denied(), 3);
}
