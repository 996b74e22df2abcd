//! REFERENCE.md and the full example know the same keys as the code, and the defaults they name are true.

use portcullis_config::parse;

const REFERENCE: &str = include_str!("../REFERENCE.md");
const FULL: &str = include_str!("../examples/full.toml");

/// Every section once, with no more than it needs.
const SECTIONS: &str = r#"[limits]
[reload]
[upgrade]
[admin]
address = "127.0.0.1:9090"
[access_log]
[forwarded]
trusted = ["::1"]
[upgrades]
[connect]
allow = ["db.internal:5432"]
clients = ["::1"]
[errors]
[quic]
server_id = "0a01"
[qlog]
directory = "/tmp"
clients = ["192.0.2.7"]
[timeouts]
[[listener]]
address = "[::]:443"
protocol = "https"
[listener.http]
[listener.tcp]
[listener.udp]
[listener.proxy_protocol]
trusted = ["::1"]
[listener.quic]
[listener.tls]
[[listener.tls.host]]
names = ["a.example.com"]
[[certificate]]
self_signed = ["localhost"]
[acme]
[acme.on_demand]
ask = "http://ask.test/"
[paths]
[[route]]
cluster = "app"
[[cluster]]
name = "app"
endpoints = ["app:80"]
[cluster.health]
[request_id]
[maintenance]
[body_limit]
max_size = "1MiB"
[deadline]
head = "30s"
[compression]
[request_decompression]
[concurrency]
max = 10
[security_headers]
[rate_limit]
requests = 100
[rate_limit_store]
url = "redis://10.0.0.5:6379"
[filter]
[[filter.rule]]
action = "deny"
[cors]
origins = ["http://a.test"]
[csrf]
[basic_auth]
users = "users.txt"
[jwt]
algorithms = ["RS256"]
public_keys = "keys.pem"
[forward_auth]
cluster = "app"
path = "/verify"
[cache]
[cache.disk]
path = "/var/cache/portcullis"
"#;

/// What of them goes with HTTPS alone.
const TLS: &str = "[listener.quic]\n[listener.tls]\n[[listener.tls.host]]\nnames = [\"a.example.com\"]\n";

/// What of a route goes with `files` alone, and has a default.
const FILES: [&str; 3] = ["index", "hidden_files", "precompressed"];

struct Row<'a> {
    section: &'a str,
    key: &'a str,
    default: &'a str,
}

fn rows() -> Vec<Row<'static>> {
    let mut section = "";
    let mut rows = Vec::new();
    for line in REFERENCE.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            section = title.trim_matches('`');
        }
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        if let [_, key, _, default, _, _] = cells[..]
            && let Some(key) = key.strip_prefix('`').and_then(|key| key.strip_suffix('`'))
        {
            rows.push(Row { section, key, default });
        }
    }
    rows
}

/// [`SECTIONS`], with what this one goes with.
fn base(section: &str) -> String {
    let found = match section {
        "[cluster.file]" => "path = \"/run/app.endpoints\"",
        "[cluster.dns]" => "name = \"app.test\"\nport = 80",
        _ => "",
    };
    if !found.is_empty() {
        let table = format!("{section}\n{found}\n[cluster.health]");
        return SECTIONS.replace("endpoints = [\"app:80\"]\n", "").replace("[cluster.health]", &table);
    }
    if section != "[listener.unix]" {
        return SECTIONS.to_owned();
    }
    SECTIONS
        .replace("[::]:443", "unix:/run/edge.sock")
        .replace("[listener.quic]\n", "")
        .replace("[listener.tcp]\n[listener.udp]", section)
}

/// The same with a line in the section.
fn with(section: &str, line: &str) -> String {
    match section {
        "Top level" => format!("{line}\n{SECTIONS}"),
        section => base(section).replacen(&format!("{section}\n"), &format!("{section}\n{line}\n"), 1),
    }
}

/// The keys that the code knows in a section, from its own error.
fn known(section: &str) -> Vec<String> {
    let errors = parse("r.toml", &with(section, "zzzzzzzz = 1")).expect_err("an unknown key");
    let hint = errors.iter().find_map(|e| e.message.contains("zzzzzzzz").then(|| e.hint.clone())).flatten();
    let hint = hint.unwrap_or_else(|| panic!("{section}: {errors}"));
    let list = hint.split_once("known keys: ").unwrap_or_else(|| panic!("{hint}")).1;
    list.split(", ").map(|key| key.trim_matches('`').to_owned()).collect()
}

#[test]
fn the_reference_names_every_key_and_no_other() {
    let rows = rows();
    let mut sections: Vec<_> = rows.iter().map(|row| row.section).collect();
    sections.dedup();
    let tables: Vec<_> =
        sections.iter().map(|s| s.trim_matches(['[', ']'])).filter(|s| *s != "Top level").collect();
    let (below, tables): (Vec<_>, Vec<_>) = tables.into_iter().partition(|table| table.contains('.'));
    for section in &sections {
        let mut known = known(section);
        let mut told: Vec<_> = rows.iter().filter(|row| row.section == *section).map(|row| row.key).collect();
        if *section == "Top level" {
            told.extend(&tables);
        }
        if *section == "[[listener]]" {
            let direct = below.iter().filter_map(|table| table.strip_prefix("listener."));
            told.extend(direct.filter(|table| !table.contains('.')));
        }
        match *section {
            "[listener.tls]" => told.push("host"),
            "[acme]" => told.push("on_demand"),
            "[filter]" => told.push("rule"),
            "[cache]" => told.push("disk"),
            "[[cluster]]" => told.extend(["health", "file", "dns"]),
            _ => {}
        }
        known.sort();
        told.sort();
        assert_eq!(known, told, "{section}");
    }
}

#[test]
fn a_key_of_the_top_level_below_a_header_is_sent_up() {
    for Row { key, .. } in rows().iter().filter(|row| row.section == "Top level") {
        let errors = parse("r.toml", &with("[limits]", &format!("{key} = 1"))).expect_err("an unknown key");
        let hint = errors.iter().next().and_then(|error| error.hint.clone()).unwrap_or_default();
        assert!(hint.contains("move it above the first `[table]`"), "{key}: {hint}");
    }
}

#[test]
fn the_full_example_shows_every_key() {
    for Row { section, key, .. } in rows() {
        let part = match section {
            "Top level" => FULL.split("\n[").next().unwrap().to_owned(),
            section => FULL.split("\n[").filter(|part| format!("[{part}").starts_with(section)).collect(),
        };
        // what does not go with the rest stands in comments
        let (part, key) = match section {
            "[cluster.health]" if ["send", "expect", "service"].contains(&key) => {
                (part.as_str(), format!("# {key}"))
            }
            "[cache]" if ["query", "query_only"].contains(&key) => (part.as_str(), format!("# {key}")),
            "[jwt]" if ["secret", "public_keys", "key_set"].contains(&key) => {
                (part.as_str(), format!("# {key}"))
            }
            "[access_log]" if key == "template" => (part.as_str(), format!("# {key}")),
            "[acme.on_demand]" => (FULL.split_once("\n# [acme.on_demand]").unwrap().1, format!("# {key}")),
            _ => (part.as_str(), key.to_owned()),
        };
        assert!(part.contains(&format!("\n{key} = ")), "{section} {key}");
    }
}

#[test]
fn the_defaults_of_the_reference_are_those_of_the_code() {
    let plan = |text: &str| {
        format!("{:?}", parse("r.toml", text).unwrap_or_else(|errors| panic!("{text}\n{errors}")).lower())
    };
    let mut checked = 0;
    for Row { section, key, default } in rows() {
        let Some(default) = default.strip_prefix('`').and_then(|default| default.strip_suffix('`')) else {
            continue;
        };
        let mut text = with(section, &format!("{key} = {default}"));
        let mut without = base(section);
        if key == "redirect_port" {
            let redirect = |text: &str| text.replace("https", "redirect").replace(TLS, "");
            (text, without) = (redirect(&text), redirect(&without));
        }
        if ["max_early_data", "sessions"].contains(&key) {
            let zero = |text: &str| {
                text.replacen("[listener.tls]\n", "[listener.tls]\nresumption = \"zero-rtt\"\n", 1)
            };
            (text, without) = (zero(&text), zero(&without));
        }
        for (prefix, needs) in [("tls_", "tls = true"), ("sticky_", "sticky_cookie = \"at\"")] {
            if section == "[[cluster]]" && key.starts_with(prefix) && key != "tls_timeout" {
                let more = |text: &str| text.replacen("[[cluster]]\n", &format!("[[cluster]]\n{needs}\n"), 1);
                (text, without) = (more(&text), more(&without));
            }
        }
        if key == "max_wait" {
            let more = |text: &str| text.replacen("[access_log]\n", "[access_log]\noverflow = \"wait\"\n", 1);
            (text, without) = (more(&text), more(&without));
        }
        if ["min", "tolerance", "window", "probe_every"].contains(&key) {
            let more = |text: &str| text.replacen("[concurrency]\n", "[concurrency]\nadaptive = true\n", 1);
            (text, without) = (more(&text), more(&without));
        }
        if key == "key_set_every" {
            let fetched = "key_set_path = \"/keys\"\nkey_set_cluster = \"app\"";
            let more = |text: &str| text.replacen("public_keys = \"keys.pem\"", fetched, 1);
            (text, without) = (more(&text), more(&without));
        }
        if FILES.contains(&key) {
            let more = |text: &str| text.replacen("cluster = \"app\"", "files = \"/srv\"", 1);
            (text, without) = (more(&text), more(&without));
        }
        if key.starts_with("finish_") {
            let more = |text: &str| {
                text.replacen("[listener.http]\n", "[listener.http]\non_disconnect = \"finish\"\n", 1)
            };
            (text, without) = (more(&text), more(&without));
        }
        if key.starts_with("dns_") {
            let by_dns = |text: &str| {
                let hook = "[acme]\nchallenge = \"dns-01\"\ndns_hook = [\"set-record\"]\n";
                let issued = "[[certificate]]\nacme = [\"*.example.com\"]\n[acme]\n";
                let text = text.replacen("[acme.on_demand]\nask = \"http://ask.test/\"\n", "", 1);
                text.replacen("[acme]\n", hook, 1).replacen("[acme]\n", issued, 1)
            };
            (text, without) = (by_dns(&text), by_dns(&without));
        }
        assert_eq!(plan(&text), plan(&without), "{section} {key} = {default}");
        checked += 1;
    }
    assert!(checked > 40, "{checked}");
}
