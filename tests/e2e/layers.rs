//! What stands in front of the routes: security fields, rate limit, filter, cache; and whom to believe.

use std::sync::atomic::{AtomicU32, Ordering};

use http::{Method, Response};

use crate::{
    config::{plain, secure},
    support::{
        client::{Client, Protocol, Reply, empty, full},
        edge::Edge,
        origin::Origin,
        raw, run,
    },
};

#[test]
fn security_fields_are_on_everything() {
    run(async {
        let origin = Origin::start(|request| async move {
            let mut response = Response::new(full("ok"));
            if request.uri().path() == "/own" {
                response.headers_mut().insert("x-frame-options", "ALLOWALL".parse().unwrap());
            }
            response
        })
        .await;
        let layers =
            "[security_headers]\nframe_options = \"deny\"\nhsts = \"180d\"\n[filter]\ndeny = [\"/.git\"]\n";
        let edge = Edge::run(&format!("{layers}{}", secure(origin.addr()))).await;
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            for path in ["/", "/.git/config"] {
                let reply = client.get(path).await;
                for (name, value) in [
                    ("x-content-type-options", "nosniff"),
                    ("x-frame-options", "DENY"),
                    ("referrer-policy", "strict-origin-when-cross-origin"),
                    ("strict-transport-security", "max-age=15552000"),
                ] {
                    assert_eq!(
                        reply.field(name).to_lowercase(),
                        value.to_lowercase(),
                        "{protocol:?} {path} {name}"
                    );
                }
            }
            assert_eq!(
                client.get("/own").await.field("x-frame-options"),
                "ALLOWALL",
                "the application knows better"
            );
        }
    });
}

#[test]
fn the_filter_answers_in_place_of_the_route() {
    run(async {
        let origin = Origin::text("ok").await;
        let edge = Edge::run(&format!("[filter]\ndeny = [\"/.git\"]\n{}", secure(origin.addr()))).await;
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            for path in ["/.git", "/.git/config", "/%2egit/config", "//.git/x", "/.git?x"] {
                assert_eq!(client.get(path).await.status, 404, "{protocol:?} {path}");
            }
            assert_eq!(client.get("/.gitignore").await.status, 200, "{protocol:?}");
        }
        assert_eq!(origin.requests(), Protocol::ALL.len());
    });
}

#[test]
fn the_rate_limit_is_one_for_all_protocols() {
    run(async {
        let origin = Origin::text("ok").await;
        let limit = "[rate_limit]\nrequests = 3\nper = \"1h\"\nburst = 6\n";
        let edge = Edge::run(&format!("{limit}{}", secure(origin.addr()))).await;
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            assert_eq!(client.get("/").await.status, 200, "{protocol:?}");
            assert_eq!(client.get("/").await.status, 200, "{protocol:?}");
        }
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            let reply = client.get("/").await;
            assert_eq!(reply.status, 429, "{protocol:?}");
            let after: u64 = reply.field("retry-after").parse().unwrap();
            assert!((1..=1200).contains(&after), "{after}");
            assert_eq!(client.get("/health").await.status, 200, "a full edge is not a dead one");
        }
        assert_eq!(origin.requests(), 6);
    });
}

#[test]
fn a_route_has_a_chain_of_its_own() {
    run(async {
        let origin = Origin::text("ok").await;
        let layers =
            "[security_headers]\n[rate_limit]\nrequests = 2\nper = \"1h\"\n[filter]\ndeny = [\"/.git\"]\n";
        let route = "[[route]]\npath = \"/free\"\ncluster = \"app\"\nrate_limit = \"off\"\nsecurity_headers = \"off\"\n\
                     [[route]]\npath = \"/tight\"\ncluster = \"app\"\n[route.rate_limit]\nrequests = 1\nper = \"1h\"\n\
                     [route.filter]\ndeny = [\"/tight/no\"]\n";
        let edge = Edge::run(&format!("{layers}{route}{}", secure(origin.addr()))).await;
        let mut client = Client::connect(Protocol::H2, edge.https(), "localhost").await;
        let status = |reply: Reply| reply.status.as_u16();
        // the edge's own limit counts what has no route of its own, and no route at all
        for expected in [200, 200, 429] {
            let reply = client.get("/").await;
            assert_eq!(reply.field("x-content-type-options"), "nosniff");
            assert_eq!(status(reply), expected);
        }
        // a route without a limit and without security fields; what it says nothing of is the edge's
        for _ in 0..5 {
            let reply = client.get("/free/x").await;
            assert_eq!(reply.field("x-content-type-options"), "");
            assert_eq!(status(reply), 200);
        }
        // one with a limit and a filter of its own, in this order
        assert_eq!(status(client.get("/tight/no").await), 404);
        assert_eq!(status(client.get("/tight/.git").await), 429);
        assert_eq!(origin.requests(), 7);
    });
}

#[test]
fn the_cache_answers_for_the_origin() {
    run(async {
        let count = AtomicU32::new(0);
        let origin = Origin::start(move |request| {
            let number = count.fetch_add(1, Ordering::SeqCst);
            async move {
                let mut response = Response::new(full(format!("answer {number}")));
                let control = if request.uri().path() == "/private" { "private" } else { "max-age=600" };
                response.headers_mut().insert("cache-control", control.parse().unwrap());
                response
            }
        })
        .await;
        let edge = Edge::run(&format!("[cache]\n{}", secure(origin.addr()))).await;
        let mut client = Client::connect(Protocol::H1, edge.https(), "localhost").await;
        let first = client.get("/page?a").await;
        assert_eq!(first.body, "answer 0");
        assert!(!first.field("cache-status").contains("hit") && first.field("age").is_empty(), "{first:?}");
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            let hit = client.get("/page?a").await;
            assert_eq!((hit.status.as_u16(), hit.body.as_str()), (200, "answer 0"), "{protocol:?}");
            assert!(hit.field("cache-status").contains("; hit"), "{protocol:?} {hit:?}");
            assert!(hit.field("age").parse::<u32>().unwrap() < 60, "{protocol:?} {hit:?}");
        }
        // RFC 9111 section 2: another host or query is another page
        assert_eq!(client.get("/page?b").await.body, "answer 1");
        let authority = std::mem::replace(&mut client.authority, "other.test".to_owned());
        assert_eq!(client.get("/page?a").await.body, "answer 2");
        client.authority = authority;
        assert_eq!(client.get("/private").await.body, "answer 3");
        assert_eq!(client.get("/private").await.body, "answer 4");
        // section 4: an unsafe method is not answered from it, and section 4.4: it ends what is stored
        let post = client.request(Method::POST, "/page?a").body(full("x")).unwrap();
        assert_eq!(client.fetch(post).await.body, "answer 5");
        assert_eq!(client.get("/page?a").await.body, "answer 6");
    });
}

/// What routes have stored is for those who come by them: a listener that redirects gives none of it, though the URI is the same.
#[test]
fn what_has_no_route_is_not_answered_from_the_cache() {
    run(async {
        let origin = Origin::start(|_| async {
            let mut response = Response::new(full("for some"));
            response.headers_mut().insert("cache-control", "max-age=600".parse().unwrap());
            response
        })
        .await;
        let redirect = "[[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"redirect\"\nredirect_port = 443\n[[route]]\n";
        let config = plain(origin.addr()).replace("[[route]]\n", redirect);
        let edge = Edge::run(&format!("[cache]\n{config}")).await;
        let mut client = Client::plain(edge.http(), "a.test").await;
        for _ in 0..2 {
            assert_eq!(client.get("/x").await.body, "for some");
        }
        assert_eq!(origin.requests(), 1, "the second came from the cache");
        let mut client = Client::plain(edge.redirect(), "a.test").await;
        let reply = client.get("/x").await;
        assert_eq!((reply.status.as_u16(), reply.field("location")), (308, "https://a.test/x"), "{reply:?}");
        assert_eq!(reply.field("cache-status"), "");
    });
}

/// Nor is who comes by another route that is chosen by more than the URI, though the cache keeps nothing of the query.
#[test]
fn what_a_route_for_some_stored_is_not_for_others() {
    run(async {
        let origin = Origin::start(|_| async {
            let mut response = Response::new(full("for some"));
            response.headers_mut().insert("cache-control", "max-age=600".parse().unwrap());
            response
        })
        .await;
        let config = secure(origin.addr()).replace("[[route]]\n", "[[route]]\nquery = { v = \"1\" }\n");
        let edge = Edge::run(&format!("[cache]\nquery = \"none\"\n{config}")).await;
        let mut client = Client::connect(Protocol::H2, edge.https(), "localhost").await;
        for _ in 0..2 {
            assert_eq!(client.get("/x?v=1").await.body, "for some");
        }
        assert_eq!(origin.requests(), 1);
        assert_eq!(client.get("/x").await.status, 404);
    });
}

/// What a client says of itself.
const CLAIMS: [(&str, &str); 6] = [
    ("x-forwarded-for", "203.0.113.9"),
    ("x-forwarded-proto", "gopher"),
    ("x-forwarded-host", "evil.test"),
    ("x-forwarded-port", "1"),
    ("x-real-ip", "203.0.113.9"),
    ("forwarded", "for=203.0.113.9;host=evil.test"),
];

#[test]
fn a_stranger_is_not_believed() {
    run(async {
        let origin = Origin::text("ok").await;
        let edge = Edge::run(&format!("[access_log]\n{}", secure(origin.addr()))).await;
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            let mut request = client.request(Method::GET, "/spoof");
            for (name, value) in CLAIMS {
                request = request.header(name, value);
            }
            // spellings that some applications take for the same
            request = request.header("x_forwarded_for", "203.0.113.9");
            assert_eq!(client.fetch(request.body(empty()).unwrap()).await.status, 200);
            let (_, headers) = origin.last();
            for (name, value) in &headers {
                let value = value.to_str().unwrap();
                assert!(
                    !value.contains("203.0.113.9") && !value.contains("evil"),
                    "{protocol:?} {name}: {value}"
                );
            }
            for (name, value) in [("x-forwarded-for", "127.0.0.1"), ("x-forwarded-proto", "https")] {
                let values: Vec<_> = headers.get_all(name).iter().collect();
                assert_eq!(values, [value], "{protocol:?} {name}");
            }
            assert_eq!(headers["x-forwarded-host"], client.authority.as_str(), "{protocol:?}");
        }
        assert!(edge.stdout.find("/spoof").await.starts_with("127.0.0.1 "));
    });
}

#[test]
fn a_trusted_proxy_is_believed() {
    run(async {
        let origin = Origin::text("ok").await;
        let head = "[access_log]\n[forwarded]\ntrusted = [\"127.0.0.0/8\", \"10.0.0.0/8\"]\n\
                    [rate_limit]\nrequests = 2\nper = \"1h\"\n";
        let edge = Edge::run(&format!("{head}{}", plain(origin.addr()))).await;
        let ask = |chain: &'static str| {
            let http = edge.http();
            async move {
                let text = format!(
                    "GET /told HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: {chain}\r\nX-Forwarded-Proto: https\r\n\
                     Connection: close\r\n\r\n"
                );
                raw::send(http, text).await.statuses()
            }
        };
        // what stands left of the last stranger is that stranger's own claim
        assert_eq!(ask("198.51.100.1, 203.0.113.9, 10.0.0.7").await, [200]);
        let (_, headers) = origin.last();
        let chain = headers["x-forwarded-for"].to_str().unwrap();
        assert!(chain.ends_with("203.0.113.9, 10.0.0.7, 127.0.0.1"), "{chain}");
        assert_eq!(headers["x-forwarded-proto"], "https");
        assert_eq!(headers["x-real-ip"], "203.0.113.9");
        assert!(edge.stdout.find("/told").await.starts_with("203.0.113.9 "));
        // the rate limit counts that client, not the proxy in front
        assert_eq!(ask("192.0.2.1, 203.0.113.9").await, [200]);
        assert_eq!(ask("192.0.2.2, 203.0.113.9").await, [429]);
        assert_eq!(ask("192.0.2.3").await, [200]);
    });
}
