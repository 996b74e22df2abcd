//! What a file says is what the plan says.

#[path = "lowered/admission.rs"]
mod admission;
#[path = "lowered/cache.rs"]
mod cache;
#[path = "lowered/clusters.rs"]
mod clusters;
#[path = "lowered/connect.rs"]
mod connect;
#[path = "lowered/log.rs"]
mod log;
#[path = "lowered/quic.rs"]
mod quic;
#[path = "lowered/rates.rs"]
mod rates;
#[path = "lowered/shaping.rs"]
mod shaping;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use portcullis_config::{Config, LoadError, load, parse};
use portcullis_edge::{
    acme::{Directory, KeyKind},
    listener::{
        Keepalive, OverClient, OverLimit, Presence, ProxyProtocolOptions, TcpOptions, UnixOptions, UnixOwner,
    },
    middleware::security_headers::FrameOptions,
    plan::{
        AcmeStorage, CertificateSource, ClientAuthPlan, DiscoveryPlan, EndpointPlan, ExternalAccountPlan,
        HostTlsPlan, ListenOn, ListenerMode, LogOutput, MirrorPlan, OnDemandPlan, PlainHttp, Plan,
        ProxyHeader, ResumptionPlan, RewritePlan, RouteAction, UpstreamHost, UpstreamRoots,
        WithoutCertificate, Workers,
    },
    proxy::{
        EncodedSlash, FieldEdits, ForwardedStyle, PathMatch, PathRules, RouteMatch, ValueMatch,
        matcher::{Protocol, Scheme},
    },
    server::{HttpOptions, OnDisconnect},
    tls::{UnknownNames, Versions, ZeroRtt},
    upstream::{
        BalanceOptions, HashKey, HedgeOptions, OutlierOptions, Policy, Protocol as Spoken,
        discovery::{DnsFamily, DnsOptions, DnsRecords},
        health::{Check, InitialHealth},
    },
};

const FULL: &str = include_str!("../examples/full.toml");

/// The least that serves something.
const LEAST: &str = "[[listener]]\naddress = \"[::]:80\"\nprotocol = \"http\"\n\
                     [[cluster]]\nname = \"app\"\nendpoints = [\"app:80\"]\n[[route]]\ncluster = \"app\"\n";

fn config(text: &str) -> Config {
    parse("edge.toml", text).unwrap_or_else(|errors| panic!("{errors}"))
}

fn plan(text: &str) -> Plan {
    config(text).lower()
}

fn warnings(text: &str) -> Vec<String> {
    config(text).warnings().iter().map(ToString::to_string).collect()
}

/// But for the tier on disk, of which a program that is built without it tells.
fn is_sound(mut plan: Plan) {
    plan.cache.iter_mut().for_each(|cache| cache.disk = None);
    assert!(plan.check().is_ok(), "{:?}", plan.check());
}

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn secs(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[test]
fn the_full_example_brings_no_warning() {
    assert_eq!(warnings(FULL), [""; 0]);
    assert_eq!(config(FULL).warnings().render(true), "");
}

#[test]
fn every_key_of_the_process() {
    let plan = plan(FULL);
    assert_eq!(plan.workers, Workers::PerCore(2.try_into().ok()));
    assert_eq!(plan.drain_timeout, secs(30));
    assert_eq!(plan.drain_delay, secs(5));
    assert_eq!(plan.health_path.as_deref(), Some("/health"));
    assert_eq!(plan.limits.max_connections, Some(20_000));
    assert_eq!((plan.limits.over, plan.limits.headroom), (OverLimit::Wait, 64));
    let client = plan.limits.per_client.clone().unwrap();
    assert_eq!((client.max, client.ipv4_prefix, client.ipv6_prefix), (200, 32, 56));
    assert_eq!(client.over, OverClient::Delay { up_to: secs(3) });
    assert_eq!(client.exempt, ["192.0.2.0/24".parse().unwrap()]);
    assert_eq!(plan.limits.max_quic_connections, 20_000);
    assert_eq!(plan.limits.max_tunnels, 2_000);
    assert_eq!((plan.upgrades.http2, plan.upgrades.relay.idle_timeout), (true, secs(1800)));
    assert_eq!(plan.admin.map(|admin| admin.address.to_string()).as_deref(), Some("127.0.0.1:9090"));
    log::is_the_full_one(&plan.access_log);
    let trusted: Vec<_> = plan.trusted_proxies.iter().map(ToString::to_string).collect();
    assert_eq!(trusted, ["10.0.0.0/8", "fd00::/8", "127.0.0.1/32"]);
    assert_eq!((plan.forwarded.style, plan.forwarded.port), (ForwardedStyle::Both, true));
    assert!(plan.via.is_some());
    assert!(plan.cert_store.is_none());
}

#[test]
fn forwarded_fields_without_trust() {
    let plan = plan(&format!("[forwarded]\nheaders = \"none\"\n{LEAST}"));
    assert!(plan.trusted_proxies.is_empty() && plan.via.is_none());
    assert_eq!((plan.forwarded.style, plan.forwarded.port), (ForwardedStyle::None, false));
}

#[test]
fn every_key_of_a_listener() {
    let plan = plan(FULL);
    let [https, early, redirect, http, unix, systemd] = &plan.listeners[..] else {
        panic!("{:?}", plan.listeners)
    };
    assert_eq!(https.address.to_string(), "[::]:443");
    assert_eq!(https.mode, ListenerMode::Https { http3: true, plain_http: PlainHttp::Redirect });
    assert!(!https.only_v6);
    assert_eq!(https.tcp.backlog, 4096);
    assert!(https.v4_fallback && !https.shared);
    assert_eq!((https.max_connections, https.unix.backlog), (Some(15_000), Some(4096)));
    let keepalive = Keepalive::from(secs(300)).with_interval(secs(30)).with_retries(4);
    let tcp = TcpOptions::default()
        .with_backlog(4096)
        .with_keepalive(Some(keepalive))
        .with_recv_buffer(Some(256 << 10))
        .with_send_buffer(Some(256 << 10))
        .with_notsent_lowat(Some(128 << 10))
        .with_fast_open(Some(256))
        .with_defer_accept(Some(secs(5)))
        .with_user_timeout(Some(secs(30)))
        .with_congestion(Some("cubic"))
        .with_dscp(Some(10));
    assert_eq!(https.tcp, tcp);
    let shared = Some("secrets/ticket-keys".into());
    assert_eq!(https.tls.versions, Versions::Tls12AndUp);
    assert_eq!(https.tls.resumption, ResumptionPlan::Tickets { keys: shared });
    assert_eq!(https.tls.unknown_names, UnknownNames::Refuse);
    let lists = |name: &str| {
        (format!("certs/{name}-ca.pem").into(), vec![format!("certs/{name}-revoked.pem").into()])
    };
    let (ca, crls) = lists("clients");
    assert_eq!(https.tls.client_auth, ClientAuthPlan::Optional { ca, crls });
    let (ca, crls) = lists("staff");
    let names = ["admin.example.com", "*.admin.example.com"].map(str::to_owned).to_vec();
    assert_eq!(https.tls.hosts, [HostTlsPlan::new(names, ClientAuthPlan::Required { ca, crls })]);
    assert_eq!(https.tls.without_certificate, WithoutCertificate::Fail);
    assert_eq!((https.tls.handshakes_at_once, redirect.tls.handshakes_at_once), (8, 4));
    let zero_rtt = ZeroRtt::default().with_max_early_data(8 << 10).with_sessions(65_536);
    assert_eq!(early.tls.resumption, ResumptionPlan::ZeroRtt(zero_rtt));
    assert_eq!((https.udp.recv_buffer, https.udp.send_buffer), (4 << 20, 2 << 20));
    assert!(https.proxy_protocol.is_none());
    let proxy =
        ProxyProtocolOptions::default().with_trusted(["10.0.0.0/8".parse().unwrap()]).with_timeout(secs(2));
    assert_eq!(http.proxy_protocol, Some(proxy));
    assert_eq!(unix.address.to_string(), "unix:/run/portcullis/http.sock");
    let www = || UnixOwner::Name("www-data".to_owned());
    let options =
        UnixOptions::default().with_backlog(1024).with_mode(0o660).with_user(www()).with_group(www());
    assert_eq!(unix.unix, options);
    assert_eq!(systemd.address, ListenOn::Inherited("web".to_owned()));
    assert_eq!(https.http.h2_max_streams, 128);
    assert_eq!(https.quic.max_bidi_streams, 128);
    assert_eq!(https.http.max_headers, 80);
    assert_eq!(https.quic.max_fields, 80);
    assert_eq!(https.http.max_header_bytes, 32 << 10);
    assert_eq!(https.quic.max_field_section_size, 32 << 10);
    assert_eq!(https.quic.max_frame_size, 64 << 10);
    assert_eq!(redirect.mode, ListenerMode::RedirectToHttps { port: 443 });
    assert_eq!(http.mode, ListenerMode::Http);
    for listener in &plan.listeners {
        assert_eq!(listener.http.handshake_timeout, secs(5));
        assert_eq!(listener.quic.handshake_timeout, secs(5));
        assert_eq!(listener.quic.header_timeout, secs(10));
    }
    // the first one has times of its own
    for listener in &plan.listeners[1..] {
        assert_eq!(listener.http.header_timeout, secs(20));
        assert_eq!(listener.http.first_request_timeout, secs(20));
        assert_eq!(listener.http.idle_timeout, secs(60));
        assert_eq!(listener.quic.max_idle_timeout, secs(60));
    }
}

#[test]
fn values_of_a_listener_that_are_no_default() {
    let plan = plan(
        "[timeouts]\nheader = \"3s\"\n[[listener]]\naddress = \"[::1]:0\"\nprotocol = \"https\"\nhttp3 = false\nplain_http = \"refuse\"\n\
         only_v6 = true\nmax_header_size = \"1MiB\"\n[listener.tcp]\nnodelay = false\n\
         [[listener]]\naddress = \"0.0.0.0:0\"\nprotocol = \"redirect\"\nredirect_port = 8443\n\
         [[certificate]]\nself_signed = [\"localhost\"]\n",
    );
    let [https, redirect] = &plan.listeners[..] else { panic!("{:?}", plan.listeners) };
    assert_eq!(https.mode, ListenerMode::Https { http3: false, plain_http: PlainHttp::Refuse });
    assert!(https.only_v6);
    assert!(!https.tcp.nodelay);
    assert_eq!((https.http.header_timeout, https.quic.header_timeout), (secs(3), secs(3)));
    assert_eq!((https.quic.max_field_section_size, https.quic.max_frame_size), (1 << 20, 1 << 20));
    assert_eq!(redirect.mode, ListenerMode::RedirectToHttps { port: 8443 });
}

#[test]
fn every_key_of_http() {
    let http = &plan(FULL).listeners[0].http;
    let wanted = HttpOptions::default()
        .with_handshake_timeout(http.handshake_timeout)
        .with_max_headers(http.max_headers)
        .with_max_header_bytes(http.max_header_bytes)
        .with_h2_max_streams(http.h2_max_streams)
        .with_first_request_timeout(secs(25))
        .with_header_timeout(secs(15))
        .with_idle_timeout(secs(70))
        .with_release_after(secs(2))
        .with_send_timeout(secs(25))
        .with_min_send_rate(1024)
        .with_min_body_rate(2048)
        .with_body_grace(secs(20))
        .with_max_age(Some(secs(3600)))
        .with_max_requests(100_000)
        .with_linger(secs(1))
        .with_on_disconnect(OnDisconnect::Finish { max: 500, within: secs(120) })
        .with_title_case_headers(true)
        .with_h2c(false)
        .with_h2_stream_window(256 << 10)
        .with_h2_connection_window(4 << 20)
        .with_h2_max_resets(500)
        .with_h2_max_control_frames(5000)
        .with_h2_ping_interval(secs(60))
        .with_h2_ping_timeout(secs(20));
    assert_eq!(http, &wanted);
}

#[test]
fn every_key_of_certificates_and_routes() {
    let plan = plan(FULL);
    assert_eq!(
        plan.certificates,
        [
            CertificateSource::Files {
                cert: "certs/www.example.com/fullchain.pem".into(),
                key: "certs/www.example.com/privkey.pem".into()
            },
            CertificateSource::Directory("/etc/letsencrypt/live".into()),
            CertificateSource::SelfSigned {
                names: ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into()
            },
        ]
    );
    let routes: Vec<_> = plan
        .routes
        .iter()
        .map(|route| {
            let action = match &route.action {
                RouteAction::Forward { cluster } => format!("to {cluster}"),
                RouteAction::Redirect { to, status, .. } => format!("{} {to}", status.as_u16()),
                RouteAction::Respond { status, body } => format!("{} {body:?}", status.as_u16()),
                RouteAction::Split { .. } => "shares".to_owned(),
                RouteAction::Files(_) => "files".to_owned(),
                other => format!("{other:?}"),
            };
            format!("{} {} {action}", route.matches.host.as_deref().unwrap_or("any"), route.matches.path)
        })
        .collect();
    assert_eq!(
        routes,
        [
            "www.example.com prefix / to web",
            "www.example.com prefix /api to api",
            "www.example.com segments /users/{id}/photos/{*rest} shares",
            "www.example.com prefix /old-api to api",
            "any exact /version 200 \"{\\\"version\\\": 3}\"",
            "any regex /(?P<year>[0-9]{4})/(?P<name>[a-z-]+)\\.html 308 https://blog.example.com/{year}/{name}",
            "*.example.com prefix / 308 https://www.example.com/",
            "any prefix /robots.txt 200 \"User-agent: *\\nDisallow: /\\n\"",
            "www.example.com prefix /static files",
            "apps.example.com prefix / shares",
        ]
    );
}

#[test]
fn every_key_of_paths_and_routes() {
    let plan = plan(FULL);
    let paths = PathRules::default().with_normalise(true).with_merge_slashes(true);
    assert_eq!(plan.paths, paths.with_encoded_slash(EncodedSlash::Reject));
    let route = &plan.routes[2];
    let name = http::HeaderName::from_static;
    let value = http::HeaderValue::from_static;
    let matches = RouteMatch::new(Some("www.example.com"))
        .with_path(PathMatch::Segments("/users/{id}/photos/{*rest}".to_owned()))
        .with_method(http::Method::GET)
        .with_method(http::Method::PUT)
        .with_query("preview", ValueMatch::Present)
        .with_client("10.0.0.0/8".parse().unwrap())
        .with_client("fd00::/8".parse().unwrap())
        .with_protocol(Protocol::Http2)
        .with_protocol(Protocol::Http3)
        .with_scheme(Some(Scheme::Https))
        .with_priority(10);
    let mut found = route.matches.clone();
    let mut headers = std::mem::take(&mut found.headers);
    headers.sort_by_key(|(name, _)| name.as_str().to_owned());
    assert_eq!(found, matches);
    let wanted = [
        (name("x-debug"), ValueMatch::Absent),
        (name("x-tenant"), ValueMatch::Regex("[a-z]+".to_owned())),
        (name("x-version"), ValueMatch::Exact("2".to_owned())),
    ];
    assert_eq!(headers, wanted);
    let RouteAction::Split { clusters } = &route.action else { panic!("{route:?}") };
    assert_eq!(clusters, &[("web".to_owned(), 9), ("api".to_owned(), 1)]);
    assert_eq!(route.rewrite, Some(RewritePlan::Template("/photos/{id}/{rest}".to_owned())));
    assert_eq!(route.upstream_host, UpstreamHost::Value(value("photos.internal")));
    let request = FieldEdits::default()
        .remove(name("cookie"))
        .and_then(|edits| edits.set(name("x-user"), value("photos")))
        .and_then(|edits| edits.add(name("x-via"), value("edge")));
    assert_eq!(Ok(&route.request_fields), request.as_ref());
    let response = FieldEdits::default()
        .remove(name("server"))
        .and_then(|edits| edits.remove(name("x-powered-by")))
        .and_then(|edits| edits.set(name("cache-control"), value("no-store")))
        .and_then(|edits| edits.add(name("vary"), value("x-version")));
    assert_eq!(Ok(&route.response_fields), response.as_ref());
    let mut mirror = MirrorPlan::new("api");
    mirror.options = mirror.options.with_percent(10).with_max_body(32 << 10).with_max_in_flight(32);
    assert_eq!(route.mirror, Some(mirror));
    let prefix = RewritePlan::Prefix { from: Some("/old-api".to_owned()), to: "/v1".to_owned() };
    assert_eq!(plan.routes[3].rewrite, Some(prefix));
    assert_eq!(plan.routes[4].content_type, Some(value("application/json")));
    let redirect = &plan.routes[5].action;
    assert!(matches!(redirect, RouteAction::Redirect { keep_query: Some(true), .. }), "{redirect:?}");
    is_sound(plan);
}

#[test]
fn every_key_of_acme() {
    let acme = plan(FULL).acme.expect("a certificate is to be issued");
    let AcmeStorage::Directory(storage) = &acme.storage else { panic!("{acme:?}") };
    assert_eq!(storage, &PathBuf::from("/var/lib/portcullis/acme"));
    let options = &acme.options;
    assert_eq!(options.directory, Directory::LetsEncryptStaging);
    assert_eq!(options.contacts, ["admin@example.com"]);
    assert_eq!((options.key, options.profile.as_deref()), (KeyKind::P384, Some("shortlived")));
    assert_eq!(options.certificates, [["shop.example.com", "*.shop.example.com"]]);
    assert_eq!((options.poll, options.retry_min, options.retry_max), (secs(60), secs(120), secs(3 * 3600)));
    assert_eq!(acme.roots, Some("certs/acme-roots.pem".into()));
    assert_eq!(acme.external_account, Some(ExternalAccountPlan::new("key-1", "secrets/eab-key")));
    let hook = acme.dns_hook.expect("dns-01");
    assert_eq!(hook.program, PathBuf::from("/usr/local/bin/set-record"));
    assert_eq!(hook.args, ["--zone", "example.com"]);
    assert_eq!((hook.timeout, hook.propagation), (secs(120), secs(10)));
    assert_eq!(acme.on_demand, None);

    let least = format!("{LEAST}[[certificate]]\nacme = [\"www.example.com\"]\n");
    let acme = plan(&least).acme.expect("without a section, by Let's Encrypt");
    assert_eq!(acme.options.directory, Directory::LetsEncrypt);
    assert_eq!(acme.options.certificates, [["www.example.com"]]);

    let on_demand = "[acme.on_demand]\nask = \"http://127.0.0.1:3000/may\"\nmax_issued = 20\nper = \"1h\"\nmax_names = 5000\nwait = \"5s\"\n";
    let found = plan(&format!("{LEAST}{on_demand}")).acme.and_then(|acme| acme.on_demand).unwrap();
    let mut wanted = OnDemandPlan::new("http://127.0.0.1:3000/may");
    (wanted.max_issued, wanted.per) = (20, secs(3600));
    (wanted.max_names, wanted.wait) = (5000, secs(5));
    assert_eq!(found, wanted);

    assert!(plan(LEAST).acme.is_none());
    let idle = format!("{LEAST}[acme]\n");
    assert!(warnings(&idle)[0].contains("`[acme]` does nothing"), "{:?}", warnings(&idle));
    assert!(plan(&idle).acme.is_none());
}

#[test]
fn statuses_of_routes() {
    let text = format!(
        "{LEAST}[[route]]\npath = \"/a\"\nrespond = \"\"\n[[route]]\npath = \"/b\"\nrespond = \"gone\"\nstatus = 410\n\
         [[route]]\npath = \"/c\"\nredirect = \"http://a/\"\nstatus = 302\n\
         [[route]]\npath = \"/d\"\nredirect = \"http://a/\"\n"
    );
    let statuses: Vec<_> = plan(&text)
        .routes
        .iter()
        .filter_map(|route| match &route.action {
            RouteAction::Redirect { status, .. } | RouteAction::Respond { status, .. } => {
                Some(status.as_u16())
            }
            _ => None,
        })
        .collect();
    assert_eq!(statuses, [200, 410, 302, 308]);
}

#[test]
fn every_key_of_the_layers() {
    let plan = plan(FULL);
    let headers = plan.chain.security_headers.own().cloned().expect("the table is there");
    assert!(headers.nosniff);
    assert_eq!(headers.frame_options, Some(FrameOptions::Deny));
    assert_eq!(headers.referrer_policy.unwrap(), "no-referrer");
    assert_eq!(headers.hsts, Some(secs(180 * 86_400)));
    assert!(headers.hsts_include_subdomains);
    assert_eq!(headers.content_security_policy.unwrap(), "default-src 'self'");
    assert_eq!(headers.permissions_policy.unwrap(), "camera=(), microphone=()");
    assert_eq!(headers.cross_origin_opener_policy.unwrap(), "same-origin-allow-popups");
    assert!(headers.replace);
    let rate = &plan.chain.rate_limit.own().expect("the table is there").rules[0];
    assert_eq!((rate.requests.get(), rate.per, rate.burst.get()), (100, secs(1), 50));
    assert_eq!(rate.max_keys, 100_000);
    let filter = plan.chain.filter.own().expect("the table is there");
    assert_eq!(filter.options.deny, ["/.git", "/wp-admin"]);
    assert_eq!(filter.options.rules.len(), 3);
    let cache = plan.cache.expect("the table is there");
    assert_eq!((cache.max_bytes, cache.max_fill_bytes, cache.max_variants), (512 << 20, 128 << 20, 8));
    let disk = cache.disk.expect("the table is there");
    assert_eq!((disk.path.as_path(), disk.max_bytes), (Path::new("/var/cache/portcullis"), 20 << 30));
    cache::rules(plan.chain.cache.own().expect("the table is there"));

    let plan = self::plan(&format!(
        "{LEAST}[security_headers]\nhsts = \"off\"\nnosniff = false\nframe_options = \"off\"\n"
    ));
    let headers = plan.chain.security_headers.own().cloned().unwrap();
    assert_eq!((headers.hsts, headers.nosniff, headers.frame_options), (None, false, None));
}

#[test]
fn what_is_left_out_is_the_default_of_the_plan() {
    let plan = plan(LEAST);
    let default = Plan::default();
    assert_eq!(plan.workers, default.workers);
    assert_eq!(plan.drain_timeout, default.drain_timeout);
    assert_eq!(plan.drain_delay, default.drain_delay);
    assert_eq!(plan.health_path, default.health_path);
    assert_eq!(plan.limits, default.limits);
    assert_eq!(plan.access_log, default.access_log);
    assert_eq!(plan.admin, default.admin);
    assert_eq!(plan.chain, default.chain);
    assert!(plan.cache.is_none() && plan.trusted_proxies.is_empty() && plan.certificates.is_empty());
}

#[test]
fn forms_of_the_process() {
    let workers = |text: &str| plan(&format!("{text}\n{LEAST}")).workers;
    assert_eq!(workers("workers = \"work-stealing\""), Workers::WorkStealing(None));
    assert_eq!(workers("workers = \"work-stealing\"\nthreads = 3"), Workers::WorkStealing(3.try_into().ok()));
    assert_eq!(workers("threads = 3"), Workers::PerCore(3.try_into().ok()));
    assert_eq!(plan(&format!("health_path = \"\"\n{LEAST}")).health_path, None);
    // dotted keys and inline tables are the same file
    let inline = "limits.max_tunnels = 7\nlistener = [{ address = \"[::]:80\", protocol = \"http\" }]\n\
                  route = [{ respond = \"x\" }]\n";
    assert_eq!(plan(inline).limits.max_tunnels, 7);
}

#[test]
fn upgrades() {
    let upgrades = |text: &str| plan(&format!("{LEAST}[upgrades]\n{text}")).upgrades;
    assert!(!upgrades("").protocols.is_empty() && upgrades("").http2);
    assert!(upgrades("protocols = []").protocols.is_empty());
    let some = upgrades("protocols = [\"IRC/6.9\", \"websocket\"]\nhttp2 = false\nidle_timeout = \"5m\"");
    let shown = format!("{:?}", some.protocols);
    assert!(shown.contains("IRC/6.9") && shown.contains("websocket"), "{shown}");
    assert_eq!((some.http2, some.relay.idle_timeout), (false, secs(300)));
}

#[test]
fn what_is_doubtful_is_a_warning() {
    let cluster = "[[cluster]]\nname = \"spare\"\nendpoints = [\"app:81\"]\n";
    let v6_and_v4 = "[[listener]]\naddress = \"[::]:443\"\nprotocol = \"https\"\nonly_v6 = true\n\
                     [[listener]]\naddress = \"0.0.0.0:443\"\nprotocol = \"redirect\"\n\
                     [[certificate]]\nself_signed = [\"localhost\"]\n";
    for (added, line, warning) in [
        (cluster, 2, "no route leads to the cluster \"spare\""),
        (v6_and_v4, 2, "IPv4 users get no HTTPS: port 443 is HTTPS on IPv6 only, and 0.0.0.0:443 (line 5)"),
        ("[admin]\naddress = \"0.0.0.0:9090\"\n", 2, "the admin service is not on loopback"),
        ("[forwarded]\ntrusted = [\"::/0\"]\n", 2, "trusts everybody"),
        ("[filter]\ndeny = [\"/\"]\n", 2, "`/` denies every path"),
        ("[[certificate]]\ndirectory = \"certs\"\n", 1, "the certificate is not used"),
    ] {
        let warnings = warnings(&format!("{added}{LEAST}"));
        assert_eq!(warnings.len(), 1, "{warnings:#?}");
        assert!(
            warnings[0].starts_with(&format!("{line}:")) && warnings[0].contains(warning),
            "{warnings:#?}"
        );
    }
    let no_route = config("[[listener]]\naddress = \"[::]:80\"\nprotocol = \"http\"\n");
    assert_eq!(no_route.warnings().len(), 1);
    assert!(no_route.warnings().render(false).starts_with("warning: the file has no `[[route]]`"));
    assert_eq!(warnings("[[listener]]\naddress = \"[::]:80\"\nprotocol = \"redirect\"\n"), [""; 0]);
    assert_eq!(warnings(&format!("[admin]\naddress = \"[::ffff:127.0.0.1]:1\"\n{LEAST}")), [""; 0]);
}

#[test]
fn load_takes_paths_from_the_directory_of_the_file() {
    let directory = Scratch::new("paths");
    let file = directory.0.join("edge.toml");
    fs::write(
        &file,
        format!("[access_log]\noutput = \"log/a.log\"\n{FULL}").replace("output = \"stdout\"", ""),
    )
    .unwrap();
    // two [access_log] tables: an error with the name of the file in it
    let error = load(&file).unwrap_err();
    assert!(error.errors().is_some_and(|errors| errors.len() > 0));
    assert!(error.render(false).contains("edge.toml:"), "{error}");

    let relative = FULL.replace("output = \"stdout\"", "output = \"log/a.log\"");
    fs::write(&file, relative.replace("/run/portcullis/found.endpoints", "found.endpoints")).unwrap();
    let plan = load(&file).unwrap().lower();
    paths_of_clusters(&plan, &directory.0);
    assert_eq!(plan.access_log[0].output, LogOutput::File(directory.0.join("log/a.log")));
    let [CertificateSource::Files { cert, .. }, CertificateSource::Directory(absolute), _] =
        &plan.certificates[..]
    else {
        panic!("{:?}", plan.certificates)
    };
    assert_eq!(*cert, directory.0.join("certs/www.example.com/fullchain.pem"));
    assert_eq!(*absolute, PathBuf::from("/etc/letsencrypt/live"));
}

fn paths_of_clusters(plan: &Plan, directory: &Path) {
    let Some(tls) = &plan.clusters[1].tls else { panic!("{plan:?}") };
    assert_eq!(tls.roots, UpstreamRoots::File(directory.join("certs/internal-ca.pem")));
    let pair = ["certs/edge.pem", "certs/edge-key.pem"].map(|path| directory.join(path));
    assert_eq!(tls.identity, Some(pair.into()));
    let Some(DiscoveryPlan::File { path, .. }) = &plan.clusters[2].discovery else { panic!("{plan:?}") };
    assert_eq!(*path, directory.join("found.endpoints"));
}

#[test]
fn load_says_why_it_could_not_read() {
    let directory = Scratch::new("broken");
    let file = directory.0.join("edge.toml");
    assert!(matches!(load(&file), Err(LoadError::Read { .. })));
    assert!(load(&file).unwrap_err().render(true).starts_with("cannot read "));

    fs::write(&file, b"# \xc3\xa9\nworkers = \"\xff\"\n").unwrap();
    let error = load(&file).unwrap_err();
    let found = error.errors().and_then(|errors| errors.iter().next()).unwrap();
    assert_eq!((found.line, found.column), (2, 12));
    assert!(found.message.contains("not UTF-8"));

    fs::File::create(&file).unwrap().set_len(portcullis_config::MAX_FILE_BYTES + 1).unwrap();
    assert!(matches!(load(&file), Err(LoadError::TooLarge { .. })));
}

/// A directory that goes away with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("portcullis-config-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("the temporary directory is writable");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_unix_socket_has_no_http3_and_trusts_who_may_connect() {
    let text = LEAST.replace("[::]:80", "unix:web.sock").replace("\"http\"", "\"https\"")
        + "[[certificate]]\nself_signed = [\"localhost\"]\n";
    let text =
        text.replacen("\n[[cluster]]", "\n[listener.proxy_protocol]\nrequired = false\n[[cluster]]", 1);
    let plan = plan(&text);
    let listener = &plan.listeners[0];
    assert_eq!(listener.mode, ListenerMode::Https { http3: false, plain_http: PlainHttp::Redirect });
    let proxy = ProxyProtocolOptions::default().with_trust_unix(true).with_presence(Presence::Optional);
    assert_eq!(listener.proxy_protocol, Some(proxy));
}

#[test]
fn limits_that_are_not_given_are_found_at_start() {
    let plan = plan(LEAST);
    assert_eq!((plan.limits.max_connections, plan.limits.per_client), (None, None));
}
