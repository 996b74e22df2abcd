//! `portcullis proxy`, in one line, and `portcullis certs`.

use std::{fs, net::TcpStream};

use portcullis_testkit::ports::free_tcp_udp_port;
use rustls_pki_types::{CertificateDer, pem::PemObject};

use crate::support::{
    Dir,
    client::{Client, Protocol},
    edge::{Edge, command, run_to_end},
    origin::Origin,
    raw, run, tls,
};

#[test]
fn one_line_puts_https_in_front_of_an_application() {
    run(async {
        let origin = Origin::text("from the application").await;
        let to = origin.addr().to_string();
        let args = ["proxy", "--from", "example.test:0", "--to", &to, "--address", "127.0.0.1"];
        let edge = Edge::start(command(args), 1).await;
        for (at, protocol) in Protocol::ALL.into_iter().enumerate() {
            let mut client = Client::connect(protocol, edge.https(), "example.test").await;
            let reply = client.get("/x?y").await;
            assert_eq!(
                (reply.status.as_u16(), reply.body.as_str()),
                (200, "from the application"),
                "{protocol:?}"
            );
            let (line, headers) = origin.last();
            assert_eq!(line, "GET /x?y");
            assert_eq!(headers["host"], client.authority.as_str());
            assert_eq!(headers["x-forwarded-proto"], "https");
            assert_eq!(origin.requests(), at + 1);

            client.authority = "other.test".to_owned();
            assert_eq!(client.get("/x").await.status, 404, "{protocol:?}");
            assert_eq!(origin.requests(), at + 1, "an unknown host is nobody's");
        }
        let line = edge.stdout.find(" 404 ").await;
        assert!(line.contains("\"GET /x HTTP/1.1\""), "{line}");
    });
}

#[test]
fn several_endpoints_an_admin_service_and_a_redirect() {
    run(async {
        let (one, two) = (Origin::text("one").await, Origin::text("two").await);
        let (to_one, to_two) = (one.addr().to_string(), two.addr().to_string());
        let from = format!("example.test:{}", free_tcp_udp_port());
        let redirect = free_tcp_udp_port().to_string();
        let mut args =
            vec!["proxy", "--from", &from, "--to", &to_one, "--to", &to_two, "--address", "127.0.0.1"];
        args.extend(["--admin", "127.0.0.1:0", "--redirect-from", &redirect, "--quiet"]);
        let edge = Edge::start(command(args), 3).await;
        let mut client = Client::connect(Protocol::H2, edge.https(), "example.test").await;
        for _ in 0..10 {
            assert_eq!(client.get("/").await.status, 200);
        }
        assert_eq!(one.requests() + two.requests(), 10);
        assert!(one.requests() > 0 && two.requests() > 0, "{} {}", one.requests(), two.requests());
        let metrics = Client::plain(edge.admin(), "localhost").await.get("/metrics").await;
        assert!(
            metrics.body.contains("portcullis_upstream_requests_total{cluster=\"app\"} 10"),
            "{}",
            metrics.body
        );
        let answered = raw::send(edge.redirect(), "GET /p?q HTTP/1.1\r\nHost: example.test\r\n\r\n").await;
        assert_eq!(answered.statuses(), [308]);
        assert!(answered.text.contains(&format!("location: https://{from}/p?q\r\n")), "{answered:?}");
        assert!(!edge.stdout.text().contains("GET"), "--quiet");
    });
}

#[test]
fn a_certificate_from_certs_is_trusted_by_its_authority() {
    run(async {
        let dir = Dir::new();
        let out = dir.path().join("made");
        let (status, stdout, stderr) =
            run_to_end(["certs".as_ref(), "--out".as_ref(), out.as_os_str(), "example.test".as_ref()]);
        assert!(status.success(), "{stdout}{stderr}");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(out.join("key.pem")).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "the key is its owner's");
        }
        let origin = Origin::text("ok").await;
        let mut start = command(["proxy", "--from", "example.test:0", "--to", &origin.addr().to_string()]);
        start.args(["--address", "127.0.0.1"]).arg("--cert").arg(out.join("cert.pem"));
        start.arg("--key").arg(out.join("key.pem"));
        let edge = Edge::start(start, 1).await;
        let ca = CertificateDer::from_pem_file(out.join("ca.pem")).unwrap();
        for protocol in Protocol::ALL {
            let config = tls::config(Some(ca.clone()), &[protocol.alpn()]);
            let client = Client::try_connect(protocol, edge.https(), "example.test", config).await;
            assert_eq!(client.expect("a trusted certificate").get("/").await.body, "ok", "{protocol:?}");
        }
        let config = tls::config(Some(ca), &["h2"]);
        let wrong = Client::try_connect(Protocol::H2, edge.https(), "other.test", config).await;
        assert!(wrong.is_err(), "no certificate is good for other.test");
    });
}

#[test]
fn mistakes_on_the_command_line_bind_nothing() {
    let port = free_tcp_udp_port();
    let from = format!("example.test:{port}");
    for (args, said) in [
        (vec!["proxy", "--from", "example.test/path", "--to", "127.0.0.1:1"], "without a path"),
        (vec!["proxy", "--from", &from, "--to", "127.0.0.1"], "127.0.0.1"),
        (vec!["proxy", "--from", &from], "--to"),
        (vec!["proxy", "--from", &from, "--to", "127.0.0.1:1", "--cert", "a.pem"], "--key"),
        (
            vec!["proxy", "--from", &from, "--to", "127.0.0.1:1", "--cert", "no.pem", "--key", "no.pem"],
            "no.pem",
        ),
        (vec!["run", "--config", "there-is-none.toml"], "there-is-none.toml"),
    ] {
        let (status, stdout, stderr) = run_to_end(&args);
        assert!(!status.success(), "{args:?}");
        assert!(stderr.contains(said), "{args:?} said:\n{stderr}");
        assert!(!stdout.contains("listening"), "{args:?}");
    }
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
}
