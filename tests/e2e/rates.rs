//! The rate limit by its rules, keys and choices, as a file has them.

use http::Method;

use crate::{
    config::plain,
    support::{
        client::{Client, Reply, empty},
        edge::Edge,
        origin::Origin,
        run,
    },
};

const ADMIN: &str = "[admin]\naddress = \"127.0.0.1:0\"\n";

const RULES: &str = "[[rate_limit]]\nname = \"hour\"\nrequests = 4\nper = \"1h\"\nkey = [\"field:x-api-key\"]\nelse_key = [\"client\"]\n\
     method_costs = [\"POST=3\"]\nfields = true\n\
     [[rate_limit]]\nname = \"tight\"\nrequests = 3\nper = \"1h\"\nkey = [\"path:1\"]\nstatus = 503\nbody = \"slower\"\n\
     [[rate_limit]]\nname = \"trial\"\nrequests = 1\nper = \"1h\"\ndry_run = true\n";

async fn ask(client: &mut Client, method: Method, path: &str, key: Option<&str>) -> Reply {
    let mut request = client.request(method, path);
    if let Some(key) = key {
        request = request.header("x-api-key", key);
    }
    client.fetch(request.body(empty()).unwrap()).await
}

/// Compares what is left of rules; their times may have gone on by some seconds.
fn told(field: &str, expected: &str) {
    let parts = |text: &str| -> Vec<(String, u32)> {
        let rules = text.split(", ").map(|rule| rule.rsplit_once(";t=").unwrap_or_else(|| panic!("{text}")));
        rules.map(|(rule, time)| (rule.to_owned(), time.parse().unwrap())).collect()
    };
    let (found, wanted) = (parts(field), parts(expected));
    let same = |((rule, time), (wanted, at)): (&(String, u32), &(String, u32))| {
        rule == wanted && (at.saturating_sub(5)..=*at).contains(time)
    };
    assert!(found.len() == wanted.len() && found.iter().zip(&wanted).all(same), "{field} is not {expected}");
}

#[test]
fn several_rules_by_key_cost_and_choice() {
    run(async {
        let origin = Origin::text("ok").await;
        let config = format!("{ADMIN}{RULES}{}", plain(origin.addr()));
        let edge = Edge::run(&config).await;
        let mut client = Client::plain(edge.http(), "localhost").await;
        // (method, path, key, status, what is left of the rules)
        let table = [
            (Method::POST, "/a/x", Some("one"), 200, r#""hour";r=1;t=2700, "tight";r=2;t=1200"#),
            (Method::POST, "/a/y", Some("one"), 429, r#""hour";r=1;t=2700"#),
            (Method::GET, "/b", Some("one"), 200, r#""hour";r=0;t=3600, "tight";r=2;t=1200"#),
            (Method::GET, "/b", Some("two"), 200, r#""hour";r=3;t=900, "tight";r=1;t=2400"#),
            (Method::GET, "/%62/", None, 200, r#""hour";r=3;t=900, "tight";r=0;t=3600"#),
            (Method::GET, "/b/z", Some("two"), 503, r#""tight";r=0;t=3600"#),
            // the refusal of one rule cost the other nothing
            (Method::POST, "/c", Some("two"), 200, r#""hour";r=0;t=3600, "tight";r=2;t=1200"#),
        ];
        for (method, path, key, status, left) in table {
            let reply = ask(&mut client, method.clone(), path, key).await;
            assert_eq!(reply.status, status, "{method} {path} {key:?}");
            told(reply.field("ratelimit"), left);
            let policy = r#""hour";q=4;w=3600, "tight";q=3;w=3600"#;
            assert_eq!(reply.field("ratelimit-policy"), policy);
            assert_eq!(reply.field("retry-after").is_empty(), status == 200);
            if status == 503 {
                assert_eq!((&reply.body[..], reply.field("cache-control")), ("slower", "no-store"));
            }
        }
        assert_eq!(origin.requests(), 5);
        let count = async |name: &str, rule: &str| {
            edge.metric(&format!("portcullis_rate_limit_{name}_total{{rule=\"{rule}\"}}")).await
        };
        assert_eq!((count("allowed", "hour").await, count("refused", "hour").await), (5.0, 1.0));
        assert_eq!((count("allowed", "tight").await, count("refused", "tight").await), (5.0, 1.0));
        assert_eq!((count("allowed", "trial").await, count("dry_run", "trial").await), (1.0, 4.0));
    });
}

#[test]
fn a_changed_rule_keeps_what_it_counted() {
    run(async {
        let origin = Origin::text("ok").await;
        let config = |requests: u32, more: &str| {
            format!("[rate_limit]\nrequests = {requests}\nper = \"1h\"\n{more}{}", plain(origin.addr()))
        };
        let edge = Edge::run(&config(2, "")).await;
        let mut client = Client::plain(edge.http(), "localhost").await;
        let mut statuses = async |count: usize| {
            let mut statuses = Vec::new();
            for _ in 0..count {
                statuses.push(client.get("/").await.status.as_u16());
            }
            statuses
        };
        assert_eq!(statuses(1).await, [200]);
        // half of it was left, and half of the new one is
        edge.reload(&config(8, ""), 1).await;
        assert_eq!(statuses(5).await, [200, 200, 200, 200, 429]);
        edge.reload(&config(8, "allow = [\"127.0.0.0/8\", \"::1\"]\n"), 2).await;
        assert_eq!(statuses(3).await, [200, 200, 200]);
        edge.reload(&config(8, ""), 3).await;
        assert_eq!(statuses(1).await, [429]);
        edge.reload(&config(8, "name = \"another\"\n"), 4).await;
        assert_eq!(statuses(1).await, [200]);
    });
}

#[test]
fn without_its_store_a_rule_does_what_it_says() {
    run(async {
        let origin = Origin::text("ok").await;
        for (shared, expected) in
            [("open", [200, 200, 200]), ("closed", [503, 503, 503]), ("local", [200, 200, 429])]
        {
            let limit = format!("[rate_limit]\nrequests = 2\nper = \"1h\"\nshared = \"{shared}\"\n");
            let store = "[rate_limit_store]\nurl = \"unix:///nowhere/at/all\"\n";
            let edge = Edge::run(&format!("{ADMIN}{limit}{store}{}", plain(origin.addr()))).await;
            let mut client = Client::plain(edge.http(), "localhost").await;
            for expected in expected {
                assert_eq!(client.get("/").await.status, expected, "{shared}");
            }
            assert_eq!(edge.metric("portcullis_rate_limit_unavailable_total{rule=\"default\"}").await, 3.0);
        }
    });
}
