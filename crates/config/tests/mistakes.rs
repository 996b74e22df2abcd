//! A file with many mistakes is answered with all of them, each where it stands.

#[path = "mistakes/acme.rs"]
mod acme;
#[path = "mistakes/admission.rs"]
mod admission;
#[path = "mistakes/cache.rs"]
mod cache;
#[path = "mistakes/clusters.rs"]
mod clusters;
#[path = "mistakes/connect.rs"]
mod connect;
#[path = "mistakes/log.rs"]
mod log;
#[path = "mistakes/paths.rs"]
mod paths;
#[path = "mistakes/quic.rs"]
mod quic;
#[path = "mistakes/rates.rs"]
mod rates;
#[path = "mistakes/sockets.rs"]
mod sockets;

use portcullis_config::{Errors, parse};

/// `line:column: message` and the hint.
fn told(errors: &Errors) -> Vec<String> {
    errors.iter().map(|e| format!("{e} | {}", e.hint.as_deref().unwrap_or("-"))).collect()
}

fn errors(text: &str) -> Errors {
    parse("edge.toml", text).expect_err("the text has mistakes")
}

const THIRTEEN: &str = r#"workers = "per-cor"
drain_timeout = 10

[limits]
max_conections = 5000
max_tunnels = 2_000_000

[forwarded]
trusted = ["10.0.0.0/8", "10.1.0.0/33"]

[[listener]]
address = "[::]:443"
protocol = "https"
backlog = "1024"

[[listener]]
address = "[::]:443"
protocol = "http"
http3 = false

[[route]]
host = "a.example.com:443"
cluster = "web"

[[route]]
cluster = "wep"

[[cluster]]
name = "web"
endpoints = []

[cache]
max_size = "1GB"
"#;

#[test]
fn thirteen_mistakes_are_thirteen_errors() {
    let expected = [
        r#"1:11: `workers` must be "per-core" or "work-stealing", found "per-cor" | did you mean "per-core"?"#,
        r#"2:17: `drain_timeout` wants a duration, found the integer 10 | say the unit: "10s" or "10ms""#,
        "5:1: unknown key `max_conections` in `[limits]` | did you mean `max_connections`? known keys: \
         `max_connections`, `over_max_connections`, `reserved_descriptors`, `max_connections_per_client`, \
         `over_max_per_client`, `client_delay`, `client_prefix_v4`, `client_prefix_v6`, `uncounted_clients`, \
         `max_quic_connections`, `max_tunnels`",
        "6:15: `max_tunnels` must be from 0 to 1000000, found 2000000 | -",
        r#"9:26: `trusted[1]` wants a network, found "10.1.0.0/33" | for example "10.0.0.0/8" or "fd00::/8""#,
        "13:12: a listener speaks TLS but the file has no `[[certificate]]` | add one with `cert` and `key`, or \
         with `acme = [\"www.example.com\"]` to have it issued, or for local use `self_signed = [\"localhost\"]`",
        r#"14:11: `backlog` wants an integer, found the string "1024" | remove the quotes"#,
        "17:11: the address [::]:443 is listened on twice | the first one is on line 11",
        r#"19:1: `http3` goes only with `protocol = "https"` | remove it, or change the protocol"#,
        r#"22:8: `host` wants a host, found "a.example.com:443" | leave the port out, it is not compared: "a.example.com""#,
        r#"26:11: there is no cluster "wep" | did you mean "web"?"#,
        "30:13: `endpoints` is an empty list | write `endpoints = [\"127.0.0.1:3000\"]`, or leave the key out",
        "33:12: `max_size` wants a size, found \"1GB\" | a whole number and a unit, B, KiB, MiB, GiB or TiB: \"64KiB\"",
    ];
    let told = told(&errors(THIRTEEN));
    assert_eq!(told.len(), expected.len(), "{told:#?}");
    for (told, expected) in told.iter().zip(expected) {
        assert_eq!(told, expected);
    }
}

#[test]
fn they_are_shown_as_rustc_shows_them() {
    let shown = errors("[[listener]]\naddress = \"[::]:80\"\nprotocol = \"http\"\nport = 80\n").render(false);
    let expected = "\
error: unknown key `port` in `[[listener]]`
 --> edge.toml:4:1
  |
4 | port = 80
  | ^^^^
  |
  = help: known keys: `address`, `protocol`, `http3`, `plain_http`, `redirect_port`, `only_v6`, `v4_fallback`, `shared`, `backlog`, `max_connections`, `max_headers`, `max_header_size`, `max_streams`, `http`, `tls`, `tcp`, `udp`, `unix`, `proxy_protocol`, `quic`

edge.toml: 1 error
";
    assert_eq!(shown, expected);
    assert_eq!(errors("a = 1").to_string(), errors("a = 1").render(false).trim_end());
}

/// What is added, then line, column and a part of the message and of the hint of the only error.
type Row<'a> = (&'a str, usize, usize, &'a str, &'a str);

/// Each text is put before a file without mistakes and must bring exactly one error.
fn one_error_each(rows: &[Row<'_>]) {
    const SOUND: &str = "[[listener]]\naddress = \"[::]:80\"\nprotocol = \"http\"\n\
                         [[cluster]]\nname = \"app\"\nendpoints = [\"app:80\"]\n[[route]]\ncluster = \"app\"\n";
    assert!(parse("sound", SOUND).is_ok_and(|config| config.warnings().is_empty()));
    for (text, line, column, message, hint) in rows {
        let text = format!("{text}\n{SOUND}");
        let errors = errors(&text);
        let told = told(&errors);
        assert_eq!(told.len(), 1, "{text}\n{told:#?}");
        let found = errors.iter().next().expect("there is one");
        assert_eq!((found.line, found.column), (*line, *column), "{text}\n{told:#?}");
        assert!(found.message.contains(message), "{text}\n{told:#?}");
        assert!(found.hint.as_deref().unwrap_or_default().contains(hint), "{text}\n{told:#?}");
    }
}

#[test]
fn one_mistake_is_one_error_in_tables() {
    one_error_each(&[
        ("[limit]", 1, 2, "unknown key `limit` in the top level", "did you mean `limits`?"),
        ("[[limits]]", 1, 1, "`limits` wants one table, found a list", "single brackets"),
        ("limits = 3", 1, 10, "`limits` wants one table, found the integer 3", "[limits]"),
        ("[limits]\nthreads = 3", 2, 1, "unknown key `threads`", "move it above the first `[table]`"),
        ("\"\\u001b[1m\" = 3", 1, 1, "unknown key `\\u{1b}[1m`", "known keys: `threads`"),
        ("[admin]", 1, 1, "`address` is missing in `[admin]`", "add `address = \"127.0.0.1:9090\"`"),
        ("[admin]\naddress = \"[::]:80\"", 4, 11, "in the way of the admin service", "another port"),
        ("[forwarded]\ntrusted = \"10.0.0.0/8\"", 2, 11, "wants a list", "trusted = [\"10.0.0.0/8\"]"),
        ("[forwarded]", 1, 1, "`trusted` is missing", "add `trusted = [\"10.0.0.0/8\"]`"),
        ("[forwarded]\nheaders = \"bot\"", 2, 11, "found \"bot\"", "did you mean \"both\"?"),
        ("[forwarded]\nvia = \"a b\"", 2, 7, "\"a b\" is no name for `Via`", "letters"),
        ("[forwarded]\nheaders = \"none\"\nport = true", 3, 1, "`port` goes only with `headers", "remove it"),
        ("[errors]\nformat = \"jsn\"", 2, 10, "found \"jsn\"", "did you mean \"json\"?"),
        ("[security_headers]\nhsts_preload = true", 1, 1, "needs a max-age of a year", ""),
        ("[security_headers]\ncontent_security_policy = \"default-src self\"", 1, 1, "single quotes", ""),
        ("[security_headers]\ncross_origin_opener_policy = \"x\"", 1, 1, "has no value", ""),
        ("[deadline]\n", 1, 1, "needs `head` or `total`", "head"),
        ("[concurrency]\nmax = 5\nmin = 2", 3, 1, "goes only with `adaptive = true`", ""),
        ("[concurrency]\nmax = 5\nadaptive = true\nmin = 6", 4, 7, "larger than `max`", ""),
        ("[compression]\ntypes = [\"html\"]", 2, 10, "no content type", "text/*"),
        ("[maintenance]\nstatus = 204", 2, 10, "no status of a page", ""),
        ("[security_headers]\nhsts = \"500ms\"", 2, 8, "wants whole seconds", "s, m, h or d"),
        ("[security_headers]\nreferrer_policy = \"a\\nb\"", 2, 19, "no value of a field", "off"),
        ("[timeouts]\nheader = \"1ms\"", 2, 10, "must be from \"100ms\" to \"1h\", found \"1ms\"", ""),
        ("health_path = \"health\"", 1, 15, "wants a path", "\"/health\""),
        ("[[listener]]\naddress = \"[::]:81\"", 1, 1, "`protocol` is missing in `[[listener]]`", "https"),
        (
            "[[listener]]\naddress = \"[::1]:80\"\nprotocol = \"http\"",
            5,
            11,
            "[::]:80 and [::1]:80 clash",
            "on line 1; leave one out",
        ),
        (
            "[admin]\naddress = \"127.0.0.1:80\"",
            4,
            11,
            "in the way of the admin service on 127.0.0.1:80",
            "port",
        ),
        (
            "[[listener]]\naddress = \"0.0.0.0:80\"\nprotocol = \"http\"",
            5,
            11,
            "both take IPv4 on port 80",
            "on line 1; give the IPv6 one `only_v6 = true`",
        ),
        (
            "[[listener]]\naddress = \"127.0.0.1:81\"\nprotocol = \"http\"\nonly_v6 = true",
            4,
            11,
            "`only_v6` has no meaning",
            "remove it",
        ),
    ]);
}

#[test]
fn one_mistake_is_one_error_in_lists_of_tables() {
    one_error_each(&[
        ("[[certificate]]", 1, 1, "has no source", "self_signed"),
        ("[[certificate]]\ncert = \"a.pem\"", 1, 1, "`key` is missing", "privkey.pem"),
        ("[[certificate]]\nkey = \"a.pem\"", 1, 1, "`cert` is missing", "fullchain.pem"),
        ("[[certificate]]\ndirectory = \"a\"\nkey = \"a.pem\"", 3, 1, "`key` goes only with `cert`", ""),
        (
            "[[certificate]]\ndirectory = \"a\"\nself_signed = [\"a\"]",
            3,
            1,
            "does not go with `directory`",
            "own",
        ),
        (
            "[[cluster]]\nname = \"app\"\nendpoints = [\"b:1\"]",
            8,
            8,
            "two clusters are called \"app\"",
            "line 1",
        ),
        ("[[cluster]]\nname = \"a b\"\nendpoints = [\"b:1\"]", 2, 8, "wants a name", "1 to 64"),
        ("[[cluster]]\nname = \"b\"", 1, 1, "`endpoints` is missing", "add `endpoints"),
        ("[[cluster]]\nname = \"b\"\nendpoints = [\"b:1\", \"b:1\"]", 3, 21, "listed twice", "remove"),
        (
            "[[cluster]]\nname = \"b\"\nendpoints = [\"b:1\", 2]",
            3,
            21,
            "`endpoints[1]` wants",
            "127.0.0.1:3000",
        ),
    ]);
}

#[test]
fn one_mistake_is_one_error_in_what_routes_match() {
    one_error_each(&[
        ("[[route]]\ncluster = \"app\"\npath = \"/\"", 10, 1, "two routes match the same", "on line 1"),
        (
            "[[route]]\ncluster = \"app\"\npath = \"/a\"\n[[route]]\ncluster = \"app\"\npath = \"/%61\"",
            4,
            1,
            "the same, host *, prefix /%61",
            "line 1",
        ),
        ("[paths]\nnormalize = true", 2, 1, "unknown key `normalize`", "did you mean `normalise`?"),
        (
            "[[route]]\npath = \"/a\"\nexact = \"/b\"\ncluster = \"app\"",
            3,
            1,
            "`exact` does not go with `path`",
            "once",
        ),
        ("[[route]]\nsegments = \"/a{b}\"\ncluster = \"app\"", 1, 1, "the path \"/a{b}\" is not valid", ""),
        (
            "[[route]]\nregex = \"(\"\ncluster = \"app\"",
            2,
            9,
            "`regex` is no regular expression",
            "whole value",
        ),
        (
            "[[route]]\nregex = \"/a\"\ncluster = \"app\"\n[[route]]\nregex = \"/b\"\ncluster = \"app\"",
            4,
            1,
            "two routes match the same",
            "`priority`",
        ),
        ("[[route]]\nmethods = [\"get\"]\ncluster = \"app\"", 2, 12, "wants a method", "capital letters"),
        (
            "[[route]]\nheaders = { \"a b\" = true }\ncluster = \"app\"",
            2,
            11,
            "`a b`, which is no name of a field",
            "",
        ),
        (
            "[[route]]\nheaders = { a = 1 }\ncluster = \"app\"",
            2,
            11,
            "is no condition: the integer 1",
            "`true`",
        ),
        ("[[route]]\nquery = { a = { regx = \"x\" } }\ncluster = \"app\"", 2, 9, "is no condition", "regex"),
        ("[[route]]\nscheme = \"ftp\"\ncluster = \"app\"", 2, 10, "must be \"http\" or \"https\"", ""),
        ("[[route]]\npriority = 1001\ncluster = \"app\"", 2, 12, "found 1001", "-1000"),
    ]);
}

#[test]
fn one_mistake_is_one_error_in_what_routes_do() {
    one_error_each(&[
        ("[[route]]\npath = \"/a\"", 1, 1, "does nothing", "cluster"),
        (
            "[[route]]\npath = \"/a\"\ncluster = \"app\"\nrespond = \"x\"",
            4,
            1,
            "does not go with `cluster`",
            "",
        ),
        ("[[route]]\npath = \"/a\"\ncluster = \"app\"\nstatus = 200", 4, 1, "`status` goes only with", ""),
        ("[[route]]\npath = \"/a\"\nrespond = \"x\"\nstatus = 204", 4, 10, "sent without a body", "\"\""),
        ("[[route]]\npath = \"/a\"\nredirect = \"/x\"", 3, 12, "wants an absolute URI", "https://x"),
        ("[[route]]\npath = \"/a\"\nredirect = \"https://x\"\nstatus = 303", 4, 10, "found 303", "308"),
        (
            "[[route]]\npath = \"/a\"\ncluster = \"app\"\nstrip_prefix = \"/b\"",
            4,
            16,
            "not below \"/b\"",
            "`rewrite`",
        ),
        (
            "[[route]]\npath = \"/a\"\ncluster = \"app\"\nrewrite = \"/x/{id}\"",
            4,
            11,
            "captures nothing called \"id\"; it has: rest",
            "segments",
        ),
        (
            "[[route]]\npath = \"/a\"\ncluster = \"app\"\nrewrite = \"/x\"\nstrip_prefix = \"/a\"",
            4,
            1,
            "`rewrite` does not go with",
            "",
        ),
        (
            "[[route]]\npath = \"/a\"\nrespond = \"\"\nstrip_prefix = \"/a\"",
            4,
            1,
            "goes only with `cluster`",
            "",
        ),
    ]);
}

#[test]
fn one_mistake_is_one_error_in_what_routes_change() {
    one_error_each(&[
        (
            "[[route]]\npath = \"/a\"\ncluster = \"app\"\nkeep_query = true",
            4,
            1,
            "goes only with `redirect`",
            "",
        ),
        (
            "[[route]]\npath = \"/a\"\nredirect = \"https://x/{id}\"",
            3,
            12,
            "captures nothing called \"id\"",
            "",
        ),
        (
            "[[route]]\npath = \"/a\"\nclusters = [{ name = \"app\", weight = 0 }]",
            3,
            1,
            "a weight above 0",
            "weight = 9",
        ),
        ("[[route]]\npath = \"/a\"\nclusters = [{ name = \"ap\" }]", 3, 22, "no cluster \"ap\"", "\"app\""),
        (
            "[[route]]\npath = \"/a\"\ncluster = \"app\"\nmirror = { cluster = \"ap\" }",
            4,
            22,
            "no cluster \"ap\"",
            "\"app\"",
        ),
        (
            "[[route]]\npath = \"/a\"\ncluster = \"app\"\nmirror = { cluster = \"app\", percent = 0 }",
            4,
            39,
            "found 0",
            "",
        ),
        (
            "[[route]]\npath = \"/a\"\ncluster = \"app\"\nset_request_headers = { Host = \"x\" }",
            4,
            23,
            "`Host`, which is not a route's to change",
            "`upstream_host`",
        ),
        (
            "[[route]]\npath = \"/a\"\ncluster = \"app\"\nremove_response_headers = [\"TE\"]",
            4,
            28,
            "not a route's to change",
            "one hop",
        ),
        (
            "[[route]]\npath = \"/a\"\ncluster = \"app\"\nupstream_host = \"a b\"",
            4,
            17,
            "\"keep\", \"endpoint\"",
            "",
        ),
        (
            "[[cluster]]\nname = \"b\"\nendpoints = [\"unix:/run/b.sock\"]\n\
             [[route]]\npath = \"/b\"\ncluster = \"b\"\nupstream_host = \"endpoint\"",
            7,
            17,
            "can not be \"endpoint\": the cluster \"b\" is a unix socket, which has no host",
            "name the host",
        ),
        (
            "[[cluster]]\nname = \"b\"\nendpoints = [\"b:1\", \"b:2\"]\n\
             [[route]]\npath = \"/b\"\ncluster = \"b\"\nupstream_host = \"endpoint\"",
            7,
            17,
            "the cluster \"b\" has several endpoints",
            "name the host",
        ),
        ("[[route]]\npath = \"/a\"\ncluster = \"backend\"", 3, 11, "no cluster \"backend\"", "file: \"app\""),
    ]);
}

#[test]
fn one_mistake_is_one_error_of_tls() {
    const TLS: &str = "[[certificate]]\nself_signed = [\"a\"]\n[[listener]]\naddress = \"[::]:443\"\nprotocol = \"https\"\n[listener.tls]\n";
    let tls = |text: &str| format!("{TLS}{text}");
    let with = [
        tls("min_version = \"1.1\""),
        tls("ticket_keys = \"keys\"\nresumption = \"zero-rtt\""),
        tls("sessions = 1000"),
        tls("client_auth = \"required\""),
        tls("client_ca = \"ca.pem\""),
        tls("resumption = \"zero-rtt\"\nclient_ca = \"ca.pem\"\nclient_auth = \"optional\""),
        tls("[[listener.tls.host]]\nclient_auth = \"none\""),
        tls("without_certificate = \"plain\""),
        tls("client_auth = \"required\"\nclient_ca = \"ca.pem\"\nwithout_certificate = \"plain-http\""),
        tls("[[listener.tls.host]]\nnames = [\"a\"]\nclient_auth = \"required\"\nclient_ca = \"ca.pem\"")
            .replace("\"https\"", "\"https\"\nplain_http = \"serve\""),
    ];
    one_error_each(&[
        (
            &with[8],
            9,
            1,
            "`without_certificate = \"plain-http\"` does not go with `client_auth`",
            "nobody would be asked",
        ),
        (&with[9], 7, 1, "`plain_http = \"serve\"` does not go with `client_auth`", "nobody would be asked"),
        (&with[0], 7, 15, "`min_version` must be \"1.3\" or \"1.2\"", ""),
        (&with[1], 7, 1, "`ticket_keys` goes only with `resumption = \"tickets\"`", "change `resumption`"),
        (&with[2], 7, 1, "`sessions` goes only with `resumption = \"zero-rtt\"`", "change `resumption`"),
        (&with[3], 6, 1, "`client_ca` is missing", "add `client_ca"),
        (&with[4], 7, 1, "`client_ca` goes only with `client_auth`", "required"),
        (&with[5], 9, 1, "`client_auth` does not go with `resumption = \"zero-rtt\"`", "tickets"),
        (&with[6], 7, 1, "`names` is missing", "add `names"),
        (&with[7], 7, 23, "`without_certificate` must be \"error\" or \"plain-http\"", ""),
    ]);
}

#[test]
fn one_mistake_is_one_error_of_upgrades() {
    one_error_each(&[
        ("[upgrades]\nprotocols = [\"h2c\"]", 2, 14, "this protocol is never tunnelled", "websocket"),
        ("[upgrades]\nprotocols = [\"web socket\"]", 2, 14, "not a protocol name", "websocket"),
        ("[upgrades]\nprotocols = \"websocket\"", 2, 13, "`protocols`", ""),
        ("[upgrades]\nhttp2 = 1", 2, 9, "`http2`", ""),
        ("[upgrades]\nidle_timeout = \"31d\"", 2, 16, "`idle_timeout`", ""),
        (
            "[upgrades]\nprotocols = [\"a\", \"b\", \"c\", \"d\", \"e\", \"f\", \"g\", \"i\", \"j\", \"k\", \"l\", \"m\", \
             \"n\", \"o\", \"p\", \"q\", \"r\"]",
            2,
            13,
            "more than 16",
            "",
        ),
    ]);
}

#[test]
fn single_brackets_are_one_error_and_the_table_is_still_read() {
    let told = told(&errors("[listener]\naddress = \"[::]:80\"\nprotocol = \"htp\"\n"));
    assert_eq!(told.len(), 2, "{told:#?}");
    assert!(told[0].starts_with("1:1: `listener` wants a list of tables, found a table"), "{told:#?}");
    assert!(told[1].starts_with("3:12: `protocol` must be"), "{told:#?}");
}

#[test]
fn an_empty_file_lacks_a_listener() {
    assert_eq!(errors("").len(), 1);
    assert!(told(&errors(""))[0].starts_with("1:1: the file has no `[[listener]]`"));
}

#[test]
fn every_syntax_error_is_told_and_the_rest_is_still_checked() {
    let text = "workers = per-core\n\
                threads = 0\n\
                [limits]\n\
                max_tunnels = 1 2\n\
                [[listener]]\n\
                address = \"[::]:80\n\
                protocol = \"htp\"\n";
    let told = told(&errors(text));
    let lines: Vec<_> = told.iter().map(|told| told.split(':').next().unwrap().to_owned()).collect();
    assert_eq!(lines, ["1", "2", "4", "6", "7"], "{told:#?}");
    // what is missing may stand in the part that could not be read
    assert!(!told.iter().any(|told| told.contains("missing")), "{told:#?}");
}

#[test]
fn a_key_that_stands_twice() {
    let told = told(&errors("threads = 1\nthreads = 2\n[[listener]]\naddress = \"[::]:80\"\n"));
    assert_eq!(told.len(), 2, "{told:#?}");
    assert!(told[0].starts_with("2:1: duplicate key"), "{told:#?}");
    assert!(told[1].contains("`protocol` is missing"), "{told:#?}");
}

#[test]
fn columns_count_characters_and_lines_count_with_either_end() {
    let text = "# ä\r\nhealth_path = \"ö\"; x\r\n";
    let found = errors(text);
    let first = found.iter().next().unwrap();
    assert_eq!(first.line, 2);
    let text = "[[route]]\r\nrespond = \"äöü\"\r\nstatus = 200 # ß\r\nhost = \"ä\"\r\n";
    let errors = errors(text);
    let host = errors.iter().find(|e| e.message.contains("`host`")).unwrap();
    assert_eq!((host.line, host.column), (4, 8));
    assert_eq!(&text[host.span()], "\"ä\"");
}
