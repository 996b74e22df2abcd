//! REFERENCE.md and the full example know the same keys as the code, and the defaults they name are true.

use portcullis_config::parse;
use portcullis_edge::plan::ClusterPlan;

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
    value: &'a str,
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
        if let [_, key, value, default, _, _] = cells[..]
            && let Some(key) = key.strip_prefix('`').and_then(|key| key.strip_suffix('`'))
        {
            rows.push(Row { section, key, value, default });
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

/// The text with lines in the section.
fn put(text: &str, section: &str, lines: &str) -> String {
    match section {
        "Top level" => format!("{lines}\n{text}"),
        section => text.replacen(&format!("{section}\n"), &format!("{section}\n{lines}\n"), 1),
    }
}

/// [`SECTIONS`] with a line in the section.
fn with(section: &str, line: &str) -> String {
    put(&base(section), section, line)
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

/// What keys go with: their section, and the lines that come before.
const NEEDS: &[(&str, &[&str], &str)] = &[
    ("[limits]", &["over_max_per_client", "client_prefix_v4", "client_prefix_v6"], PER_CLIENT),
    ("[limits]", &["client_delay"], "max_connections_per_client = 10\nover_max_per_client = \"delay\""),
    ("[access_log]", &["max_wait"], "overflow = \"wait\""),
    ("[listener.http]", &["finish_max", "finish_within"], "on_disconnect = \"finish\""),
    ("[listener.tls]", &["max_early_data", "sessions"], "resumption = \"zero-rtt\""),
    ("[listener.quic]", &["min_mtu"], "initial_mtu = 1300"),
    ("[[cluster]]", &["tls_verify", "tls_min_version"], "tls = true"),
    ("[[cluster]]", &["sticky_secure"], "sticky_cookie = \"at\""),
    ("[concurrency]", &["min", "tolerance", "window", "probe_every"], "adaptive = true"),
    ("[security_headers]", &["hsts_preload"], "hsts_include_subdomains = true"),
    ("[rate_limit]", &["max_held"], "tarpit = \"2s\""),
    ("[rate_limit]", &["body_type"], "body = \"slower\""),
    ("[cache]", &["heuristic_max"], "heuristic = 10"),
];

const PER_CLIENT: &str = "max_connections_per_client = 10";

/// [`SECTIONS`], with what this key goes with.
fn ready(Row { section, key, .. }: &Row<'_>) -> String {
    let text = base(section);
    if *key == "redirect_port" {
        return text.replace("https", "redirect").replace(TLS, "");
    }
    if *key == "http3" {
        return text.replace("[listener.quic]\n", "");
    }
    if *key == "key_set_every" {
        let fetched = "key_set_path = \"/keys\"\nkey_set_cluster = \"app\"";
        return text.replacen("public_keys = \"keys.pem\"", fetched, 1);
    }
    if FILES.contains(key) {
        return text.replacen("cluster = \"app\"", "files = \"/srv\"", 1);
    }
    if key.starts_with("dns_") {
        let hook = "[acme]\nchallenge = \"dns-01\"\ndns_hook = [\"set-record\"]\n";
        let issued = "[[certificate]]\nacme = [\"*.example.com\"]\n[acme]\n";
        let text = text.replacen("[acme.on_demand]\nask = \"http://ask.test/\"\n", "", 1);
        return text.replacen("[acme]\n", hook, 1).replacen("[acme]\n", issued, 1);
    }
    let needs = NEEDS.iter().find(|(of, keys, _)| of == section && keys.contains(key));
    needs.map_or(text.clone(), |(_, _, lines)| put(&text, section, lines))
}

/// Values that the key might have instead of its default. Not all of them are right.
fn others(Row { value, default, .. }: &Row<'_>) -> Vec<String> {
    // words of the value's own column stand between backticks
    let mut others: Vec<_> =
        value.split('`').skip(1).step_by(2).filter(|word| word != default).map(str::to_owned).collect();
    let (quote, inner) = match default.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(inner) => ("\"", inner),
        None => ("", *default),
    };
    let unit = inner.find(|c: char| !c.is_ascii_digit()).unwrap_or(inner.len());
    if let Ok(number) = inner[..unit].parse::<u64>() {
        let number_of = |number: u64| format!("{quote}{number}{}{quote}", &inner[unit..]);
        others.extend([number_of(number + 1), number_of(number.saturating_sub(1))]);
    }
    if !quote.is_empty() {
        others.push(format!("\"{inner}x\""));
    }
    let more = [
        "true",
        "false",
        "10",
        "\"2s\"",
        "\"default-src 'none'\"",
        "\"camera=()\"",
        "[]",
        "[\"gzip\"]",
        "[\"x.html\"]",
        "[\"host\"]",
        "[\"503\"]",
    ];
    others.extend(more.map(str::to_owned));
    others.retain(|other| other != default);
    others
}

/// All that a file says, if it says nothing wrong. Clusters show less of themselves than they have.
fn meaning(text: &str) -> Result<(String, Vec<ClusterPlan>), String> {
    let config = parse("r.toml", text).map_err(|errors| format!("{text}\n{errors}"))?;
    let plan = config.plan();
    Ok((format!("{:?} {plan:?}", config.process()), plan.clusters.clone()))
}

/// Nothing but the default goes without another key, with which the default is an error.
const ALONE: [(&str, &str); 2] = [("[listener.tls]", "client_auth"), ("[cluster.dns]", "records")];

/// A default makes no difference, and something else does: the key is not passed over.
#[test]
fn the_defaults_of_the_reference_are_those_of_the_code() {
    let (mut checked, mut dropped) = (0, Vec::new());
    for row in rows() {
        let Row { section, key, default, .. } = row;
        let Some(default) = default.strip_prefix('`').and_then(|default| default.strip_suffix('`')) else {
            continue;
        };
        let row = Row { default, ..row };
        let without = ready(&row);
        let of = |value: &str| meaning(&put(&without, section, &format!("{key} = {value}")));
        let unsaid = meaning(&without).unwrap_or_else(|errors| panic!("{errors}"));
        let said = of(default).unwrap_or_else(|errors| panic!("{errors}"));
        assert!(said == unsaid, "{section} {key} = {default} is not the default");
        let counts = others(&row).iter().any(|other| of(other).is_ok_and(|said| said != unsaid));
        if !counts && !ALONE.contains(&(section, key)) {
            dropped.push(format!("{section} {key}"));
        }
        checked += 1;
    }
    assert!(dropped.is_empty(), "these make no difference: {dropped:#?}");
    assert!(checked >= 270, "{checked}");
}

/// Without a line of the full example the plan is another one, unless the line shows the default, or there is none.
#[test]
fn every_key_of_the_full_example_counts() {
    let whole = meaning(FULL).unwrap_or_else(|errors| panic!("{errors}"));
    let (mut checked, mut dropped) = (0, Vec::new());
    for Row { section, key, default, .. } in rows() {
        let mut at = 0;
        let found = FULL.split_inclusive('\n').find_map(|line| {
            let start = at;
            at += line.len();
            let here = match section {
                "Top level" => !FULL[..start].contains("\n["),
                section => FULL[..start].rfind("\n[").is_some_and(|at| FULL[at + 1..].starts_with(section)),
            };
            (here && line.starts_with(&format!("{key} = "))).then_some((start, line))
        });
        let Some((start, line)) = found else { continue };
        let said = line.split(" = ").skip(1).collect::<Vec<_>>().join(" = ");
        let default = default.split(';').next().unwrap_or_default().trim_matches('`');
        if said.split('#').next().map(str::trim) == Some(default) {
            continue;
        }
        let without = format!("{}{}", &FULL[..start], &FULL[start + line.len()..]);
        if meaning(&without).is_ok_and(|meaning| meaning == whole) {
            dropped.push(format!("{section} {key}"));
        }
        checked += 1;
    }
    assert!(dropped.is_empty(), "these make no difference: {dropped:#?}");
    assert!(checked >= 420, "{checked}");
}
