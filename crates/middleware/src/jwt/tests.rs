use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::COOKIE;
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::json;

use super::*;
use crate::test_support::{Body, get, through};

const SECRET: &[u8] = b"a secret that has thirty-two bytes";

fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

fn sign(header: &Header, claims: &Value) -> String {
    encode(header, claims, &EncodingKey::from_secret(SECRET)).unwrap()
}

fn token(claims: Value) -> String {
    let mut all = json!({ "exp": now() + 60, "sub": "alice" });
    let Value::Object(claims) = claims else { panic!("claims are an object") };
    for (name, value) in claims {
        all[name] = value;
    }
    sign(&Header::new(jsonwebtoken::Algorithm::HS256), &all)
}

fn layer(options: &JwtOptions) -> JwtLayer {
    JwtLayer::new(options, KeySet::new(Keys::from_secret(SECRET).unwrap())).unwrap()
}

fn hs256() -> JwtOptions {
    JwtOptions::new([Algorithm::Hs256])
}

fn with_token(token: &str) -> Request<()> {
    let mut request = get("/");
    request.headers_mut().insert(AUTHORIZATION, HeaderValue::try_from(format!("Bearer {token}")).unwrap());
    request
}

/// The request's fields come back in the response's.
fn echo(request: Request<()>) -> Response<Body> {
    let mut response = Response::new(Body::default());
    *response.headers_mut() = request.into_parts().0.headers;
    response
}

async fn send(layer: &JwtLayer, request: Request<()>) -> Response<Body> {
    through(layer, echo, request).await
}

async fn status(options: &JwtOptions, claims: Value) -> (u16, String) {
    let response = send(&layer(options), with_token(&token(claims))).await;
    let challenge = response.headers().get(WWW_AUTHENTICATE);
    let challenge = challenge.map(|value| value.to_str().unwrap().to_owned());
    (response.status().as_u16(), challenge.unwrap_or_default())
}

#[tokio::test]
async fn claims_decide() {
    let strict = hs256().with_issuer("https://issuer").with_audience("api").with_required("jti");
    let good = json!({ "iss": "https://issuer", "aud": ["api", "web"], "jti": "1" });
    assert_eq!(status(&strict, good.clone()).await, (200, String::new()));
    let invalid = "Bearer realm=\"restricted\", error=\"invalid_token\", error_description=";
    for (name, value, why) in [
        ("iss", json!("https://other"), "the token is not valid"),
        ("iss", json!(null), "the token is not valid"),
        ("iss", json!(7), "the token is not valid"),
        ("aud", json!("web"), "the token is not valid"),
        ("aud", json!(null), "the token is not valid"),
        ("exp", json!(now() - 31), "the token has expired"),
        ("exp", json!("soon"), "the token is not valid"),
        ("exp", json!(null), "the token is not valid"),
        ("exp", json!(-1), "the token is not valid"),
        ("nbf", json!(now() + 40), "the token is not valid yet"),
        ("jti", json!(null), "the token lacks a claim"),
    ] {
        let mut claims = good.clone();
        claims[name] = value;
        let told = status(&strict, claims).await;
        assert_eq!(told, (401, format!("{invalid}\"{why}\"")), "{name}");
    }
    let mut late = good;
    late["exp"] = json!(now() - 20);
    late["nbf"] = json!(now() + 20);
    assert_eq!(status(&strict, late.clone()).await.0, 200);
    assert_eq!(status(&strict.with_leeway(Duration::from_secs(5)), late).await.0, 401);
    // for somebody, and nobody says that it is for us
    for audience in [json!("api"), json!(["api"]), json!([]), json!(5), json!({ "api": true }), json!(true)] {
        assert_eq!(status(&hs256(), json!({ "aud": audience })).await.0, 401, "{audience}");
    }
    assert_eq!(status(&hs256(), json!({ "aud": null })).await.0, 200);
    assert_eq!(status(&hs256(), json!({})).await.0, 200);
}

#[tokio::test]
async fn scopes() {
    let options = hs256().with_scope("read").with_scope("write");
    for (claims, expected) in [
        (json!({ "scope": "read write admin" }), 200),
        (json!({ "scp": ["write", "read"] }), 200),
        (json!({ "scope": "read" }), 403),
        (json!({ "scope": "readwrite" }), 403),
        (json!({}), 403),
    ] {
        let (found, challenge) = status(&options, claims.clone()).await;
        assert_eq!(found, expected, "{claims}");
        if found == 403 {
            let wanted = "Bearer realm=\"restricted\", error=\"insufficient_scope\", scope=\"read write\"";
            assert_eq!(challenge, wanted);
        }
    }
}

fn base64url(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text)
}

#[tokio::test]
async fn what_is_no_token_of_ours() {
    let good = token(json!({}));
    let (rest, _) = good.rsplit_once('.').unwrap();
    let claims = rest.split_once('.').unwrap().1;
    let none = format!("{}.{claims}.", base64url(r#"{"alg":"none"}"#));
    let mut critical = Header::new(jsonwebtoken::Algorithm::HS256);
    critical.crit = Some(vec!["b64".to_owned()]);
    let fresh = json!({ "exp": now() + 60 });
    let other = EncodingKey::from_secret(b"another secret of thirty-two bytes");
    let strangers = encode(&Header::new(jsonwebtoken::Algorithm::HS256), &fresh, &other).unwrap();
    for bad in [
        none,
        format!("{rest}."),
        format!("{rest}.AAAA"),
        rest.to_owned(),
        "..".to_owned(),
        String::new(),
        "a".repeat(20_000),
        format!("{good}x"),
        sign(&Header::new(jsonwebtoken::Algorithm::HS384), &fresh),
        sign(&critical, &fresh),
        strangers,
    ] {
        let response = send(&layer(&hs256()), with_token(&bad)).await;
        assert_eq!(response.status(), 401, "{bad}");
        assert!(response.headers()[WWW_AUTHENTICATE].to_str().unwrap().contains("invalid_token"));
    }
    for line in ["Basic x", "Bearer", ""] {
        let mut request = get("/");
        request.headers_mut().insert(AUTHORIZATION, HeaderValue::from_static(line));
        let response = send(&layer(&hs256()), request).await;
        assert_eq!(response.headers()[WWW_AUTHENTICATE], "Bearer realm=\"restricted\"", "{line}");
    }
    let mut several = with_token(&good);
    several.headers_mut().append(AUTHORIZATION, HeaderValue::from_static("Bearer x"));
    let response = send(&layer(&hs256()), several).await;
    assert_eq!(response.status(), 400);
    assert!(response.headers()[WWW_AUTHENTICATE].to_str().unwrap().ends_with("error=\"invalid_request\""));
}

/// A key pair of each kind: the public part in PEM, and what signs.
fn pairs() -> Vec<(Algorithm, String, EncodingKey)> {
    [
        (Algorithm::Es256, &rcgen::PKCS_ECDSA_P256_SHA256),
        (Algorithm::Es384, &rcgen::PKCS_ECDSA_P384_SHA384),
        (Algorithm::EdDsa, &rcgen::PKCS_ED25519),
        (Algorithm::Rs256, &rcgen::PKCS_RSA_SHA256),
    ]
    .into_iter()
    .map(|(algorithm, kind)| {
        let pair = rcgen::KeyPair::generate_for(kind).unwrap();
        let der = pair.serialize_der();
        let signing = match algorithm {
            Algorithm::EdDsa => EncodingKey::from_ed_der(&der),
            // PKCS #1, which PKCS #8 has behind a head of 26 bytes where the key has 2048 bits
            Algorithm::Rs256 => EncodingKey::from_rsa_der(&der[26..]),
            _ => EncodingKey::from_ec_der(&der),
        };
        (algorithm, pair.public_key_pem(), signing)
    })
    .collect()
}

#[tokio::test]
async fn public_keys_are_for_their_own_algorithms() {
    let pairs = pairs();
    let all: String = pairs.iter().map(|(_, pem, _)| pem.as_str()).collect();
    let keys = Keys::from_pem(all.as_bytes()).unwrap();
    assert_eq!(keys.len(), 4);
    let claims = json!({ "exp": now() + 60, "sub": "bob" });
    for (algorithm, pem, signing) in &pairs {
        let signed = encode(&Header::new(algorithm.known()), &claims, signing).unwrap();
        for taken in [*algorithm, Algorithm::Hs256, Algorithm::Ps256] {
            let layer = JwtLayer::new(&JwtOptions::new([taken]), KeySet::new(keys.clone())).unwrap();
            let status = send(&layer, with_token(&signed)).await.status();
            assert_eq!(status.as_u16(), if taken == *algorithm { 200 } else { 401 }, "{algorithm} {taken}");
        }
        // the public key as a secret that everybody knows (RFC 8725 section 2.1)
        for secret in [pem.as_bytes(), pem.trim().as_bytes()] {
            let header = Header::new(jsonwebtoken::Algorithm::HS256);
            let forged = encode(&header, &claims, &EncodingKey::from_secret(secret)).unwrap();
            let options = JwtOptions::new([*algorithm, Algorithm::Hs256]);
            let layer =
                JwtLayer::new(&options, KeySet::new(Keys::from_pem(pem.as_bytes()).unwrap())).unwrap();
            assert_eq!(send(&layer, with_token(&forged)).await.status(), 401, "{algorithm}");
        }
    }
}

#[tokio::test]
async fn a_set_of_keys_in_json_that_is_replaced() {
    let pairs = pairs();
    let jwk = |at: usize, id: &str| {
        let (algorithm, _, signing) = &pairs[at];
        let mut jwk = Jwk::from_encoding_key(signing, algorithm.known()).unwrap();
        jwk.common.key_id = Some(id.to_owned());
        serde_json::to_value(jwk).unwrap()
    };
    use jsonwebtoken::jwk::Jwk;
    let mut for_encryption = jwk(0, "es");
    for_encryption["use"] = json!("enc");
    let mut for_signing = jwk(0, "es");
    for_signing["key_ops"] = json!(["sign"]);
    let odd = [
        json!({ "kty": "oct", "k": base64url("a secret that everybody can read.") }),
        json!({ "kty": "X" }),
        json!(1),
    ];
    let set = |keys: &[Value]| {
        let all: Vec<_> = keys.iter().chain(&odd).chain([&for_encryption, &for_signing]).collect();
        Keys::from_jwks(&json!({ "keys": all }).to_string())
    };
    let mut for_verifying = jwk(0, "es");
    for_verifying["key_ops"] = json!(["verify"]);
    let keys = KeySet::new(set(&[for_verifying]).unwrap());
    let options = JwtOptions::new([Algorithm::Es256, Algorithm::Rs256, Algorithm::Hs256]);
    let layer = JwtLayer::new(&options, keys.clone()).unwrap();
    let signed = |at: usize, id: Option<&str>| {
        let mut header = Header::new(pairs[at].0.known());
        header.kid = id.map(str::to_owned);
        with_token(&encode(&header, &json!({ "exp": now() + 60 }), &pairs[at].2).unwrap())
    };
    assert_eq!(send(&layer, signed(0, Some("es"))).await.status(), 200);
    assert_eq!(send(&layer, signed(0, None)).await.status(), 200);
    let mut wanted = Box::pin(keys.wanted());
    let noop = &mut Context::from_waker(std::task::Waker::noop());
    assert!(wanted.as_mut().poll(noop).is_pending());
    assert_eq!(send(&layer, signed(3, Some("rs"))).await.status(), 401);
    // however many ask, it is wanted once, and once more for those since
    for _ in 0..3 {
        assert_eq!(send(&layer, signed(3, Some("rs"))).await.status(), 401);
    }
    wanted.await;
    keys.wanted().await;
    assert!(Box::pin(keys.wanted()).as_mut().poll(noop).is_pending());
    keys.replace(set(&[jwk(3, "rs")]).unwrap());
    assert_eq!(send(&layer, signed(3, Some("rs"))).await.status(), 200);
    assert_eq!(send(&layer, signed(0, Some("es"))).await.status(), 401);
    assert_eq!(set(&[]).unwrap_err(), KeyError::None);
    assert_eq!(Keys::from_jwks("{}").unwrap_err(), KeyError::InvalidSet);
    assert_eq!(set(&vec![jwk(3, "rs"); 65]).unwrap_err(), KeyError::TooMany);
    let mut other = jwk(3, "rs");
    other["alg"] = json!("PS256");
    keys.replace(set(&[other]).unwrap());
    assert_eq!(send(&layer, signed(3, Some("rs"))).await.status(), 401);
}

#[tokio::test]
async fn without_keys_nobody_is_to_blame() {
    let layer = JwtLayer::new(&hs256(), KeySet::default()).unwrap();
    assert_eq!(send(&layer, with_token(&token(json!({})))).await.status(), 503);
    assert_eq!(send(&layer, get("/")).await.status(), 401);
}

#[tokio::test]
async fn claims_become_fields_and_clients_can_not_set_them() {
    let field = HeaderName::from_static;
    let options = hs256()
        .with_claim("sub", field("x-user"))
        .with_claim("roles", field("x-roles"))
        .with_claim("name", field("x-name"))
        .with_claim("age", field("x-age"))
        .with_strip(true);
    let claims = json!({ "roles": ["a", "b"], "name": "evil\r\nx: y", "age": 7 });
    let mut request = with_token(&token(claims));
    for name in ["x-user", "X_User", "x_roles", "x-name", "x-other"] {
        request.headers_mut().append(HeaderName::try_from(name).unwrap(), HeaderValue::from_static("root"));
    }
    let response = send(&layer(&options), request).await;
    let fields: std::collections::BTreeMap<_, _> =
        response.headers().iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    let expected = [("x-user", "alice"), ("x-roles", "a,b"), ("x-age", "7"), ("x-other", "root")];
    assert_eq!(fields, expected.into_iter().collect());
    let who = response.extensions().get::<Authenticated>().unwrap();
    assert_eq!(*who, Authenticated::new("alice", Scheme::Jwt));
    for (claim, told) in [
        (json!(["a,b", "c"]), None),
        (json!([["a"]]), None),
        (json!({ "a": 1 }), None),
        (json!(null), None),
        (json!(true), Some("true")),
        (json!([]), Some("")),
        (json!(1.5), Some("1.5")),
    ] {
        assert_eq!(text(&claim).as_deref(), told, "{claim}");
    }
}

#[tokio::test]
async fn the_cookie_is_a_choice() {
    let cookie = hs256().with_cookie(Some("session".to_owned()));
    let good = token(json!({}));
    for (line, with, without) in [
        (format!("a=b; session={good}; c=d"), 200, 401),
        (format!("xsession={good}"), 401, 401),
        (format!("session={good}; session=x"), 400, 401),
        (format!("session={good}; session =x"), 400, 401),
        ("session=x".to_owned(), 401, 401),
    ] {
        let mut request = get("/");
        request.headers_mut().insert(COOKIE, HeaderValue::try_from(line.as_str()).unwrap());
        assert_eq!(send(&layer(&cookie), request.clone()).await.status(), with, "{line}");
        assert_eq!(send(&layer(&hs256()), request).await.status(), without, "{line}");
    }
}

#[test]
fn options_are_checked() {
    let new = |options: &JwtOptions| JwtLayer::new(options, KeySet::default()).err();
    assert_eq!(new(&JwtOptions::default()), Some(JwtError::NoAlgorithm));
    for name in ["", "a b", "a=b", "a;b"] {
        assert_eq!(new(&hs256().with_cookie(Some(name.to_owned()))), Some(JwtError::InvalidCookie));
    }
    assert_eq!("none".parse::<Algorithm>(), Err(JwtError::UnknownAlgorithm));
    assert_eq!("RS256".parse(), Ok(Algorithm::Rs256));
    assert_eq!(Keys::from_secret(&[0; 31]).unwrap_err(), KeyError::ShortSecret);
    assert_eq!(Keys::from_pem(b"").unwrap_err(), KeyError::None);
    let cut = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n";
    assert_eq!(Keys::from_pem(cut.as_bytes()).unwrap_err(), KeyError::InvalidPem { number: 1 });
}
