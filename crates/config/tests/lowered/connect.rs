//! `[connect]`.

use portcullis_edge::{plan::ConnectPlan, proxy::ConnectTarget};

use super::{FULL, LEAST, plan, secs, warnings};

fn connect(text: &str) -> ConnectPlan {
    plan(&format!("{LEAST}[connect]\n{text}")).connect.expect("there is one")
}

#[test]
fn every_key_of_connect() {
    let connect = plan(FULL).connect.unwrap();
    for (target, allowed) in [
        ("db.internal:5432", true),
        ("a.b.example.com:8443", true),
        ("10.2.3.4:22", true),
        ("[fd00::1]:8099", true),
        ("example.com:443", false),
        ("db.internal:5433", false),
    ] {
        assert_eq!(connect.allow.allows(&ConnectTarget::parse(target).unwrap()), allowed, "{target}");
    }
    assert_eq!(connect.clients, ["10.1.0.0/16", "::1/128"].map(|network| network.parse().unwrap()));
    assert_eq!((connect.connect_timeout, connect.relay.idle_timeout), (secs(3), secs(1800)));
    assert_eq!(connect.max_tunnels, 50);
}

#[test]
fn connect_is_off_where_nothing_is_said() {
    assert!(plan(LEAST).connect.is_none());
    let least = connect("allow = [\"a:1\"]\nclients = [\"unix\", \"::1\"]");
    assert_eq!((least.connect_timeout, least.relay.idle_timeout), (secs(5), secs(3600)));
    assert_eq!(least.max_tunnels, 100);
    assert_eq!(least.clients, ["0.0.0.0/32", "::1/128"].map(|network| network.parse().unwrap()));
}

#[test]
fn what_is_probably_not_meant_in_connect() {
    let told = |text: &str| warnings(&format!("{LEAST}[connect]\nallow = [\"a:1\"]\n{text}")).join("|");
    assert_eq!(told("clients = [\"::1\"]"), "");
    assert!(told("clients = [\"10.0.0.0/8\", \"::/0\"]").contains("`::/0` lets everybody tunnel"));
    let many = told("clients = [\"::1\"]\nmax_tunnels = 1001");
    assert!(many.contains("more than that of `[limits]`, 1000"), "{many}");
    // a file without routes serves tunnels alone
    let alone = "[[listener]]\naddress = \"[::]:80\"\nprotocol = \"http\"\n[connect]\nallow = [\"a:1\"]\nclients = [\"::1\"]";
    assert_eq!(warnings(alone), [""; 0]);
}
