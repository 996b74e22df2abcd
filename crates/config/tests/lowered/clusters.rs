//! `[[cluster]]` and below it.

use super::*;

#[test]
fn every_key_of_a_cluster() {
    let plan = plan(FULL);
    let ms = Duration::from_millis;
    let [web, api, found, named] = &plan.clusters[..] else { panic!("{:?}", plan.clusters) };
    assert_eq!(web.endpoints, ["127.0.0.1:3000", "127.0.0.1:3001"].map(EndpointPlan::from));
    assert_eq!(web.options, Default::default());
    let file = DiscoveryPlan::File { path: "/run/portcullis/found.endpoints".into(), interval: ms(500) };
    assert_eq!((&found.discovery, found.endpoints.len()), (&Some(file), 0));
    let mut options = DnsOptions::default();
    options.servers = vec!["127.0.0.53:53".parse().unwrap()];
    (options.timeout, options.attempts, options.family) = (secs(1), 3, DnsFamily::V4);
    (options.min_ttl, options.max_ttl) = (secs(2), secs(30));
    let dns = DiscoveryPlan::Dns {
        name: "app.internal".to_owned(),
        records: DnsRecords::Addresses { port: 3000 },
        options,
    };
    assert_eq!((&named.discovery, named.endpoints.len()), (&Some(dns), 0));
    assert_eq!(api.name, "api");
    let mut endpoints = ["api.internal:8443", "[fd00::1]:8443", "unix:/run/api.sock"].map(EndpointPlan::from);
    endpoints[0].weight = 3;
    endpoints[0].zone = Some("eu-1a".to_owned());
    endpoints[1].priority = 1;
    assert_eq!(api.endpoints, endpoints);
    let tls = api.tls.as_ref().unwrap();
    assert_eq!((tls.server_name.as_deref(), tls.versions), (Some("api.internal"), Versions::Tls13Only));
    assert!(matches!(&tls.roots, UpstreamRoots::File(path) if path.ends_with("internal-ca.pem")));
    assert_eq!(tls.identity, Some(("certs/edge.pem".into(), "certs/edge-key.pem".into())));
    assert_eq!(api.proxy_header, Some(ProxyHeader::V2));
    let options = &api.options;
    assert_eq!((options.protocol, options.title_case), (Spoken::ByAlpn, true));
    assert_eq!((options.connect_timeout, options.tls_timeout), (secs(2), secs(3)));
    assert_eq!((options.response_timeout, options.read_timeout), (secs(90), secs(30)));
    assert_eq!((options.write_timeout, options.request_timeout), (secs(45), secs(50)));
    assert_eq!((options.total_timeout, options.continue_timeout), (Some(secs(600)), secs(2)));
    assert_eq!((options.queue_timeout, options.idle_timeout), (ms(500), secs(20)));
    assert_eq!((options.max_age, options.max_requests_per_connection), (Some(secs(3600)), Some(10_000)));
    assert_eq!((options.max_idle, options.min_idle, options.max_connections), (64, 2, 512));
    assert_eq!((options.max_requests, options.max_pending), (2000, 100));
    assert_eq!(options.max_head_bytes, 16 << 10);
    let http2 = &options.http2;
    assert_eq!((http2.max_streams, http2.stream_window, http2.connection_window), (50, 512 << 10, 2 << 20));
    assert_eq!((http2.ping_interval, http2.ping_timeout), (secs(20), secs(5)));
    let wanted = BalanceOptions::default()
        .with_policy(Policy::maglev())
        .with_hash_on(vec![
            HashKey::Header("x-tenant".parse().unwrap()),
            HashKey::Cookie("session".to_owned()),
            HashKey::Query("user".to_owned()),
            HashKey::ClientIp,
        ])
        .with_hash_balance_factor(150)
        .with_slow_start(secs(30))
        .with_panic_threshold(30)
        .with_zone(Some("eu-1a".into()))
        .with_zone_threshold(60);
    assert_eq!(options.balance, wanted);
    let sticky = api.sticky.as_ref().unwrap();
    assert_eq!(
        (sticky.name.as_deref(), sticky.secure, sticky.max_age),
        (Some("at"), true, Some(secs(8 * 3600)))
    );
    assert_eq!(sticky.key.unwrap()[..3], [0, 1, 2]);
    let wanted = OutlierOptions::default()
        .with_consecutive_failures(3)
        .with_consecutive_gateway(4)
        .with_consecutive_5xx(6)
        .with_base_ejection(secs(15))
        .with_max_ejection(secs(120))
        .with_max_ejected_percent(40);
    assert_eq!(options.outlier, wanted);
    let retry = &options.retry;
    assert_eq!((retry.attempts, retry.on_timeout, retry.replay_bytes), (2, false, 128 << 10));
    assert_eq!(retry.statuses, [500..=500, 502..=504]);
    assert_eq!((retry.budget_percent, retry.budget_min, retry.backoff), (10, 5, ms(50)));
    assert_eq!(options.hedge, Some(HedgeOptions::new(ms(300))));
    is_sound(plan.clone());
}

#[test]
fn every_key_of_health_checks() {
    let plan = plan(FULL);
    let health = plan.clusters[1].health.as_ref().unwrap();
    let Check::Http(http) = &health.check else { panic!("{health:?}") };
    assert_eq!((http.path.as_str(), http.method.as_str()), ("/healthz?deep=1", "GET"));
    assert_eq!(http.host.as_ref().unwrap(), "api.internal");
    assert_eq!(http.statuses, [200..=204, 302..=302]);
    assert_eq!(http.body_contains.as_deref(), Some(&b"ok"[..]));
    let ms = Duration::from_millis;
    assert_eq!((health.interval, health.unhealthy_interval), (secs(2), Some(secs(1))));
    assert_eq!((health.timeout, health.max_concurrent), (ms(500), 8));
    assert_eq!((health.healthy_threshold, health.unhealthy_threshold), (3, 2));
    assert_eq!(health.initial, InitialHealth::Unhealthy);

    let check = |keys: &str| {
        let text =
            format!("{LEAST}[[cluster]]\nname = \"h\"\nendpoints = [\"h:1\"]\n[cluster.health]\n{keys}");
        self::plan(&text).clusters.last().unwrap().health.as_ref().unwrap().check.clone()
    };
    let Check::Tcp(tcp) = check("check = \"tcp\"\nsend = \"PING\"\nexpect = \"+PONG\"") else { panic!() };
    assert_eq!((&tcp.send[..], &tcp.expect[..]), (&b"PING"[..], &b"+PONG"[..]));
    let Check::Grpc(grpc) = check("check = \"grpc\"\nservice = \"app.Orders\"") else { panic!() };
    assert_eq!(&*grpc.service, "app.Orders");
    let Check::Http(http) = check("method = \"HEAD\"") else { panic!() };
    assert_eq!(http.method.as_str(), "HEAD");
}
