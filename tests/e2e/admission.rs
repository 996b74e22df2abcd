//! Who may pass: rules with files, passwords, tokens, a service that is asked; CORS and CSRF.

use std::{
    fs,
    io::Write as _,
    process::{Child, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use http::{Method, Response, header};
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use portcullis_testkit::country_database;
use serde_json::json;

use crate::{
    config::{plain, secure},
    support::{
        Dir, SOON,
        client::{Client, Protocol, Reply, empty, full},
        edge::{Edge, command, to_end},
        origin::Origin,
        raw, run, within,
    },
};

/// Standard base64 with padding.
fn base64(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    text.as_bytes()
        .chunks(3)
        .flat_map(|chunk| {
            let bits = chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte))
                << (8 * (3 - chunk.len()));
            (0..4).map(move |at| match at <= chunk.len() {
                true => char::from(DIGITS[(bits >> (18 - 6 * at) & 63) as usize]),
                false => '=',
            })
        })
        .collect()
}

/// What `portcullis hash-password` makes of a password.
fn hashed(password: &str) -> String {
    let mut child: Child =
        command(["hash-password"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    writeln!(child.stdin.take().unwrap(), "{password}").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

async fn with(client: &mut Client, path: &str, fields: &[(&str, &str)]) -> Reply {
    let mut request = client.request(Method::GET, path);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    client.fetch(request.body(empty()).unwrap()).await
}

#[test]
fn passwords_by_a_file_that_changes() {
    run(async {
        let origin = Origin::text("ok").await;
        let dir = Dir::new();
        dir.write("users.txt", &format!("alice:{}\n", hashed("open sesame")));
        let config = format!(
            "certificate_poll = \"200ms\"\n[basic_auth]\nusers = \"users.txt\"\nuser_header = \"x-user\"\n\
             [[route]]\npath = \"/free\"\ncluster = \"app\"\nbasic_auth = \"off\"\n{}",
            secure(origin.addr())
        );
        let edge = Edge::run_in(dir, &config).await;
        let right = format!("Basic {}", base64("alice:open sesame"));
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            let reply = client.get("/").await;
            assert_eq!(reply.status, 401, "{protocol:?}");
            assert_eq!(reply.field("www-authenticate"), "Basic realm=\"restricted\", charset=\"UTF-8\"");
            let wrong = format!("Basic {}", base64("alice:open"));
            assert_eq!(with(&mut client, "/", &[("authorization", &wrong)]).await.status, 401);
            for _ in 0..2 {
                let fields = [("authorization", &*right), ("x-user", "root"), ("x_user", "root")];
                assert_eq!(with(&mut client, "/", &fields).await.status, 200, "{protocol:?}");
                let (_, fields) = origin.last();
                assert_eq!(fields.get_all("x-user").iter().collect::<Vec<_>>(), ["alice"]);
                assert!(!fields.contains_key("authorization") && !fields.contains_key("x_user"));
            }
            // nobody can say who they are where nobody asks, either
            assert_eq!(
                with(&mut client, "/free", &[("X-User", "root"), ("x_user", "root")]).await.status,
                200
            );
            let (_, fields) = origin.last();
            assert!(!fields.contains_key("x-user") && !fields.contains_key("x_user"));
        }
        let before = origin.requests();
        // one that can't be used changes nothing
        edge.dir().write("users.txt", "alice:secret\n");
        edge.stderr.find("a file can't be used").await;
        let mut client = Client::connect(Protocol::H2, edge.https(), "localhost").await;
        assert_eq!(with(&mut client, "/", &[("authorization", &right)]).await.status, 200);
        edge.dir().write("users.txt", &format!("alice:{}\n", hashed("another")));
        edge.stderr.find("a file was read again").await;
        assert_eq!(with(&mut client, "/", &[("authorization", &right)]).await.status, 401);
        assert_eq!(origin.requests(), before + 1);
    });
}

/// There is one worker, and it goes on: while a costly password is checked, and while a reload waits for a file that does not come.
#[cfg(unix)]
#[test]
fn what_blocks_holds_up_nobody() {
    run(async {
        let origin = Origin::text("ok").await;
        let dir = Dir::new();
        let costly = hashed("open sesame").replace("m=19456,t=2,", "m=19456,t=32,");
        dir.write("users.txt", &format!("alice:{costly}\n"));
        let pipe = dir.path().join("blocked.txt");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs").success());
        let begin = "threads = 1\n[basic_auth]\nusers = \"users.txt\"\n";
        let rest = format!(
            "[[route]]\npath = \"/free\"\ncluster = \"app\"\nbasic_auth = \"off\"\n{}",
            secure(origin.addr())
        );
        let edge = Edge::run_in(dir, &format!("{begin}{rest}")).await;
        let mut slow = Client::connect(Protocol::H1, edge.https(), "localhost").await;
        let mut quick = Client::connect(Protocol::H2, edge.https(), "localhost").await;
        let wrong = format!("Basic {}", base64("alice:open"));
        let asked =
            tokio::spawn(async move { with(&mut slow, "/", &[("authorization", &wrong)]).await.status });
        let mut meanwhile = 0;
        while !asked.is_finished() {
            assert_eq!(quick.get("/free").await.status, 200);
            meanwhile += 1;
        }
        assert_eq!(asked.await.unwrap(), 401);
        assert!(meanwhile > 10, "{meanwhile} others were answered while one password was checked");
        let filter = "[[filter.rule]]\naction = \"deny\"\nclient_files = [\"blocked.txt\"]\n";
        edge.dir().write("edge.toml", &format!("{begin}{filter}{rest}"));
        edge.signal("HUP");
        // opened by whoever writes as soon as somebody reads, and not before
        let writer = tokio::task::spawn_blocking(move || std::fs::OpenOptions::new().write(true).open(pipe));
        let mut writer = within(SOON, "the edge reads the pipe", writer).await.unwrap().unwrap();
        for _ in 0..10 {
            assert_eq!(within(SOON, "an answer", quick.get("/free")).await.status, 200);
        }
        assert!(!edge.stderr.text().contains("reloaded"), "it has nothing to load yet");
        writeln!(writer, "127.0.0.0/8").unwrap();
        drop(writer);
        edge.stderr.find("reloaded").await;
        assert_eq!(quick.get("/free").await.status, 403);
    });
}

#[test]
fn nobody_is_asked_for_a_password_in_the_clear() {
    run(async {
        let origin = Origin::text("ok").await;
        let dir = Dir::new();
        dir.write("users.txt", &format!("alice:{}\n", hashed("a")));
        let config = format!("[basic_auth]\nusers = \"users.txt\"\n{}", secure(origin.addr()));
        let edge = Edge::run_in(dir, &config).await;
        // plain HTTP on the TLS port
        let mut client = Client::plain(edge.https(), "localhost").await;
        let reply = client.get("/x").await;
        assert_eq!((reply.status.as_u16(), reply.field("www-authenticate")), (308, ""));
        assert_eq!(origin.requests(), 0);
    });
}

#[test]
fn hash_password_says_what_it_wants() {
    let (status, out, err) = to_end({
        let mut command = command(["hash-password"]);
        command.stdin(Stdio::null());
        command
    });
    assert!(!status.success() && out.is_empty());
    assert!(err.contains("there is no password in the first line of standard input"), "{err}");
}

/// A key for ES256: what signs, and its public part.
fn key(id: &str) -> (EncodingKey, serde_json::Value) {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let signing = EncodingKey::from_ec_der(&pair.serialize_der());
    let mut jwk = Jwk::from_encoding_key(&signing, Algorithm::ES256).unwrap();
    jwk.common.key_id = Some(id.to_owned());
    (signing, serde_json::to_value(jwk).unwrap())
}

fn token(key: &EncodingKey, id: &str) -> String {
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some(id.to_owned());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let claims = json!({ "sub": "carol", "aud": "here", "exp": now + 600 });
    jsonwebtoken::encode(&header, &claims, key).unwrap()
}

#[test]
fn tokens_by_a_set_of_keys_that_a_cluster_has_and_the_cache_beside() {
    run(async {
        let origin = Origin::start(|request| async move {
            let mut response = Response::new(full("for carol"));
            let shared = request.uri().path() == "/shared";
            let control = if shared { "public, max-age=600" } else { "max-age=600" };
            response.headers_mut().insert("cache-control", control.parse().unwrap());
            response
        })
        .await;
        let (signing, public) = key("one");
        let (strange, _) = key("one");
        let issuer = Origin::start(move |request: http::Request<_>| {
            let set = json!({ "keys": [public] }).to_string();
            let host = request.headers()["host"].to_str().unwrap().to_owned();
            // it goes by its host
            let status = if host == "issuer.test" { 200 } else { 421 };
            async move { Response::builder().status(status).body(full(set)).unwrap() }
        })
        .await;
        let config = format!(
            "[cache]\n[jwt]\nalgorithms = [\"ES256\"]\nkey_set_cluster = \"issuer\"\nkey_set_path = \"/keys\"\n\
             key_set_host = \"issuer.test\"\naudiences = [\"here\"]\ncookie = \"session\"\nclaims = {{ sub = \"x-user\" }}\n{}\
             [[cluster]]\nname = \"issuer\"\nendpoints = [\"{}\"]\n",
            secure(origin.addr()),
            issuer.addr()
        );
        let edge = Edge::run(&config).await;
        issuer.wait_for_requests(1).await;
        let mut client = Client::connect(Protocol::H1, edge.https(), "localhost").await;
        let cookie = format!("session={}", token(&signing, "one"));
        // the keys are on their way
        while with(&mut client, "/first", &[("cookie", &cookie)]).await.status == 503 {}
        let before = origin.requests();
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            let reply = client.get("/").await;
            assert_eq!(reply.status, 401, "{protocol:?}");
            assert_eq!(reply.field("www-authenticate"), "Bearer realm=\"restricted\"");
            let forged = format!("session={}", token(&strange, "one"));
            assert_eq!(with(&mut client, "/", &[("cookie", &forged)]).await.status, 401);
            assert_eq!(with(&mut client, "/", &[("cookie", &cookie), ("x-user", "root")]).await.status, 200);
            assert_eq!(origin.last().1["x-user"], "carol");
        }
        // what was said to somebody who was let in is for nobody else, unless it says so itself
        assert_eq!(origin.requests(), before + 3);
        for _ in 0..2 {
            assert_eq!(with(&mut client, "/shared", &[("cookie", &cookie)]).await.status, 200);
        }
        assert_eq!(origin.requests(), before + 4);
        assert_eq!(client.get("/shared").await.status, 401, "what is stored is behind the guard");
    });
}

#[test]
fn another_service_says_who_may_pass() {
    run(async {
        let origin = Origin::text("ok").await;
        let auth = Origin::start(|request| async move {
            let uri = request.headers().get("x-original-uri").unwrap().to_str().unwrap().to_owned();
            let status = match &*uri {
                "/pass" => 204,
                "/forbidden" => 403,
                "/login" => 302,
                "/unwell" => 500,
                _ => 404,
            };
            let response = Response::builder().status(status).header("x-user", "dave");
            response.header("location", "/sign-in").header("set-cookie", "a=1").body(full("")).unwrap()
        })
        .await;
        let config = format!(
            "[forward_auth]\ncluster = \"auth\"\npath = \"/verify?x=1\"\nrequest_headers = [\"x-user\"]\n\
             response_headers = [\"set-cookie\"]\n{}[[cluster]]\nname = \"auth\"\nendpoints = [\"{}\"]\n",
            secure(origin.addr()),
            auth.addr()
        );
        let edge = Edge::run(&config).await;
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            let request =
                client.request(Method::POST, "/pass").header("X_User", "root").body(full("body")).unwrap();
            let reply = client.fetch(request).await;
            assert_eq!((reply.status.as_u16(), reply.field("set-cookie")), (200, "a=1"), "{protocol:?}");
            let (line, fields) = origin.last();
            assert_eq!((line.as_str(), &fields["x-user"]), ("POST /pass", &"dave".parse().unwrap()));
            assert!(!fields.contains_key("x_user"));
            let (line, fields) = auth.last();
            assert_eq!(line, "GET /verify?x=1");
            assert_eq!(fields["x-original-method"], "POST");
            assert_eq!(fields["x-forwarded-proto"], "https");
            assert!(!fields.contains_key("content-length") && !fields.contains_key("x_user"));
            for (path, status) in [("/forbidden", 403), ("/login", 302), ("/unwell", 503), ("/else", 500)] {
                let reply = client.get(path).await;
                assert_eq!(reply.status, status, "{protocol:?} {path}");
                assert_eq!(reply.field("location"), if status < 500 { "/sign-in" } else { "" });
            }
        }
        assert_eq!(origin.requests(), 3);
        drop(auth);
        let mut client = Client::connect(Protocol::H1, edge.https(), "localhost").await;
        assert_eq!(client.get("/pass").await.status, 503, "it fails closed");
        assert_eq!(origin.requests(), 3);
    });
}

#[test]
fn rules_by_files_that_change() {
    run(async {
        let origin = Origin::text("ok").await;
        let dir = Dir::new();
        dir.write("office.txt", "10.0.0.0/8\n127.0.0.0/8 # here\n");
        fs::write(dir.path().join("countries.mmdb"), country_database(&[("127.0.0.0/8", "CH")])).unwrap();
        let config = format!(
            "certificate_poll = \"200ms\"\n[filter]\ncountries = \"countries.mmdb\"\n\
             [[filter.rule]]\naction = \"allow\"\npaths = [\"/admin\"]\nclient_files = [\"office.txt\"]\n\
             [[filter.rule]]\naction = \"hide\"\npaths = [\"/admin\"]\n\
             [[filter.rule]]\naction = \"deny\"\nstatus = 451\npaths = [\"/abroad\"]\ncountries = [\"CH\"]\n\
             [[filter.rule]]\naction = \"close\"\nuser_agent = \"(?i)nikto\"\n{}",
            secure(origin.addr())
        );
        let edge = Edge::run_in(dir, &config).await;
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            assert_eq!(client.get("/admin").await.status, 200, "{protocol:?}");
            assert_eq!(client.get("/abroad/x").await.status, 451, "{protocol:?}");
            let reply = with(&mut client, "/", &[("user-agent", "Nikto/2")]).await;
            assert_eq!(reply.status, 403);
            assert_eq!(reply.field("connection"), if protocol == Protocol::H1 { "close" } else { "" });
        }
        edge.dir().write("office.txt", "10.0.0.0/8\n192.0.2.0/24\n");
        edge.stderr.find("a file was read again").await;
        let mut client = Client::connect(Protocol::H3, edge.https(), "localhost").await;
        for path in ["/admin", "/%61dmin", "/x/..%2fadmin", "/admin;x/y"] {
            assert_eq!(client.get(path).await.status, 404, "{path}");
        }
        assert_eq!(origin.requests(), Protocol::ALL.len());
    });
}

#[test]
fn a_connection_that_a_rule_closes_ends() {
    run(async {
        let origin = Origin::text("ok").await;
        let rules = "[filter]\n[[filter.rule]]\naction = \"close\"\nexact = [\"/trap\"]\n";
        let edge = Edge::run(&format!("{rules}{}", plain(origin.addr()))).await;
        let two = b"GET /trap HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n";
        let answer = raw::send(edge.http(), two).await;
        assert_eq!((answer.statuses(), answer.closed), (vec![403], true), "{}", answer.text);
        assert_eq!(origin.requests(), 0);
    });
}

#[test]
fn pages_of_other_origins() {
    run(async {
        let origin = Origin::text("ok").await;
        let layers = "[cors]\norigins = [\"https://app.test\"]\nmethods = [\"PUT\"]\ncredentials = true\n\
                      [csrf]\ntrusted = [\"https://app.test\"]\n[basic_auth]\nusers = \"users.txt\"\n\
                      [[route]]\npath = \"/open\"\ncluster = \"app\"\nbasic_auth = \"off\"\n";
        let dir = Dir::new();
        dir.write("users.txt", &format!("alice:{}\n", hashed("a")));
        let edge = Edge::run_in(dir, &format!("{layers}{}", secure(origin.addr()))).await;
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            let preflight = |origin: &str, client: &Client| {
                let request = client.request(Method::OPTIONS, "/").header("origin", origin);
                request.header(header::ACCESS_CONTROL_REQUEST_METHOD, "PUT").body(empty()).unwrap()
            };
            let request = preflight("https://app.test", &client);
            let reply = client.fetch(request).await;
            assert_eq!(reply.status, 200, "{protocol:?}: a preflight has no credentials");
            assert_eq!(reply.field("access-control-allow-origin"), "https://app.test");
            assert_eq!(reply.field("access-control-allow-credentials"), "true");
            assert_eq!(reply.field("access-control-allow-methods"), "PUT");
            let request = preflight("https://evil.test", &client);
            assert_eq!(client.fetch(request).await.field("access-control-allow-origin"), "");
            let reply = with(&mut client, "/", &[("origin", "https://app.test")]).await;
            assert_eq!(reply.status, 401);
            assert_eq!(reply.field("access-control-allow-origin"), "https://app.test");
            // no preflight: the service's to answer
            let request = client.request(Method::OPTIONS, "/open").body(empty()).unwrap();
            assert_eq!(client.fetch(request).await.body, "ok");
            for (site, from, status) in [
                ("cross-site", "https://evil.test", 403),
                ("cross-site", "https://app.test", 200),
                ("same-origin", "https://localhost", 200),
            ] {
                let request = client.request(Method::POST, "/open").header("sec-fetch-site", site);
                let reply = client.fetch(request.header("origin", from).body(full("x")).unwrap()).await;
                assert_eq!(reply.status, status, "{protocol:?} {site} {from}");
            }
        }
    });
}

/// RFC 9110 section 7.6.1: what a client lists in `Connection` is gone before the edge says who it is.
#[test]
fn nobody_can_list_away_what_the_edge_says() {
    run(async {
        let origin = Origin::text("ok").await;
        let dir = Dir::new();
        dir.write("users.txt", &format!("alice:{}\n", hashed("open sesame")));
        let config = format!(
            "[request_id]\n[basic_auth]\nusers = \"users.txt\"\nuser_header = \"x-user\"\n{}",
            plain(origin.addr())
        );
        let edge = Edge::run_in(dir, &config).await;
        let request = format!(
            "GET / HTTP/1.1\r\nHost: a.test\r\nAuthorization: Basic {}\r\nX-Lang: fr\r\n\
             Connection: X-User, X-Request-Id, x-lang, close\r\n\r\n",
            base64("alice:open sesame")
        );
        assert_eq!(raw::send(edge.http(), &request).await.statuses(), [200]);
        let (_, fields) = origin.last();
        assert_eq!(fields["x-user"], "alice");
        assert_eq!(fields["x-request-id"].len(), 32);
        assert!(!fields.contains_key("x-lang"));
    });
}

/// A preflight is the route's that it asks about, although that is not for OPTIONS.
#[test]
fn preflights_for_routes_by_method() {
    run(async {
        let origin = Origin::text("ok").await;
        let route = "[[route]]\npath = \"/api\"\nmethods = [\"PUT\"]\ncluster = \"app\"\n\
                     [route.cors]\norigins = [\"https://page.test\"]\nmethods = [\"PUT\"]\n";
        let edge = Edge::run(&format!("{route}{}", secure(origin.addr()))).await;
        let mut client = Client::connect(Protocol::H2, edge.https(), "localhost").await;
        for (method, allowed) in [("PUT", "https://page.test"), ("DELETE", "")] {
            let request = client
                .request(Method::OPTIONS, "/api")
                .header("origin", "https://page.test")
                .header("access-control-request-method", method)
                .body(empty())
                .unwrap();
            let reply = client.fetch(request).await;
            assert_eq!(reply.field("access-control-allow-origin"), allowed, "{method}");
        }
    });
}
