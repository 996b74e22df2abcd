//! Certificates of the running binary: what starts without any, who is refused, what the metrics say of them, and the
//! local authority.

use std::{fs, sync::Arc};

use http::StatusCode;
use portcullis_testkit::certs::TestCa;
use rustls_pki_types::{CertificateDer, pem::PemObject};

use crate::support::{
    Dir,
    client::{Client, Protocol},
    edge::{Edge, run_to_end},
    origin::Origin,
    raw, run, tls,
};

/// One listener with these keys and settings of TLS, with the pairs in `cert`.
fn config(listener: &str, tls: &str, origin: &Origin) -> String {
    format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"https\"\n{listener}\n[listener.tls]\n{tls}\n\
         [[certificate]]\ndirectory = \"cert\"\n[[route]]\ncluster = \"app\"\n\
         [[cluster]]\nname = \"app\"\nendpoints = [\"{}\"]\n",
        origin.addr()
    )
}

fn put(dir: &Dir, ca: &TestCa, names: &[&str]) {
    fs::create_dir_all(dir.path().join("cert")).unwrap();
    let cert = ca.issue(names);
    dir.write("cert/fullchain.pem", &cert.chain_pem());
    dir.write("cert/privkey.pem", &cert.key_pem());
}

const GET: &str = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

#[test]
fn without_any_certificate_it_is_plain_only_if_asked_for() {
    run(async {
        let origin = Origin::text("ok").await;
        let plain = config("", "without_certificate = \"plain-http\"", &origin);
        let edge = Edge::run_in(Dir::new(), &plain).await;
        assert!(raw::send(edge.http(), GET).await.text.ends_with("ok"));
        let line = edge.stderr.find("no certificate was found").await;
        assert!(line.contains("WARN") && line.contains("127.0.0.1:0"), "{line}");

        // with one it is not taken for an excuse
        let (ca, dir) = (TestCa::new(), Dir::new());
        put(&dir, &ca, &["localhost"]);
        let edge = Edge::run_in(dir, &plain).await;
        assert_eq!(Client::connect(Protocol::H2, edge.https(), "localhost").await.get("/").await.body, "ok");

        // nor is one that can't be used, nor a listener that was not told to do without
        let (broken, strict) = (Dir::new(), Dir::new());
        put(&broken, &ca, &["localhost"]);
        broken.write("cert/privkey.pem", &ca.issue(&["localhost"]).key_pem());
        for (dir, text, want) in
            [(&broken, &plain, "does not belong to"), (&strict, &config("", "", &origin), "cert")]
        {
            let file = dir.write("edge.toml", text);
            let (status, _, stderr) = run_to_end(["run", "--config", file.to_str().unwrap()]);
            assert!(!status.success() && stderr.contains(want), "{stderr}");
        }
    });
}

#[test]
fn one_port_serves_tls_and_plain_http_of_both_versions() {
    run(async {
        let (ca, dir, origin) = (TestCa::new(), Dir::new(), Origin::text("ok").await);
        put(&dir, &ca, &["localhost"]);
        let edge = Edge::run_in(dir, &config("plain_http = \"serve\"", "", &origin)).await;
        for protocol in Protocol::ALL {
            assert_eq!(Client::connect(protocol, edge.https(), "localhost").await.get("/").await.body, "ok");
        }
        for mut client in [
            Client::plain(edge.https(), "localhost").await,
            Client::plain_h2(edge.https(), "localhost").await,
        ] {
            let reply = client.get("/").await;
            assert_eq!((reply.status, reply.body.as_str()), (StatusCode::OK, "ok"));
        }
    });
}

#[test]
fn unknown_names_are_refused_logged_and_counted() {
    run(async {
        let (ca, dir, origin) = (TestCa::new(), Dir::new(), Origin::text("ok").await);
        put(&dir, &ca, &["localhost", "*.example.com"]);
        let text = "[admin]\naddress = \"127.0.0.1:0\"\n".to_owned()
            + &config("", "unknown_names = \"refuse\"", &origin);
        let edge = Edge::run_in(dir, &text).await;
        let connect = |protocol: Protocol, name| {
            let config = tls::config(Some(ca.der()), &[protocol.alpn()]);
            Client::try_connect(protocol, edge.https(), name, config)
        };
        for protocol in Protocol::ALL {
            assert_eq!(connect(protocol, "localhost").await.unwrap().get("/").await.body, "ok");
            assert_eq!(connect(protocol, "a.example.com").await.unwrap().get("/").await.body, "ok");
            assert!(connect(protocol, "stranger.test").await.is_err(), "{protocol:?}");
        }
        let line = edge.stderr.find("a client asked for a name that no certificate has").await;
        assert!(line.contains("stranger.test") && line.contains("refused"), "{line}");
        let metrics = Client::plain(edge.admin(), "localhost").await.get("/metrics").await.body;
        for line in [
            "portcullis_tls_unknown_names_total 3",
            "portcullis_tls_certificates 1",
            "portcullis_tls_resolutions_total{name=\"localhost\"} 6",
            "portcullis_tls_handshakes_total 4",
            "portcullis_tls_handshake_seconds_count 4",
            "portcullis_tls_handshake_seconds_bucket{le=\"10.0\"} 4",
            "portcullis_tls_handshake_failures_total{reason=\"unknown_name\"} 2",
            // the year 4096
            "portcullis_tls_next_expiry_timestamp_seconds 67090",
            "portcullis_tls_certificate_expiry_timestamp_seconds{name=\"localhost\"} 67090",
        ] {
            assert!(metrics.lines().any(|found| found.starts_with(line)), "no {line} in:\n{metrics}");
        }
    });
}

#[test]
fn the_local_authority_is_kept() {
    run(async {
        let dir = Dir::new();
        let out = dir.path().join("made");
        let certs = |name: &str| {
            let (status, stdout, stderr) = run_to_end(["certs", "--out", out.to_str().unwrap(), name]);
            (status.success(), stdout + &stderr)
        };
        let (made, said) = certs("a.test");
        assert!(made && said.contains("a new authority"), "{said}");
        let ca = CertificateDer::from_pem_file(out.join("ca.pem")).unwrap();
        let (made, said) = certs("b.test");
        assert!(made && said.contains("the authority that was there"), "{said}");
        assert_eq!(CertificateDer::from_pem_file(out.join("ca.pem")).unwrap(), ca);

        let origin = Origin::text("ok").await;
        fs::create_dir(dir.path().join("cert")).unwrap();
        fs::copy(out.join("cert.pem"), dir.path().join("cert/cert.pem")).unwrap();
        fs::copy(out.join("key.pem"), dir.path().join("cert/key.pem")).unwrap();
        let edge = Edge::run_in(dir, &config("", "", &origin)).await;
        let trusting = tls::config(Some(ca), &["h2"]);
        let connect = |name| Client::try_connect(Protocol::H2, edge.https(), name, Arc::clone(&trusting));
        assert_eq!(connect("b.test").await.unwrap().get("/").await.body, "ok");
        assert!(connect("a.test").await.is_err());

        fs::remove_file(out.join("ca-key.pem")).unwrap();
        let (made, said) = certs("c.test");
        assert!(!made && said.contains("without its key"), "{said}");
    });
}
