//! Certificates by ACME, with Pebble as the authority, where `PORTCULLIS_E2E_PEBBLE=1` asks for it: then it must be there.

use std::{env, fs, sync::Arc, time::Duration};

use http::Response;
use portcullis_testkit::{
    pebble::{Pebble, PebbleOptions},
    ports::free_tcp_udp_port,
};
use rustls::ClientConfig;
use rustls_pki_types::{CertificateDer, pem::PemObject};

use crate::support::{
    Dir,
    client::{Client, Protocol, full},
    edge::Edge,
    origin::Origin,
    run, tls, within,
};

fn is_wanted() -> bool {
    env::var_os("PORTCULLIS_E2E_PEBBLE").is_some_and(|value| value == "1")
}

/// Time for orders: Pebble is slow on purpose, and a test machine busy.
const ORDERS: Duration = Duration::from_secs(25);

/// An edge that has certificates issued by a Pebble on this port.
fn config(pebble: u16, acme: &str, certificates: &str) -> String {
    format!(
        "[admin]\naddress = \"127.0.0.1:0\"\n[[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"https\"\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"redirect\"\n\
         [acme]\ndirectory = \"https://localhost:{pebble}/dir\"\nroots = \"ca/roots.pem\"\npoll = \"200ms\"\nretry_max = \"1s\"\n\
         {acme}\n{certificates}\n[[route]]\nrespond = \"served\"\n"
    )
}

/// A directory in which a Pebble can be started later, and its port.
fn prepare() -> (Dir, u16) {
    let dir = Dir::new();
    Pebble::prepare(&dir.path().join("ca"));
    (dir, free_tcp_udp_port())
}

/// Starts it in the edge's directory.
fn pebble_of(edge: &Edge, port: u16, options: &PebbleOptions) -> Pebble {
    Pebble::start_on(&edge.dir().path().join("ca"), options, port)
}

fn options(edge: &Edge) -> PebbleOptions {
    PebbleOptions { tls_port: edge.https().port(), http_port: edge.redirect().port(), ..Default::default() }
}

/// Believes whom this Pebble issues for.
async fn trusting(pebble: &Pebble, alpn: &[&str]) -> Arc<ClientConfig> {
    let own = CertificateDer::from_pem_file(pebble.roots()).unwrap();
    let config = tls::config(Some(own), &["http/1.1"]);
    let mut client =
        Client::try_connect(Protocol::H1, pebble.management(), "localhost", config).await.unwrap();
    let root = client.get("/roots/0").await.body;
    tls::config(Some(CertificateDer::from_pem_slice(root.as_bytes()).unwrap()), alpn)
}

/// The certificate that a client gets that believes Pebble, as soon as there is one.
async fn served(edge: &Edge, pebble: &Pebble, name: &str) -> CertificateDer<'static> {
    let config = trusting(pebble, &["h2"]).await;
    let look = async {
        loop {
            if let Ok(stream) = tls::try_connect(edge.https(), name, Arc::clone(&config)).await {
                break stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let told = || format!("{}\n{}", edge.stderr.text(), pebble.log());
    match tokio::time::timeout(ORDERS, look).await {
        Ok(cert) => cert,
        Err(_) => panic!("no certificate for {name}:\n{}", told()),
    }
}

/// What the admin service tells of the certificates that are kept up.
async fn told(edge: &Edge) -> Vec<serde_json::Value> {
    let page = Client::plain(edge.admin(), "localhost").await.get("/certificates").await;
    assert_eq!(page.field("content-type"), "application/json");
    let page: serde_json::Value = serde_json::from_str(&page.body).unwrap();
    page["acme"].as_array().unwrap().clone()
}

#[test]
fn tls_alpn_01_through_an_outage_and_a_renewal() {
    if !is_wanted() {
        return;
    }
    run(async {
        let (dir, port) = prepare();
        let issued = "[[certificate]]\nacme = [\"a.example.com\", \"b.example.com\"]";
        let text = config(port, "retry_min = \"200ms\"", issued);
        let edge = Edge::run_in(dir, &text).await;
        // the authority is not there: the start did not need it
        edge.stderr.find("no certificate was issued").await;
        let states = told(&edge).await;
        let [state] = &states[..] else { panic!("one certificate") };
        assert_eq!(state["names"][0], "a.example.com");
        assert!(state["last_error"]["text"].as_str().is_some_and(|text| !text.is_empty()), "{state}");
        assert!(state["not_after"].is_null() && state["attempts"].as_u64() > Some(0), "{state}");

        let options = PebbleOptions { validity: Some(Duration::from_secs(15)), ..options(&edge) };
        let pebble = pebble_of(&edge, port, &options);
        let before = served(&edge, &pebble, "a.example.com").await;
        assert_eq!(served(&edge, &pebble, "b.example.com").await, before, "one for both");
        let states = told(&edge).await;
        let [state] = &states[..] else { panic!("one certificate") };
        assert_eq!((state["state"].as_str(), state["issued"].as_u64()), (Some("valid"), Some(1)), "{state}");
        assert!(state["next_renewal"].is_string(), "{state}");

        // renewed while it is asked for all the time
        let config = trusting(&pebble, &["http/1.1"]).await;
        let renewal = async {
            loop {
                let stream = tls::try_connect(edge.https(), "a.example.com", Arc::clone(&config)).await;
                let stream = stream.expect("never without a certificate that is good");
                if stream.get_ref().1.peer_certificates().unwrap()[0] != before {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        within(ORDERS, "the renewal", renewal).await;
        assert!(pebble.issued() >= 2, "{}", pebble.log());
        for protocol in Protocol::ALL {
            let config = trusting(&pebble, &[protocol.alpn()]).await;
            let client = Client::try_connect(protocol, edge.https(), "b.example.com", config).await;
            assert_eq!(client.unwrap().get("/").await.body, "served", "{protocol:?}");
        }
        let log = edge.stderr.text();
        assert!(log.contains("updated certificate for domain") && log.contains("a.example.com"), "{log}");
    });
}

#[test]
fn http_01_on_the_port_that_redirects() {
    if !is_wanted() {
        return;
    }
    run(async {
        let (dir, port) = prepare();
        let issued = "[[certificate]]\nacme = [\"a.example.com\"]";
        let acme = "challenge = \"http-01\"\nretry_min = \"200ms\"";
        let edge = Edge::run_in(dir, &config(port, acme, issued)).await;
        let pebble = pebble_of(&edge, port, &options(&edge));
        served(&edge, &pebble, "a.example.com").await;
        // what is no challenge goes its usual way
        let reply = Client::plain(edge.redirect(), "a.example.com").await;
        let status = { reply }.get("/.well-known/acme-challenge/nobodys").await.status;
        assert_eq!(status, 308);
    });
}

#[test]
fn two_instances_share_one_order() {
    if !is_wanted() {
        return;
    }
    run(async {
        let (dir, port) = prepare();
        let storage = Dir::new();
        let text = |wait: &str| {
            let acme = format!("storage = {:?}\nretry_min = \"{wait}\"", storage.path().join("shared"));
            let issued = "[[certificate]]\nacme = [\"a.example.com\"]";
            config(port, &acme, issued).replace("retry_max = \"1s\"", "retry_max = \"20s\"")
        };
        let second = Dir::new();
        fs::create_dir_all(second.path().join("ca")).unwrap();
        fs::copy(dir.path().join("ca/roots.pem"), second.path().join("ca/roots.pem")).unwrap();
        // the one that the authority comes to is slow to try again: the other one has the certificate issued
        let seen = Edge::run_in(dir, &text("20s")).await;
        let other = Edge::run_in(second, &text("200ms")).await;
        seen.stderr.find("no certificate was issued").await;
        let pebble = pebble_of(&seen, port, &options(&seen));
        let cert = served(&other, &pebble, "a.example.com").await;
        assert_eq!(served(&seen, &pebble, "a.example.com").await, cert);
        assert_eq!(pebble.issued(), 1, "{}", pebble.log());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(storage.path().join("shared")).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700);
        }
    });
}

#[test]
fn names_that_clients_ask_for() {
    if !is_wanted() {
        return;
    }
    run(async {
        let (dir, port) = prepare();
        let asked = Origin::start(|request| async move {
            let mut response = Response::new(full(""));
            if request.uri().query() != Some("domain=customer.example.com") {
                *response.status_mut() = http::StatusCode::FORBIDDEN;
            }
            response
        })
        .await;
        let acme = format!(
            "retry_min = \"200ms\"\n[acme.on_demand]\nask = \"http://{}/may\"\nwait = \"9s\"",
            asked.addr()
        );
        let edge = Edge::run_in(dir, &config(port, &acme, "")).await;
        let pebble = pebble_of(&edge, port, &options(&edge));
        let config = trusting(&pebble, &["h2"]).await;
        let connect = |name| tls::try_connect(edge.https(), name, Arc::clone(&config));
        assert!(connect("stranger.example.com").await.is_err());
        assert_eq!(pebble.orders(), 0, "nothing was ordered for a stranger");
        served(&edge, &pebble, "customer.example.com").await;
        assert_eq!(pebble.issued(), 1);
        let before = asked.requests();
        assert!(connect("customer.example.com").await.is_ok());
        assert!(connect("stranger.example.com").await.is_err());
        assert_eq!(asked.requests(), before, "both answers are remembered");
        let states = told(&edge).await;
        let [state] = &states[..] else { panic!("one certificate") };
        assert_eq!(state["on_demand"], true);
    });
}

#[test]
fn a_wildcard_by_a_program_that_sets_records() {
    if !is_wanted() {
        return;
    }
    run(async {
        let (dir, port) = prepare();
        let script = "#!/bin/sh\nset -eu\ncase $1 in\n\
             set) curl -sf -d \"{\\\"host\\\": \\\"$2.\\\", \\\"value\\\": \\\"$3\\\"}\" http://$(cat dns)/set-txt ;;\n\
             clear) curl -sf -d \"{\\\"host\\\": \\\"$2.\\\"}\" http://$(cat dns)/clear-txt; echo \"$2\" >> cleared ;;\nesac\n";
        let script = script.replace("cat dns", &format!("cat {}", dir.path().join("dns").display()));
        let script = script.replace("cleared ;;", &format!("{} ;;", dir.path().join("cleared").display()));
        dir.write("hook.sh", &script);
        let acme = "challenge = \"dns-01\"\ndns_hook = [\"sh\", \"HOOK\"]\nretry_min = \"200ms\""
            .replace("HOOK", dir.path().join("hook.sh").to_str().unwrap());
        let issued = "[[certificate]]\nacme = [\"*.example.com\"]";
        let edge = Edge::run_in(dir, &config(port, &acme, issued)).await;
        let pebble = pebble_of(&edge, port, &options(&edge));
        edge.dir().write("dns", &pebble.dns_management().to_string());
        served(&edge, &pebble, "any.example.com").await;
        let cleared = async {
            while !edge.dir().path().join("cleared").exists() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        within(ORDERS, "the record is taken away", cleared).await;
    });
}
