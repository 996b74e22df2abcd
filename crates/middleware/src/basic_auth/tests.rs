use std::sync::atomic::Ordering;

use http_body_util::Empty;
use tower::{ServiceExt, service_fn};

use super::*;
use crate::test_support::NotReady;

type Body = Empty<bytes::Bytes>;

/// As cheap as argon2 allows.
fn cheap(password: &str) -> String {
    use argon2::{Algorithm, Argon2, Params, Version, password_hash::PasswordHasher as _};
    let params = Params::new(8, 1, 1, None).unwrap();
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon2.hash_password_with_salt(password.as_bytes(), b"salt of sixteen.").unwrap().to_string()
}

fn users(list: &[(&str, &str)]) -> Users {
    let lines: Vec<_> = list.iter().map(|(name, password)| format!("{name}:{}", cheap(password))).collect();
    Users::parse(&lines.join("\n")).unwrap()
}

fn basic(pair: &str) -> Request<()> {
    let encoded = general_purpose::STANDARD.encode(pair);
    Request::get("/").header(AUTHORIZATION, format!("Basic {encoded}")).body(()).unwrap()
}

/// Tells in its body's place what came through: in a field of the response.
async fn send(layer: &BasicAuthLayer, request: Request<()>) -> Response<Body> {
    let inner = service_fn(|request: Request<()>| async move {
        let who = request.extensions().get::<Authenticated>().unwrap();
        let mut response = Response::new(Body::new());
        let headers = response.headers_mut();
        headers.insert("who", HeaderValue::try_from(&*who.user).unwrap());
        headers.insert(
            "has-authorization",
            request.headers().contains_key(AUTHORIZATION).to_string().parse().unwrap(),
        );
        for (name, value) in request.headers() {
            headers.append(HeaderName::try_from(format!("got-{name}")).unwrap(), value.clone());
        }
        Ok::<_, std::convert::Infallible>(response)
    });
    layer.layer(inner).oneshot(request).await.unwrap()
}

#[tokio::test]
async fn right_wrong_and_not_at_all() {
    let store = UserStore::new(users(&[("alice", "pass:word"), ("bob", "s\u{e9}same")]));
    let layer = BasicAuthLayer::new(&BasicAuthOptions::default().with_realm("a \"b\""), store);
    // each twice: computed, and remembered
    for (pair, status) in [
        ("alice:pass:word", 200),
        ("bob:s\u{e9}same", 200),
        ("alice:pass", 401),
        ("alice:", 401),
        ("bob:pass:word", 401),
        ("carol:pass:word", 401),
        (":", 401),
        ("alice", 401),
        ("", 401),
    ] {
        for _ in 0..2 {
            let response = send(&layer, basic(pair)).await;
            assert_eq!(response.status(), status, "{pair}");
            if status == 401 {
                let challenge = &response.headers()[WWW_AUTHENTICATE];
                assert_eq!(challenge, r#"Basic realm="a \"b\"", charset="UTF-8""#);
            } else {
                let who = response.extensions().get::<Authenticated>().unwrap();
                assert_eq!(*who, Authenticated::new(pair.split(':').next().unwrap(), Scheme::Basic));
                assert_eq!(response.headers()["who"], *who.user);
                assert_eq!(response.headers()["has-authorization"], "false");
            }
        }
    }
    for line in ["Bearer x", "Basic", "Basic !", "basic", "Basic \u{ff}\u{ff}", ""] {
        let request = Request::get("/").header(AUTHORIZATION, line).body(()).unwrap();
        assert_eq!(send(&layer, request).await.status(), 401, "{line}");
    }
    let mut two = basic("alice:pass:word");
    two.headers_mut().append(AUTHORIZATION, HeaderValue::from_static("Basic x"));
    assert_eq!(send(&layer, two).await.status(), 401);
    assert_eq!(send(&layer, Request::get("/").body(()).unwrap()).await.status(), 401);
    let mut unpadded = basic("alice:pass:word");
    let line =
        unpadded.headers()[AUTHORIZATION].to_str().unwrap().trim_end_matches('=').replace("Basic", "bAsIc");
    unpadded.headers_mut().insert(AUTHORIZATION, line.parse().unwrap());
    assert_eq!(send(&layer, unpadded).await.status(), 200);
}

#[tokio::test]
async fn the_name_goes_on_and_no_client_can_say_it() {
    let field = HeaderName::from_static("x-user");
    let options = BasicAuthOptions::default().with_user_field(Some(field)).with_strip(false);
    let layer = BasicAuthLayer::new(&options, UserStore::new(users(&[("alice", "a")])));
    for _ in 0..2 {
        let mut request = basic("alice:a");
        for name in ["x-user", "X_User", "x-other"] {
            request
                .headers_mut()
                .append(HeaderName::try_from(name).unwrap(), HeaderValue::from_static("root"));
        }
        let response = send(&layer, request).await;
        let got = |name: &str| response.headers().get_all(name).iter().collect::<Vec<_>>();
        assert_eq!(got("got-x-user"), ["alice"]);
        assert!(got("got-x_user").is_empty());
        assert_eq!(got("got-x-other"), ["root"]);
        assert_eq!(got("has-authorization"), ["true"]);
    }
}

#[tokio::test]
async fn a_password_that_was_changed_is_not_remembered() {
    let store = UserStore::new(users(&[("alice", "old")]));
    let layer = BasicAuthLayer::new(&BasicAuthOptions::default(), store.clone());
    assert_eq!(send(&layer, basic("alice:old")).await.status(), 200);
    store.replace(users(&[("alice", "new")]));
    assert_eq!(send(&layer, basic("alice:old")).await.status(), 401);
    assert_eq!(send(&layer, basic("alice:new")).await.status(), 200);
    store.replace(Users::default());
    assert_eq!(send(&layer, basic("alice:new")).await.status(), 401);
}

fn checker(options: &BasicAuthOptions) -> Arc<Checker> {
    Arc::new(Checker::new(UserStore::new(users(&[("alice", "a"), ("bob", "b")])), options))
}

async fn check(checker: &Arc<Checker>, name: &str, password: &str) -> Verdict {
    match checker.recall(name, password.as_bytes()) {
        Ok(user) => Verdict::Right(user),
        Err(credentials) => Arc::clone(checker).check(credentials).await,
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_remembered_is_bounded_in_number_and_time() {
    let options = BasicAuthOptions::default().with_remember(1).with_remember_for(Duration::from_secs(10));
    let checker = checker(&options);
    let recalls = |name: &str, password: &str| checker.recall(name, password.as_bytes()).is_ok();
    assert_eq!(check(&checker, "alice", "a").await, Verdict::Right("alice".into()));
    assert!(recalls("alice", "a") && !recalls("alice", "b") && !recalls("bob", "a"));
    for _ in 0..2 {
        tokio::time::advance(Duration::from_secs(9)).await;
        assert!(recalls("alice", "a"));
    }
    tokio::time::advance(Duration::from_secs(10)).await;
    assert!(!recalls("alice", "a"));
    check(&checker, "alice", "a").await;
    check(&checker, "bob", "b").await;
    assert!(!recalls("alice", "a") && recalls("bob", "b"));
    assert_eq!(check(&checker, "alice", "wrong").await, Verdict::Wrong);
    assert!(!recalls("alice", "wrong"));
    for options in [options.clone().with_remember(0), options.with_remember_for(Duration::ZERO)] {
        let checker = self::checker(&options);
        check(&checker, "alice", "a").await;
        assert!(checker.recall("alice", b"a").is_err());
    }
}

#[tokio::test]
async fn no_more_wait_than_may_and_who_leaves_makes_room() {
    let options = BasicAuthOptions::default().with_max_hashing(1).with_max_waiting(1).with_remember(0);
    let checker = checker(&options);
    let hold = checker.hold_all().await;
    let ask = || Box::pin(check(&checker, "alice", "a"));
    let mut first = ask();
    assert!(futures_poll(&mut first).is_pending());
    let mut second = ask();
    assert_eq!(futures_poll(&mut second), Poll::Ready(Verdict::Busy));
    // the one that waits gives up, and another may
    drop(first);
    let mut third = ask();
    assert!(futures_poll(&mut third).is_pending());
    drop(hold);
    assert_eq!(third.await, Verdict::Right("alice".into()));
}

#[tokio::test]
async fn who_finds_no_place_is_told_to_come_again() {
    let options = BasicAuthOptions::default().with_max_hashing(1).with_max_waiting(0);
    let layer = BasicAuthLayer::new(&options, UserStore::new(users(&[("alice", "a")])));
    let hold = layer.shared.checker.hold_all().await;
    // right or wrong, since nobody has looked
    for pair in ["alice:a", "alice:b"] {
        let busy = send(&layer, basic(pair)).await;
        assert_eq!((busy.status().as_u16(), &busy.headers()["retry-after"]), (503, &HeaderValue::from(1)));
        assert!(!busy.headers().contains_key(WWW_AUTHENTICATE));
    }
    drop(hold);
    assert_eq!(send(&layer, basic("alice:a")).await.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_wrong_passwords_keeps_nobody_out_who_is_active() {
    let options = BasicAuthOptions::default().with_max_hashing(1).with_max_waiting(0);
    let checker = checker(&options);
    assert_eq!(check(&checker, "alice", "a").await, Verdict::Right("alice".into()));
    let _flood = checker.hold_all().await;
    for minutes in [4, 2, 4] {
        tokio::time::advance(Duration::from_secs(minutes * 60)).await;
        assert_eq!(check(&checker, "alice", "a").await, Verdict::Right("alice".into()));
        assert_eq!(check(&checker, "bob", "b").await, Verdict::Busy);
    }
}

fn futures_poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(std::task::Waker::noop()))
}

#[tokio::test]
async fn the_service_that_was_ready_gets_the_request() {
    let (inner, calls) = NotReady::<Body>::new();
    let layer = BasicAuthLayer::new(&BasicAuthOptions::default(), UserStore::new(users(&[("a", "a")])));
    let mut service = layer.layer(inner);
    for calls_now in 1..=2 {
        let response = service.ready().await.unwrap().call(basic("a:a")).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(calls.load(Ordering::Relaxed), calls_now);
    }
}

#[test]
fn lists_of_users() {
    let hash = cheap("a");
    let ok = format!("# users\n\nalice:{hash}\r\n  bob:{hash}\n");
    let users = Users::parse(&ok).unwrap();
    assert_eq!((users.len(), users.is_empty()), (2, false));
    assert!(!format!("{users:?}").contains("argon2"));
    let none = "it has no argon2 hash in the PHC form, as `portcullis hash-password` makes it";
    let costly = "the hash asks for more than 256 MiB, 32 passes or 16 lanes";
    for (text, line, why) in [
        ("alice".to_owned(), 1, "it is not `name:hash`"),
        (format!("a:{hash}\na:{hash}"), 2, "the user is named twice"),
        (format!(":{hash}"), 1, "the name is empty or has control characters"),
        ("a:secret".to_owned(), 1, none),
        ("a:$2y$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy".to_owned(), 1, none),
        ("a:$argon2id$v=19$m=8,t=1,p=1".to_owned(), 1, none),
        (format!("a:{}", hash.replace("m=8", "m=1048576")), 1, costly),
        (format!("a:{}", hash.replace("t=1", "t=100")), 1, costly),
    ] {
        assert_eq!(Users::parse(&text).unwrap_err().to_string(), format!("line {line}: {why}"), "{text}");
    }
}

#[test]
fn hashes_are_those_that_are_read() {
    let hash = hash_password(b"correct horse").unwrap();
    assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
    assert_ne!(hash, hash_password(b"correct horse").unwrap());
    let users = Users::parse(&format!("a:{hash}")).unwrap();
    let (known, _) = users.hash_of("a").unwrap();
    assert!(users::is_right(b"correct horse", &known) && !users::is_right(b"correct horsf", &known));
    // a name that is not known is computed for like the first
    let (decoy, is_user) = users.hash_of("b").unwrap();
    assert!(Arc::ptr_eq(&known, &decoy) && !is_user);
}
