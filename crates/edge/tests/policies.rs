//! A pattern of hosts means the same to routes and to TLS policies: whoever reaches a route for it has met its policy.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::sync::Arc;

use portcullis_edge::{
    proxy::Router,
    tls::{CertStore, ClientAuth, HostPolicy, ServerOptions, ServerTls},
};

/// Every name of up to five labels that these make, in several spellings.
fn hosts() -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let mut last = vec!["com".to_owned()];
    for _ in 0..4 {
        let longer =
            last.iter().flat_map(|name| ["a", "b", "example"].map(|label| format!("{label}.{name}")));
        last = longer.collect();
        all.extend(last.iter().cloned());
    }
    let spelt: Vec<_> = all
        .iter()
        .flat_map(|name| [name.to_ascii_uppercase(), format!("{name}."), format!("{name}:443")])
        .collect();
    all.extend(spelt);
    all
}

#[test]
fn routes_and_policies_agree_on_patterns() {
    for pattern in ["a.example.com", "*.example.com", "*.a.example.com", "example.com", "*.com", "*.b.a.com"]
    {
        let routes = Router::builder().route(Some(pattern), "/", ()).unwrap().build().unwrap();
        let options = ServerOptions::default().with_host(HostPolicy::new([pattern], ClientAuth::None));
        let tls = ServerTls::new(Arc::new(CertStore::new()), &options).unwrap();
        for host in hosts() {
            let is_routed = routes.find(&host, "/").is_some();
            // what the layer before the routes gives: the host without its port
            let bare = host.strip_suffix(":443").unwrap_or(&host);
            let has_policy = !tls.allows(None, bare);
            assert_eq!(is_routed, has_policy, "{pattern} {host}");
        }
    }
}
