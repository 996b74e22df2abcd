//! Endpoints from DNS, asked of a server on loopback.
#![cfg(feature = "dns")]
#![allow(clippy::unwrap_used, reason = "whatever is missing fails the test")]

use std::{net::IpAddr, sync::Mutex, time::Duration};

use portcullis_testkit::dns::{Data, DnsServer, Mood};
use portcullis_upstream::{
    Cluster, ClusterOptions, Endpoint, Error,
    discovery::{self, DnsFamily, DnsOptions, DnsRecords, DnsSource, Empty, Found, MAX_ENDPOINTS, Resolve},
};

const PORT: DnsRecords = DnsRecords::Addresses { port: 80 };

fn options(server: &DnsServer) -> DnsOptions {
    let mut options = DnsOptions::default();
    options.servers = vec![server.addr()];
    options.timeout = Duration::from_millis(500);
    options.attempts = 1;
    options
}

fn names(found: &Found) -> Vec<&str> {
    found.endpoints.iter().map(Endpoint::name).collect()
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[tokio::test]
async fn every_address_is_an_endpoint_and_lives_as_long_as_its_ttl() {
    let server = DnsServer::start().await;
    server.set_addresses("app.test", 7, &ips(&["10.0.0.2", "10.0.0.1", "::9"]));
    let source = DnsSource::new("App.test", PORT, options(&server)).unwrap();
    let found = source.resolve().await.unwrap();
    assert_eq!(names(&found), ["10.0.0.1:80", "10.0.0.2:80", "[::9]:80"]);
    assert!(found.endpoints.iter().all(|endpoint| endpoint.host().is_some_and(|host| &**host == "app.test")));
    let ttl = found.valid_for;
    assert!(ttl > Duration::from_secs(5) && ttl <= Duration::from_secs(7), "{ttl:?}");
    let mut asked = server.questions();
    asked.sort();
    assert_eq!(asked, ["A app.test", "AAAA app.test"]);
    // nothing is kept: who asks again gets what is there now
    server.set_addresses("app.test", 0, &ips(&["10.0.0.3"]));
    let found = source.resolve().await.unwrap();
    assert_eq!((names(&found), found.valid_for), (vec!["10.0.0.3:80"], Duration::from_secs(1)));
    // what ends first ends the list
    server.set_addresses("app.test", 50, &ips(&["10.0.0.3"]));
    server.add("app.test", 20, Data::Address("::9".parse().unwrap()));
    assert!(source.resolve().await.unwrap().valid_for <= Duration::from_secs(20));
    server.set_addresses("app.test", 86_400, &ips(&["10.0.0.3"]));
    assert_eq!(source.resolve().await.unwrap().valid_for, Duration::from_secs(60));
}

#[tokio::test]
async fn one_family_alone() {
    let server = DnsServer::start().await;
    server.set_addresses("app.test", 7, &ips(&["10.0.0.1", "::9"]));
    for (family, endpoint, question) in
        [(DnsFamily::V4, "10.0.0.1:80", "A app.test"), (DnsFamily::V6, "[::9]:80", "AAAA app.test")]
    {
        let before = server.questions().len();
        let mut options = options(&server);
        options.family = family;
        let source = DnsSource::new("app.test.", PORT, options).unwrap();
        assert_eq!(names(&source.resolve().await.unwrap()), [endpoint]);
        assert_eq!(server.questions()[before..], [question]);
    }
}

#[tokio::test]
async fn services_have_ports_weights_and_levels() {
    let server = DnsServer::start().await;
    let service =
        |priority, weight, port, target: &str| Data::Service(priority, weight, port, target.to_owned());
    server.set(
        "_http._tcp.app.test",
        30,
        &[
            service(10, 3, 8001, "a.test"),
            service(10, 0, 8002, "b.test"),
            service(20, 1, 8003, "a.test"),
            service(20, 1, 8004, "gone.test"),
            service(30, 1, 8005, "."),
        ],
    );
    server.set_addresses("a.test", 5, &ips(&["10.0.0.1", "::1"]));
    server.set_addresses("b.test", 90, &ips(&["10.0.0.2"]));
    let source = DnsSource::new("_http._tcp.app.test", DnsRecords::Services, options(&server)).unwrap();
    let found = source.resolve().await.unwrap();
    let seen: Vec<_> = found.endpoints.iter().map(|e| (e.name(), e.priority(), e.weight())).collect();
    let expected = [
        ("10.0.0.1:8001", 0, 3),
        ("10.0.0.2:8002", 0, 1),
        ("[::1]:8001", 0, 3),
        ("10.0.0.1:8003", 1, 1),
        ("[::1]:8003", 1, 1),
    ];
    assert_eq!(seen, expected);
    assert!(found.endpoints.iter().all(|endpoint| endpoint.host().is_some_and(|host| &**host == "app.test")));
    // the shortest of all that the list rests upon
    assert!(found.valid_for <= Duration::from_secs(5), "{:?}", found.valid_for);
}

/// As many questions as that go out at once.
#[tokio::test]
async fn services_on_many_hosts() {
    let server = DnsServer::start().await;
    let host = |n: u8| format!("host{n}.test");
    for n in 0..70 {
        server.add("_http._tcp.app.test", 30, Data::Service(0, 1, 8000, host(n)));
        server.set_addresses(&host(n), 30, &[IpAddr::from([10, 0, 0, n])]);
    }
    let source = DnsSource::new("_http._tcp.app.test", DnsRecords::Services, options(&server)).unwrap();
    assert_eq!(source.resolve().await.unwrap().endpoints.len(), 64, "and no more");
}

#[tokio::test]
async fn an_answer_that_does_not_fit_comes_over_tcp_and_a_list_has_a_bound() {
    let server = DnsServer::start().await;
    let many: Vec<IpAddr> = (0..2000_u32).map(|n| IpAddr::from((0x0a00_0000 + n).to_be_bytes())).collect();
    server.set_addresses("app.test", 60, &many);
    let mut options = options(&server);
    options.family = DnsFamily::V4;
    options.timeout = Duration::from_secs(5);
    let source = DnsSource::new("app.test", PORT, options).unwrap();
    let found = source.resolve().await.unwrap();
    assert_eq!((found.endpoints.len(), server.over_tcp()), (MAX_ENDPOINTS, 1));
    // which ones are left out does not change with the order of the records
    let again = source.resolve().await.unwrap();
    assert_eq!(names(&again), names(&found));
}

#[tokio::test]
async fn no_answer_is_an_error_and_no_records_are_an_empty_list() {
    let server = DnsServer::start().await;
    let source = DnsSource::new("app.test", PORT, options(&server)).unwrap();
    assert!(source.resolve().await.unwrap().endpoints.is_empty(), "there is no such name");
    server.set_addresses("app.test", 60, &[]);
    assert!(source.resolve().await.unwrap().endpoints.is_empty(), "it has no address");
    for mood in [Mood::Fails, Mood::Silent] {
        server.set_mood(mood);
        let error = source.resolve().await.unwrap_err().to_string();
        assert!(error.starts_with("app.test. A"), "{mood:?}: {error}");
    }
}

#[tokio::test]
async fn a_cluster_follows_the_records_and_keeps_the_last_list_while_there_is_none() {
    let server = DnsServer::start().await;
    server.set_addresses("app.test", 0, &ips(&["10.0.0.1"]));
    let mut options = options(&server);
    options.min_ttl = Duration::from_millis(20);
    let source = DnsSource::new("app.test", PORT, options).unwrap();
    let cluster = Cluster::discovered("app", ClusterOptions::default());
    let lists = Mutex::new(Vec::new());
    let apply = |endpoints: Vec<Endpoint>| {
        lists.lock().unwrap().push(endpoints.len());
        cluster.replace_endpoints(endpoints)
    };
    let steps = async {
        let asked = |more| server.wait_for_questions(server.questions().len() + more);
        asked(4).await;
        server.set_addresses("app.test", 0, &ips(&["10.0.0.1", "10.0.0.2"]));
        asked(6).await;
        assert_eq!(cluster.endpoints().len(), 2);
        server.forget("app.test");
        // the source rests for a second after it failed: both questions of one more attempt
        asked(4).await;
        assert_eq!(cluster.endpoints().len(), 2, "an empty list is a mistake of the source");
        server.set_mood(Mood::Fails);
        asked(2).await;
        assert_eq!(cluster.endpoints().len(), 2);
    };
    let followed = discovery::follow("app", source, Empty::Keep, apply);
    tokio::select! {
        _ = followed => unreachable!("it never ends"),
        () = steps => {}
        () = tokio::time::sleep(Duration::from_secs(30)) => panic!("{:?}", server.questions()),
    }
    assert_eq!(*lists.lock().unwrap(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_for_the_first_list() {
    let cluster = Cluster::discovered("app", ClusterOptions::default());
    let client = cluster.client();
    let get = || http::Request::get("/").body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
    let begun = tokio::time::Instant::now();
    let error = client.send(get()).await.unwrap_err();
    assert!(matches!(error, Error::NoEndpoint), "{error}");
    assert_eq!(begun.elapsed(), cluster.options().queue_timeout);
    cluster.replace_endpoints(Vec::new()).unwrap();
    assert!(matches!(client.send(get()).await, Err(Error::NoEndpoint)));
    assert_eq!(begun.elapsed(), cluster.options().queue_timeout, "an empty list is not waited upon");
}
