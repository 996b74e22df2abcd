//! Routes: what they match, what they make of a request, and where they send it.

use std::time::Duration;

use http::{Method, Response};
use http_body_util::BodyExt;
use portcullis_testkit::origin::{Answer, RawOrigin};

use crate::support::{
    Dir, SOON,
    client::{Client, Protocol, full},
    edge::{Edge, run_to_end},
    origin::Origin,
    raw, run, within,
};

/// Plain HTTP, the clusters and these routes.
fn with(clusters: &[(&str, &Origin)], routes: &str) -> String {
    let listener = "[[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"http\"\n";
    let clusters = clusters.iter().map(|(name, origin)| {
        format!("[[cluster]]\nname = \"{name}\"\nendpoints = [\"{}\"]\n", origin.addr())
    });
    format!("{listener}{}{routes}", clusters.collect::<String>())
}

/// Every kind of match.
const KINDS: &str = r#"
[[route]]
path = "/files/"
priority = 1
respond = "below"
[[route]]
path = "/files"
respond = "prefix"
[[route]]
exact = "/files/exact"
respond = "exact"
[[route]]
segments = "/files/{name}/raw"
respond = "segments"
[[route]]
regex = "/files/.*\\.txt"
respond = "regex"
[[route]]
path = "/files"
headers = { "x-v" = "2" }
respond = "field"
[[route]]
path = "/files"
query = { "v" = { regex = "[0-9]+" } }
respond = "query"
[[route]]
host = "only.test"
path = "/in"
methods = ["POST", "DELETE"]
respond = "posted"
content_type = "text/x-posted"
[[route]]
host = "client.test"
clients = ["127.0.0.0/8"]
respond = "near"
[[route]]
host = "client.test"
clients = ["192.0.2.0/24"]
respond = "told"
[[route]]
host = "h2.test"
protocols = ["http2"]
respond = "two"
[forwarded]
trusted = ["127.0.0.2"]
"#;

#[test]
fn the_most_specific_route_answers_and_a_wrong_method_is_405() {
    run(async {
        let edge = Edge::run(&with(&[], KINDS)).await;
        let ask = async |host: &str, path: &str, more: &str| {
            let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n");
            let answered = raw::send(edge.http(), head).await;
            let body = answered.text.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned();
            (answered.statuses()[0], body)
        };
        for (host, path, more, answer) in [
            ("a.test", "/files", "", "prefix"),
            ("a.test", "/files/", "", "below"),
            ("a.test", "/files/exact", "", "exact"),
            ("A.TEST:80", "/files/%65xact", "", "exact"),
            ("a.test", "/files/a/raw", "", "segments"),
            ("a.test", "/files/a/b.txt", "", "regex"),
            ("a.test", "/files", "X-V: 2\r\n", "field"),
            ("a.test", "/files?v=12", "", "query"),
            ("a.test", "/files?v=x", "", "prefix"),
            ("client.test", "/", "", "near"),
        ] {
            assert_eq!(ask(host, path, more).await, (200, answer.to_owned()), "{host} {path} {more}");
        }
        assert_eq!(ask("a.test", "/other", "").await.0, 404);
        assert_eq!(ask("h2.test", "/", "").await.0, 404, "over HTTP/1.1");
        let reply = Client::plain_h2(edge.http(), "h2.test").await.get("/").await;
        assert_eq!(reply.body, "two");
        let refused = raw::send(edge.http(), "GET /in HTTP/1.1\r\nHost: only.test\r\n\r\n").await;
        assert_eq!(refused.statuses(), [405]);
        assert!(refused.text.contains("\r\nallow: POST, DELETE\r\n"), "{refused:?}");
        let mut client = Client::plain(edge.http(), "only.test").await;
        let request = client.request(Method::POST, "/in").body(full("")).unwrap();
        let response = client.send(request).await.unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["content-type"]),
            (200, &"text/x-posted".parse().unwrap())
        );
    });
}

#[test]
fn targets_and_fields_are_rewritten() {
    run(async {
        let origin = Origin::start(|_| async {
            let mut response = Response::new(full("ok"));
            response.headers_mut().insert("server", "secret/1.0".parse().unwrap());
            response.headers_mut().insert("x-old", "1".parse().unwrap());
            response
        })
        .await;
        let routes = r#"
[[route]]
cluster = "app"
[[route]]
path = "/api"
cluster = "app"
strip_prefix = "/api"
upstream_host = "endpoint"
set_request_headers = { "x-by" = "edge", "accept" = "text/plain" }
remove_request_headers = ["cookie"]
set_response_headers = { "x-old" = "2" }
add_response_headers = { "vary" = "x-by" }
remove_response_headers = ["server"]
[[route]]
path = "/v1"
cluster = "app"
replace_prefix = "/v2"
upstream_host = "inner.test"
[[route]]
segments = "/users/{id}/{*rest}"
cluster = "app"
rewrite = "/u/{rest}?id={id}"
[[route]]
path = "/old"
redirect = "https://new.test/now/{rest}"
status = 301
keep_query = true
"#;
        let edge = Edge::run(&with(&[("app", &origin)], routes)).await;
        let mut client = Client::plain(edge.http(), "a.test").await;
        for (path, line) in [
            ("/x/%7e?q=%20", "GET /x/%7e?q=%20"),
            ("/api?q", "GET /?q"),
            ("/api/a%2Fb/%7e?q", "GET /a%2Fb/~?q"),
            ("/v1/a", "GET /v2/a"),
            ("/users/7/a/b", "GET /u/a/b?id=7"),
        ] {
            assert_eq!(client.get(path).await.status, 200, "{path}");
            assert_eq!(origin.last().0, line, "{path}");
        }
        let request = client.request(Method::GET, "/api/x").header("cookie", "c=1").header("accept", "*/*");
        let response = client.send(request.body(full("")).unwrap()).await.unwrap();
        let (_, seen) = origin.last();
        assert_eq!(
            (&seen["x-by"], &seen["accept"]),
            (&"edge".parse().unwrap(), &"text/plain".parse().unwrap())
        );
        assert!(!seen.contains_key("cookie"));
        assert_eq!(seen["host"], origin.addr().to_string().as_str());
        assert_eq!(seen["x-forwarded-host"], "a.test");
        assert!(!response.headers().contains_key("server"));
        assert_eq!(
            (&response.headers()["x-old"], &response.headers()["vary"]),
            (&"2".parse().unwrap(), &"x-by".parse().unwrap())
        );
        drop(response);
        client = Client::plain(edge.http(), "a.test").await;
        client.get("/v1").await;
        assert_eq!(origin.last().1["host"], "inner.test");
        let before = origin.requests();
        let refused = raw::send(edge.http(), "GET /api/../x HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        assert_eq!(refused.statuses(), [400]);
        let redirect = client.get("/old/a/b?c=d").await;
        assert_eq!(
            (redirect.status.as_u16(), redirect.field("location")),
            (301, "https://new.test/now/a/b?c=d")
        );
        assert_eq!(origin.requests(), before);
    });
}

#[test]
fn paths_have_one_form_before_anything_decides_by_them() {
    run(async {
        let origin = Origin::text("ok").await;
        let routes = "[[route]]\ncluster = \"app\"\n[[route]]\npath = \"/admin\"\nrespond = \"closed\"\nstatus = 403\n\
                      [paths]\nnormalise = true\nmerge_slashes = true\nencoded_slash = \"reject\"\n[filter]\ndeny = [\"/.git\"]\n";
        let edge = Edge::run(&with(&[("app", &origin)], routes)).await;
        for (path, status, line) in [
            ("/a/../admin/x", 403, None),
            ("//admin", 403, None),
            ("/x/%2e%2e/%61dmin", 403, None),
            ("/admin%2fx", 400, None),
            ("/x/..%5cadmin", 400, None),
            ("/x/../.git/config", 404, None),
            ("/a//b/./%7e/%c3%a9?q=//%7e", 200, Some("GET /a/b/~/%C3%A9?q=//%7e")),
        ] {
            let before = origin.requests();
            let answered = raw::send(
                edge.http(),
                format!("GET {path} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n"),
            )
            .await;
            assert_eq!(answered.statuses(), [status], "{path}");
            match line {
                Some(line) => assert_eq!(origin.last().0, line),
                None => assert_eq!(origin.requests(), before, "{path} reached the cluster"),
            }
        }
    });
}

#[test]
fn shares_are_exact_and_hold_on_every_protocol() {
    run(async {
        let (blue, green) = (Origin::text("blue").await, Origin::text("green").await);
        let routes = "[[route]]\nclusters = [{ name = \"blue\", weight = 9 }, { name = \"green\" }]\n";
        let text = with(&[("blue", &blue), ("green", &green)], routes).replace("\"http\"", "\"https\"");
        let edge =
            Edge::run(&format!("threads = 1\n{text}[[certificate]]\nself_signed = [\"localhost\"]\n")).await;
        for (round, protocol) in Protocol::ALL.into_iter().enumerate() {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            for _ in 0..20 {
                assert_eq!(client.get("/").await.status, 200);
            }
            let rounds = round + 1;
            assert_eq!((blue.requests(), green.requests()), (18 * rounds, 2 * rounds), "{protocol:?}");
        }
    });
}

#[test]
fn a_mirror_gets_copies_and_never_shows() {
    run(async {
        let echo = |request: http::Request<hyper::body::Incoming>| async move {
            Response::new(full(request.into_body().collect().await.unwrap().to_bytes()))
        };
        let origin = Origin::start(echo).await;
        // it takes the copy and never answers
        let (bodies, mut copied) = tokio::sync::mpsc::unbounded_channel();
        let shadow = Origin::start(move |request| {
            let bodies = bodies.clone();
            async move {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                bodies.send(body).unwrap();
                std::future::pending().await
            }
        })
        .await;
        let routes = "[admin]\naddress = \"127.0.0.1:0\"\n\
                      [[route]]\ncluster = \"app\"\nset_request_headers = { \"x-set\" = \"1\" }\n\
                      mirror = { cluster = \"shadow\", max_body = \"1KiB\", max_in_flight = 2 }\n";
        let edge = Edge::run(&with(&[("app", &origin), ("shadow", &shadow)], routes)).await;
        let mut client = Client::plain(edge.http(), "a.test").await;
        let sizes = [0, 10, 1025, 10];
        for size in sizes {
            let body = "x".repeat(size);
            let request = client.request(Method::POST, &format!("/{size}")).body(full(body.clone())).unwrap();
            let response = within(SOON, "an answer", client.send(request)).await.unwrap();
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), body);
        }
        assert_eq!(origin.requests(), 4, "each once");
        let mut lengths = Vec::new();
        for _ in 0..2 {
            lengths.push(within(SOON, "a copy", copied.recv()).await.unwrap().len());
        }
        lengths.sort_unstable();
        assert_eq!(lengths, [0, 10], "the long one is not copied, nor the one past the bound");
        let (line, headers) = shadow.last();
        assert!(line.starts_with("POST /"), "{line}");
        assert_eq!(
            (&headers["host"], &headers["x-set"]),
            (&"a.test".parse().unwrap(), &"1".parse().unwrap())
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(shadow.requests(), 2);
        let metrics = Client::plain(edge.admin(), "localhost").await.get("/metrics").await.body;
        for count in ["too_long\"} 1", "over_bound\"} 1", "answered\"} 0"] {
            let line = format!("portcullis_mirrored_requests_total{{result=\"{count}");
            assert!(metrics.contains(&line), "{line} in\n{metrics}");
        }
        // dead, and nobody notices
        drop(shadow);
        let request = client.request(Method::GET, "/after").body(full("")).unwrap();
        assert_eq!(within(SOON, "an answer", client.send(request)).await.unwrap().status(), 200);
    });
}

#[test]
fn check_explains_a_request() {
    let dir = Dir::new();
    let file = dir.write(
        "edge.toml",
        "[[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"http\"\n\
         [[route]]\nhost = \"a.test\"\nexact = \"/x\"\nmethods = [\"PUT\"]\nrespond = \"put\"\n\
         [[route]]\nhost = \"*.test\"\npath = \"/\"\nscheme = \"https\"\nrespond = \"https\"\n",
    );
    let explain = |request: &str| {
        let args = ["check", "--explain", request, "--config"].map(std::ffi::OsString::from);
        let (status, stdout, stderr) = run_to_end(args.into_iter().chain([file.clone().into_os_string()]));
        assert!(status.success(), "{stderr}");
        stdout
    };
    let told = explain("GET https://A.test/x");
    assert!(
        told.contains("not route 1 (host a.test, exact /x, method PUT): the method is another"),
        "{told}"
    );
    assert!(told.contains("\nroute 2 (host *.test, prefix /, scheme https)"), "{told}");
    assert!(explain("GET http://a.test/x").contains("405, Allow: PUT\n"));
    assert!(explain("GET http://b.test/x").contains("no route: 404\n"));
}

#[test]
fn explain_tells_the_way_of_a_request() {
    let dir = Dir::new();
    let file = dir.write(
        "edge.toml",
        "[security_headers]\n[rate_limit]\nrequests = 5\n[cache]\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"http\"\n\
         [[route]]\npath = \"/own\"\nredirect = \"https://b.test\"\nsecurity_headers = \"off\"\ncache = \"off\"\n\
         [route.rate_limit]\nrequests = 7\nper = \"1m\"\n[route.filter]\ndeny = [\"/own/x\"]\n\
         [[route]]\nrespond = \"all\"\n",
    );
    let explain = |uri: &str| {
        let args = ["explain", uri, "--config"].map(std::ffi::OsString::from);
        let (status, stdout, stderr) = run_to_end(args.into_iter().chain([file.clone().into_os_string()]));
        assert!(status.success(), "{stderr}");
        stdout
    };
    let told = explain("http://a.test/own/y");
    let chain = "  security fields (not here: the route says \"off\")\n  rate limit (the route's): 429 past 7 in 60s of a client\n  \
                 filter (the route's): 404 for denied paths\n  cache (not here: the route says \"off\")\n\
                 then: redirected (308) to https://b.test/\n";
    assert!(told.ends_with(chain), "{told}");
    let told = explain("http://a.test/");
    let chain =
        "  security fields\n  rate limit: 429 past 5 in 1s of a client\n  cache\nthen: answered 200\n";
    assert!(told.ends_with(chain), "{told}");
    // what no listener has is not told
    for absent in ["Alt-Svc", "misdirected", "early data"] {
        assert!(!told.contains(absent), "{absent}: {told}");
    }
    let health = told.find("  health: answers /health\n").unwrap();
    assert!(health < told.find("  security fields\n").unwrap(), "{told}");
    dir.write(
        "edge.toml",
        "[rate_limit]\nrequests = 5\ndry_run = true\n[filter]\ndefault = \"deny\"\n[cache]\n\
         [basic_auth]\nusers = \"u\"\nuser_header = \"x-user\"\n[[certificate]]\nself_signed = [\"a.test\"]\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"https\"\n\
         [[route]]\nrespond = \"all\"\nrate_limit = \"off\"\nset_response_headers = { x-a = \"1\" }\n",
    );
    let told = explain("https://a.test/");
    let chain = "  identity fields: what clients send as x-user is taken away\n\
                 \x20 response fields (the route's): changed in whatever answer\n\
                 \x20 rate limit (not here: the route says \"off\")\n  filter: 403 for the rest\n\
                 \x20 passwords: 401 for who is not in ";
    assert!(told.contains(chain), "{told}");
    // what is redirected goes past the route, its chain, who may pass and the cache
    let told = explain("http://a.test/");
    let chain = "  identity fields: what clients send as x-user is taken away\n\
                 \x20 rate limit: a dry run counts past 5 in 1s of a client\n  filter: 403 for the rest\n\
                 then: redirected to HTTPS\n";
    assert!(told.ends_with(chain), "{told}");
    assert!(told.contains("  Alt-Svc: ") && !told.contains("misdirected") && !told.contains("early data"));
    // nothing is passed where nobody is let in
    let listener = "[[certificate]]\nself_signed = [\"a.test\"]\n[[route]]\nrespond = \"all\"\n\
                    [[access_log]]\nsample = 10\n[[access_log]]\noutput = \"./log\"\n\
                    [[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"https\"\nplain_http = \"refuse\"\n\
                    http3 = false\n[listener.tls]\nresumption = \"zero-rtt\"\n";
    dir.write("edge.toml", listener);
    let told = explain("http://a.test/");
    assert!(
        told.ends_with("passes, outermost first:\nthen: closed: no listener takes plain HTTP\n"),
        "{told}"
    );
    let told = explain("https://a.test/");
    assert!(told.contains("  early data: ") && !told.contains("Alt-Svc"), "{told}");
    assert!(told.contains("  access log: one of 10 requests, every request\n"), "{told}");
}

#[test]
fn a_cache_for_all_keeps_nothing_that_is_for_some() {
    run(async {
        let body = |text: &str| {
            format!(
                "HTTP/1.1 200 OK\r\ncache-control: public, max-age=60\r\ncontent-length: {}\r\n\r\n{text}",
                text.len()
            )
        };
        let secret = RawOrigin::script(vec![Answer::raw(body("for some"))]).await;
        let open = RawOrigin::script(vec![Answer::raw(body("for all"))]).await;
        let edge = Edge::run(&format!(
            "[cache]\n[[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"http\"\n\
             [[route]]\npath = \"/x\"\nheaders = {{ x-key = \"1\" }}\ncluster = \"secret\"\n[[route]]\ncluster = \"open\"\n\
             [[cluster]]\nname = \"secret\"\nendpoints = [\"{}\"]\n[[cluster]]\nname = \"open\"\nendpoints = [\"{}\"]\n",
            secret.addr(),
            open.addr()
        ))
        .await;
        for (key, wanted) in
            [("x-key: 1\r\n", "for some"), ("", "for all"), ("x-key: 1\r\n", "for some"), ("", "for all")]
        {
            let request = format!("GET /x HTTP/1.1\r\nHost: a.test\r\n{key}Connection: close\r\n\r\n");
            let answer = raw::send(edge.http(), request).await;
            assert!(answer.text.ends_with(wanted), "{}", answer.text);
        }
        // the one is asked every time, the other once
        assert_eq!((secret.requests(), open.requests()), (2, 1));
    });
}
