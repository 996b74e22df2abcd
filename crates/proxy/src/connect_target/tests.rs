use proptest::prelude::*;

use super::*;

fn target(text: &str) -> ConnectTarget {
    ConnectTarget::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn rules(texts: &[&str]) -> ConnectRules {
    texts.iter().map(|text| text.parse::<ConnectRule>().unwrap_or_else(|e| panic!("{text}: {e}"))).collect()
}

#[test]
fn rfc9112_3_2_3_what_is_a_target() {
    for (text, shown) in [
        ("a.example:443", "a.example:443"),
        ("A.Example.:1", "a.example:1"),
        ("localhost:65535", "localhost:65535"),
        ("192.0.2.1:22", "192.0.2.1:22"),
        ("[2001:DB8::1]:443", "[2001:db8::1]:443"),
        ("[::ffff:127.0.0.1]:80", "127.0.0.1:80"),
        ("x_y:9", "x_y:9"),
        ("a.0x7g:9", "a.0x7g:9"),
        ("1.2.3.4.example:00443", "1.2.3.4.example:443"),
    ] {
        assert_eq!(target(text).to_string(), shown, "{text}");
    }
}

#[test]
fn rfc9110_9_3_6_what_is_none() {
    use ConnectTargetError as E;
    let long_label = format!("{}.example:443", "a".repeat(64));
    let long_name = format!("{}e:443", "abc.".repeat(64));
    for (text, error) in [
        ("", E::Invalid),
        ("a.example", E::NoPort),
        ("a.example:", E::NoPort),
        ("[::1]", E::NoPort),
        ("a.example:0", E::Invalid),
        ("a.example:65536", E::Invalid),
        ("a.example:+80", E::Invalid),
        ("a.example:http", E::Invalid),
        ("a.example:443:443", E::Invalid),
        (":443", E::Invalid),
        ("user@a.example:443", E::Invalid),
        ("user:pass@a.example:443", E::Invalid),
        ("a.example:443@b.example:443", E::Invalid),
        ("http://a.example:443", E::Invalid),
        ("a.example:443/", E::Invalid),
        ("/a:443", E::Invalid),
        ("*:443", E::Invalid),
        ("a..b:443", E::Invalid),
        ("a,b:443", E::Invalid),
        ("a%2eb:443", E::Invalid),
        ("a b:443", E::Invalid),
        ("ä.example:443", E::Invalid),
        ("::1:443", E::Invalid),
        ("[::1%25lo]:443", E::Invalid),
        ("[::1:443", E::Invalid),
        ("[v1.a]:443", E::Invalid),
        ("[127.0.0.1]:443", E::Invalid),
        // what getaddrinfo would take for 127.0.0.1
        ("127.1:80", E::BadHost),
        ("127.0.0.01:80", E::BadHost),
        ("0177.0.0.1:80", E::BadHost),
        ("0x7f.0.0.1:80", E::BadHost),
        ("2130706433:80", E::BadHost),
        ("0x7f000001:80", E::BadHost),
        ("0x7F000001.:80", E::BadHost),
        ("127.0x1:80", E::BadHost),
        ("0x:80", E::BadHost),
        ("127.0.0.1.:80", E::BadHost),
        ("1.2.3.4.5:80", E::BadHost),
        (long_label.as_str(), E::BadHost),
        (long_name.as_str(), E::Invalid),
    ] {
        assert_eq!(ConnectTarget::parse(text), Err(error), "{text}");
    }
}

#[test]
fn what_the_list_lets_through() {
    let rules = rules(&[
        "db.internal:5432",
        "*.example.com:443,8443",
        "10.0.0.0/8:22",
        "192.0.2.7:8000-8002",
        "[2001:db8::/32]:443",
        "[::1]:9",
    ]);
    for (text, allowed) in [
        ("db.internal:5432", true),
        ("DB.internal.:5432", true),
        ("db.internal:5433", false),
        ("x.db.internal:5432", false),
        ("xdb.internal:5432", false),
        ("a.example.com:443", true),
        ("b.a.example.com:8443", true),
        ("example.com:443", false),
        ("aexample.com:443", false),
        ("example.com.evil.test:443", false),
        ("a.example.com:80", false),
        ("10.1.2.3:22", true),
        ("11.1.2.3:22", false),
        ("10.1.2.3:23", false),
        ("[::ffff:10.1.2.3]:22", true),
        ("[::ffff:11.1.2.3]:22", false),
        ("[64:ff9b::a01:203]:22", false),
        // a name is not what it looks like
        ("10.1.2.3.example:22", false),
        ("192.0.2.7:7999", false),
        ("192.0.2.7:8000", true),
        ("192.0.2.7:8002", true),
        ("192.0.2.7:8003", false),
        ("192.0.2.8:8000", false),
        ("[2001:db8:1::1]:443", true),
        ("[2001:db9::1]:443", false),
        ("[::1]:9", true),
        ("127.0.0.1:9", false),
    ] {
        assert_eq!(rules.allows(&target(text)), allowed, "{text}");
    }
    assert!(!ConnectRules::default().allows(&target("a.example:443")));
}

/// SSRF through DNS: an allowed name may lead to the machine's own addresses only where the address is allowed too.
#[test]
fn addresses_of_the_machine_take_a_rule_of_their_own() {
    let rules = rules(&["*.example.com:1-65535", "127.0.0.1:80", "[fe80::/10]:22", "169.254.169.254:80"]);
    for (address, port, allowed) in [
        ("192.0.2.1", 443, true),
        ("10.0.0.1", 443, true),
        ("2001:db8::1", 443, true),
        ("fd00::1", 443, true),
        ("127.0.0.1", 443, false),
        ("127.0.0.1", 80, true),
        ("::ffff:127.0.0.1", 443, false),
        ("::ffff:127.0.0.1", 80, true),
        ("127.255.255.254", 80, false),
        ("0.0.0.0", 80, false),
        ("0.1.2.3", 80, false),
        ("169.254.169.254", 443, false),
        ("169.254.169.254", 80, true),
        ("224.0.0.1", 80, false),
        ("255.255.255.255", 80, false),
        ("::", 443, false),
        ("::1", 443, false),
        ("::ffff:169.254.1.1", 443, false),
        ("::127.0.0.1", 80, false),
        ("64:ff9b::7f00:1", 80, false),
        ("64:ff9b::c000:201", 80, true),
        ("fe80::1", 443, false),
        ("fe80::1", 22, true),
        ("ff02::1", 443, false),
    ] {
        assert_eq!(rules.allows_address(address.parse().unwrap(), port), allowed, "{address} {port}");
    }
}

#[test]
fn rules_as_they_are_written() {
    for (text, shown) in [
        ("a:1", "a:1"),
        ("DB.Internal:5432", "db.internal:5432"),
        ("*.Example.com:443", "*.example.com:443"),
        ("*.internal:443", "*.internal:443"),
        ("192.0.2.1:22", "192.0.2.1:22"),
        ("192.0.2.1/32:22", "192.0.2.1:22"),
        ("10.0.0.0/8:22", "10.0.0.0/8:22"),
        ("[2001:DB8::1]:443", "[2001:db8::1]:443"),
        ("[fc00::/7]:443,1-2,8443-8443", "[fc00::/7]:443,1-2,8443"),
        ("a:1-65535", "a:1-65535"),
    ] {
        let rule: ConnectRule = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(rule.to_string(), shown);
        assert_eq!(shown.parse(), Ok(rule));
    }
}

#[test]
fn what_would_be_an_open_proxy_is_no_rule() {
    use ConnectRuleError as E;
    let many = format!("a:{}", "1,".repeat(MAX_PORT_RANGES) + "1");
    for (text, error) in [
        ("*", E::EveryHost),
        ("*:443", E::EveryHost),
        ("*:*", E::EveryHost),
        ("*.:443", E::EveryHost),
        ("0.0.0.0/0:443", E::EveryHost),
        ("[::/0]:443", E::EveryHost),
        ("128.0.0.0/1:443", E::TooLarge),
        ("[2000::/3]:443", E::TooLarge),
        ("[::ffff:0:0/96]:443", E::Mapped),
        ("[::ffff:10.0.0.1]:443", E::Mapped),
        ("*.com:443", E::TopLevel("com".into())),
        ("a.example:*", E::EveryPort),
        ("a.example:", E::EveryPort),
        ("a.example", E::NoPorts("a.example".into())),
        ("10.0.0.0/8", E::NoPorts("10.0.0.0/8".into())),
        ("[::1]", E::NoPorts("[::1]".into())),
        ("", E::BadHost),
        (":443", E::BadHost),
        ("a*.example:443", E::BadHost),
        ("a.*.example:443", E::BadHost),
        ("*.*.example:443", E::BadHost),
        ("https://a.example:443", E::BadHost),
        ("u@a.example:443", E::BadHost),
        ("a.example/x:443", E::BadHost),
        ("a.example.:443", E::BadHost),
        ("a..b:443", E::BadHost),
        ("127.1:443", E::BadHost),
        ("[10.0.0.0/8]:443", E::BadHost),
        ("10.0.0.1/8:443", E::HostBits("10.0.0.0/8".parse().unwrap())),
        ("::1:443", E::BadHost),
        ("fd00::/8:443", E::Brackets),
        ("[fd00::]/8:443", E::Brackets),
        ("2001:db8::1:443", E::Brackets),
        ("a:0", E::BadPorts),
        ("a:65536", E::BadPorts),
        ("a:2-1", E::BadPorts),
        ("a:1-", E::BadPorts),
        ("a:+1", E::BadPorts),
        ("a:1,,2", E::BadPorts),
        ("a:1 ", E::BadPorts),
        (many.as_str(), E::ManyPorts),
    ] {
        let found = text.parse::<ConnectRule>();
        // without brackets either says enough
        let brackets = text == "::1:443" && found == Err(E::Brackets);
        assert!(brackets || found == Err(error.clone()), "{text}: {found:?}, wanted {error:?}");
    }
}

#[test]
fn the_list_has_a_bound() {
    let rule = |number: usize| format!("a{number}.example:443").parse::<ConnectRule>().unwrap();
    let rules: ConnectRules = (0..=ConnectRules::MAX).map(rule).collect();
    let last = ConnectRules::MAX;
    assert!(rules.allows(&target(&format!("a{}.example:443", last - 1))));
    assert!(!rules.allows(&target(&format!("a{last}.example:443"))));
}

proptest! {
    #[test]
    fn nothing_panics(text in "\\PC{0,40}", like in "[\\[\\]*./:,0-9a-fx@-]{0,24}") {
        for text in [&text, &like] {
            let _ = text.parse::<ConnectRule>();
            if let Ok(target) = ConnectTarget::parse(text) {
                prop_assert_eq!(ConnectTarget::parse(&target.to_string()), Ok(target));
            }
        }
    }

    /// What the rule for a domain allows ends in it, label for label.
    #[test]
    fn a_wildcard_is_for_names_below(name in "([a-c]{1,2}\\.){0,3}[a-c]{1,2}", port in 1_u16..4) {
        let rules = rules(&["*.a.b:1-2"]);
        let labels: Vec<_> = name.split('.').collect();
        let below = labels.len() > 2 && labels.ends_with(&["a", "b"]);
        let target = target(&format!("{name}:{port}"));
        prop_assert_eq!(rules.allows(&target), below && port <= 2);
    }

    /// An IPv4 address is judged alike however it is written.
    #[test]
    fn a_mapped_address_is_the_same(bits: u32, prefix in 8_u8..=32) {
        let address = Ipv4Addr::from(bits);
        let network = ipnet::Ipv4Net::new(Ipv4Addr::from(bits ^ 0x0100_0100), prefix).unwrap().trunc();
        let rules = rules(&[&format!("{network}:1")]);
        let plain = rules.allows(&target(&format!("{address}:1")));
        let mapped = rules.allows(&target(&format!("[{}]:1", address.to_ipv6_mapped())));
        prop_assert_eq!(plain, network.contains(&address));
        prop_assert_eq!(plain, mapped);
        prop_assert_eq!(
            rules.allows_address(address.into(), 1),
            rules.allows_address(address.to_ipv6_mapped().into(), 1)
        );
    }
}
