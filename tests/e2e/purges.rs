//! The cache, seen and purged by the admin service.

use std::sync::atomic::{AtomicU32, Ordering};

use http::{Method, Response};

use crate::support::{
    client::{Client, full},
    edge::Edge,
    origin::Origin,
    run,
};

/// Each answer is another, stays fresh, and has its path's first part as a tag.
async fn origin() -> Origin {
    let count = AtomicU32::new(0);
    Origin::start(move |request| {
        let number = count.fetch_add(1, Ordering::SeqCst);
        async move {
            let mut response = Response::new(full(number.to_string()));
            let tag = request.uri().path().split('/').nth(1).unwrap_or_default();
            response.headers_mut().insert("cache-control", "max-age=600".parse().unwrap());
            response.headers_mut().insert("cache-tag", tag.parse().unwrap());
            response
        }
    })
    .await
}

fn config(origin: &Origin, cache: &str) -> String {
    format!(
        "{cache}[admin]\naddress = \"127.0.0.1:0\"\n[[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"http\"\n\
         [[route]]\ncluster = \"origin\"\n[[cluster]]\nname = \"origin\"\nendpoints = [\"{}\"]\n",
        origin.addr()
    )
}

async fn post(admin: &mut Client, target: &str, kind: &str, body: &str) -> (u16, String) {
    let mut request = admin.request(Method::POST, target);
    if !kind.is_empty() {
        request = request.header("content-type", kind);
    }
    let reply = admin.fetch(request.body(full(body.to_owned())).unwrap()).await;
    (reply.status.as_u16(), reply.body)
}

#[test]
fn a_purge_reaches_what_it_names_and_nothing_else() {
    run(async {
        let origin = origin().await;
        let edge = Edge::run(&config(&origin, "[cache]\n")).await;
        let mut client = Client::plain(edge.http(), "a.test").await;
        let mut admin = Client::plain(edge.admin(), "localhost").await;
        const PATHS: [&str; 4] = ["/x/1?q", "/x/2", "/xx/3", "/y"];
        let site = format!("http://{}", client.authority);
        let form = "application/x-www-form-urlencoded";
        let json = "application/json";
        // what is asked, in which way, how many are purged, and which
        for (target, kind, body, purged) in [
            (format!("/cache/purge?url={site}/x/1%3Fq"), "", String::new(), &[0][..]),
            ("/cache/purge".to_owned(), form, format!("url={site}/x/1"), &[]),
            ("/cache/purge".to_owned(), form, format!("prefix={site}/x/"), &[0, 1]),
            ("/cache/purge".to_owned(), json, "{\"tag\":\"x\",\"soft\":false}".to_owned(), &[0, 1]),
            ("/cache/purge".to_owned(), json, "{\"tag\":\"x\",\"soft\":true}".to_owned(), &[0, 1]),
            ("/cache/purge?tag=".to_owned() + "xx", "", String::new(), &[2]),
            ("/cache/purge?all=true".to_owned(), "", String::new(), &[0, 1, 2, 3]),
        ] {
            let mut before = Vec::new();
            for path in PATHS {
                let body = client.get(path).await.body;
                assert_eq!(client.get(path).await.body, body, "{path} was stored");
                before.push(body);
            }
            let answer = post(&mut admin, &target, kind, &body).await;
            assert_eq!(answer, (200, format!("{{\"purged\":{}}}\n", purged.len())), "{target} {body}");
            for (at, path) in PATHS.into_iter().enumerate() {
                let anew = client.get(path).await.body != before[at];
                assert_eq!(anew, purged.contains(&at), "{target} {body}: {path}");
            }
        }
        let page = admin.get("/cache").await;
        assert_eq!(page.field("content-type"), "application/json");
        let page: serde_json::Value = serde_json::from_str(&page.body).unwrap();
        assert_eq!((page["purged"].as_u64(), page["hits"].as_u64() > Some(20)), (Some(12), true), "{page}");
        assert_eq!(page["max_bytes"], 256 << 20);
    });
}

#[test]
fn a_purge_that_is_not_clear_or_not_allowed_does_nothing() {
    run(async {
        let origin = origin().await;
        let edge = Edge::run(&config(&origin, "[cache]\n")).await;
        let mut client = Client::plain(edge.http(), "a.test").await;
        let mut admin = Client::plain(edge.admin(), "localhost").await;
        let kept = client.get("/x").await.body;
        for (target, status) in [
            ("/cache/purge", 400),
            ("/cache/purge?soft=true", 400),
            ("/cache/purge?all=false", 400),
            ("/cache/purge?all=yes", 400),
            ("/cache/purge?tag=", 400),
            ("/cache/purge?tga=x", 400),
            ("/cache/purge?tag=x&all=true", 400),
            ("/cache/purge?all=true&soft=maybe", 400),
            ("/cache/purge?url=/x", 400),
            ("/cache/purge?prefix=a.test/x", 400),
            ("/cache?all=true", 405),
            ("/cache/purge/?all=true", 404),
        ] {
            let (got, said) = post(&mut admin, target, "", "").await;
            assert_eq!(got, status, "{target}: {said}");
        }
        assert_eq!(admin.get("/cache/purge?all=true").await.status, 405);
        // no page of somebody's browser
        for (name, value) in
            [("origin", "http://127.0.0.1"), ("origin", "null"), ("sec-fetch-site", "cross-site")]
        {
            let request = admin.request(Method::POST, "/cache/purge?all=true").header(name, value);
            assert_eq!(admin.fetch(request.body(full("")).unwrap()).await.status, 403, "{name}");
        }
        let (status, _) = post(&mut admin, "/cache/purge", "application/json", &" ".repeat(70_000)).await;
        assert_eq!(status, 413);
        assert_eq!(client.get("/x").await.body, kept);
        // and not from the front door
        let request = client.request(Method::POST, "/cache/purge?all=true").body(full("")).unwrap();
        let before = origin.requests();
        client.fetch(request).await;
        assert_eq!((origin.requests(), client.get("/x").await.body), (before + 1, kept));

        let edge = Edge::run(&config(&origin, "")).await;
        let mut admin = Client::plain(edge.admin(), "localhost").await;
        assert_eq!(post(&mut admin, "/cache/purge?all=true", "", "").await.0, 400);
        assert_eq!(admin.get("/cache").await.body, "null\n");
    });
}
