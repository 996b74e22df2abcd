//! Endpoints that are found while the edge runs: in a file, and in DNS.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use portcullis_testkit::{
    certs::TestCa,
    dns::{Data, DnsServer, Mood},
};

use crate::support::{
    Dir, SOON,
    client::{Client, Protocol},
    edge::Edge,
    origin::Origin,
    raw, run,
    tls_origin::TlsOrigin,
    within,
};

/// Puts a list in the place of the one before, all at once.
fn list(dir: &Dir, endpoints: &[SocketAddr]) {
    let text: String = endpoints.iter().map(|addr| format!("{addr} weight=2 # one\n")).collect();
    let new = dir.write("new", &text);
    std::fs::rename(new, dir.path().join("endpoints")).unwrap();
}

fn config(cluster: &str) -> String {
    format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"https\"\n\
         [[certificate]]\nself_signed = [\"localhost\"]\n[[route]]\ncluster = \"app\"\n\
         [[cluster]]\nname = \"app\"\n{cluster}",
    )
}

fn by_file(dir: &Dir) -> String {
    let path = dir.path().join("endpoints");
    config(&format!("[cluster.file]\npath = \"{}\"\ninterval = \"100ms\"\n", path.display()))
}

#[test]
fn endpoints_change_by_file_and_no_request_fails() {
    run(async {
        let origins = [Origin::text("0").await, Origin::text("1").await, Origin::text("2").await];
        let [a, b, c] = [0, 1, 2].map(|at: usize| origins[at].addr());
        let dir = Dir::new();
        list(&dir, &[a]);
        let edge = Edge::run(&by_file(&dir)).await;
        let (done, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let mut askers = tokio::task::JoinSet::new();
        for protocol in Protocol::ALL {
            // the first request of all finds an endpoint: the file is read before the edge listens
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            let (done, answers) = (Arc::clone(&done), Arc::clone(&answers));
            askers.spawn(async move {
                while !done.load(Ordering::SeqCst) {
                    let reply = client.get("/").await;
                    assert_eq!(reply.status, 200, "{protocol:?} {reply:?}");
                    answers.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
        }
        origins[0].wait_for_requests(20).await;
        assert_eq!(origins[1].requests() + origins[2].requests(), 0);
        for (endpoints, at) in [(&[a, b][..], 1), (&[c], 2), (&[b], 1), (&[c, a], 0)] {
            let before = origins[at].requests();
            list(&dir, endpoints);
            origins[at].wait_for_requests(before + 20).await;
        }
        // a file that says nothing changes nothing
        std::fs::write(dir.path().join("endpoints"), "nonsense\n").unwrap();
        let (before, b_before) = (answers.load(Ordering::SeqCst), origins[1].requests());
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(answers.load(Ordering::SeqCst) > before);
        assert_eq!(origins[1].requests(), b_before);
        done.store(true, Ordering::SeqCst);
        while let Some(result) = askers.join_next().await {
            result.unwrap();
        }
    });
}

#[test]
fn without_a_file_it_is_503_until_there_is_one() {
    run(async {
        let origin = Origin::text("here").await;
        let dir = Dir::new();
        let edge = Edge::run(&by_file(&dir)).await;
        let mut client = Client::connect(Protocol::ALL[0], edge.https(), "localhost").await;
        assert_eq!(client.get("/").await.status, 503);
        list(&dir, &[origin.addr()]);
        within(SOON, "an answer", async {
            while client.get("/").await.status != 200 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    });
}

/// SRV records of these, in levels of one priority each.
fn serve(dns: &DnsServer, levels: &[&[SocketAddr]]) {
    let mut records = Vec::new();
    for (level, endpoints) in (0_u16..).zip(levels) {
        records
            .extend(endpoints.iter().map(|addr| Data::Service(level, 5, addr.port(), "a.test".to_owned())));
    }
    dns.set("_http._tcp.app.test", 0, &records);
}

#[test]
fn endpoints_change_with_their_srv_records_and_stay_while_nobody_answers() {
    run(async {
        let origins = [Origin::text("0").await, Origin::text("1").await, Origin::text("2").await];
        let [a, b, c] = [0, 1, 2].map(|at: usize| origins[at].addr());
        let dns = DnsServer::start().await;
        dns.set_addresses("a.test", 0, &[a.ip()]);
        serve(&dns, &[&[a]]);
        let edge = Edge::run(&config(&format!(
            "[cluster.dns]\nname = \"_http._tcp.app.test\"\nrecords = \"srv\"\nservers = [\"{}\"]\n\
             min_ttl = \"100ms\"\ntimeout = \"500ms\"\n",
            dns.addr()
        )))
        .await;
        let mut client = Client::connect(Protocol::ALL[0], edge.https(), "localhost").await;
        // the first request of all waits for the first list
        assert_eq!(client.get("/").await.status, 200);
        for (levels, at) in [(&[&[a, b][..]][..], 1), (&[&[c]], 2), (&[&[b], &[a, c]], 1)] {
            serve(&dns, levels);
            let before = origins[at].requests();
            within(SOON, "the new endpoint", async {
                while origins[at].requests() < before + 5 {
                    assert_eq!(client.get("/").await.status, 200);
                }
            })
            .await;
        }
        // those of a higher number have nothing to do
        let idle = [origins[0].requests(), origins[2].requests()];
        for mood in [Mood::Fails, Mood::Silent] {
            dns.set_mood(mood);
            let asked = dns.questions().len();
            within(SOON, "a question", dns.wait_for_questions(asked + 2)).await;
            assert_eq!(client.get("/").await.body, "1", "{mood:?}");
        }
        assert_eq!([origins[0].requests(), origins[2].requests()], idle);
    });
}

#[test]
fn a_name_that_nobody_knows_yet_is_503_and_then_is_known() {
    run(async {
        let origin = Origin::text("here").await;
        let dns = DnsServer::start().await;
        let edge = Edge::run(&config(&format!(
            "queue_timeout = \"200ms\"\n[cluster.dns]\nname = \"app.test\"\nport = {}\nservers = [\"{}\"]\n",
            origin.addr().port(),
            dns.addr()
        )))
        .await;
        let mut client = Client::connect(Protocol::ALL[0], edge.https(), "localhost").await;
        assert_eq!(client.get("/").await.status, 503);
        dns.set_addresses("app.test", 1, &[origin.addr().ip()]);
        within(SOON, "an answer", async {
            while client.get("/").await.status != 200 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    });
}

/// RFC 9525 section 6.1.1: what an endpoint proves is the name from the file, not an address that DNS told.
#[test]
fn an_endpoint_from_dns_proves_the_name_that_was_asked_for() {
    run(async {
        let ca = TestCa::new();
        let dir = Dir::new();
        let roots = dir.write("ca.pem", &ca.pem());
        let dns = DnsServer::start().await;
        for (proves, status) in [("app.test", 200), ("127.0.0.1", 502)] {
            let origin = TlsOrigin::start(&ca.issue(&[proves]), None, &["http/1.1"]).await;
            dns.set_addresses("app.test", 1, &[origin.addr.ip()]);
            let edge = Edge::run(&format!(
                "[[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"http\"\n\
                 [[route]]\ncluster = \"app\"\nupstream_host = \"endpoint\"\n\
                 [[cluster]]\nname = \"app\"\ntls = true\ntls_ca = \"{}\"\n\
                 [cluster.dns]\nname = \"app.test\"\nport = {}\nservers = [\"{}\"]\n",
                roots.display(),
                origin.addr.port(),
                dns.addr()
            ))
            .await;
            let got = raw::send(edge.http(), "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
            assert_eq!(got.statuses(), [status], "{proves}: {}", got.text);
            let host = format!("\r\nx-host: app.test:{}\r\n", origin.addr.port());
            assert_eq!(got.text.contains(&host), status == 200, "{}", got.text);
        }
    });
}
