use std::time::UNIX_EPOCH;

use std::{net::SocketAddr, sync::LazyLock};

use portcullis_conn::TlsInfo;

use super::*;

static CONN: LazyLock<ConnInfo> = LazyLock::new(|| {
    let [peer, local] =
        ["[2001:db8::7]:4000", "192.0.2.1:443"].map(|text| text.parse::<SocketAddr>().unwrap());
    let mut tls = TlsInfo::default();
    tls.version = Some(TlsVersion::Tls13);
    tls.server_name = Some("sni.example".to_owned());
    tls.cipher_suite = Some("TLS13_AES_128_GCM_SHA256");
    tls.group = Some("X25519");
    tls.alpn = Some(b"h2".to_vec());
    ConnInfo::new(Transport::Tcp, peer, local).with_tls(tls)
});

fn line() -> AccessLine<'static> {
    let time = UNIX_EPOCH + Duration::from_millis(1_795_194_245_123);
    let mut line = AccessLine::new(time, "GET", "/a?b=\"c\"", Version::HTTP_2);
    line.client = Some("2001:db8::7".parse().unwrap());
    line.host = Some(b"a.example");
    line.status = Some(200);
    line.bytes = 1234;
    line.duration = Duration::from_micros(2_000_345);
    line.time_to_head = Some(Duration::from_micros(1));
    line.referer = Some(b"https://r.example/");
    line.user_agent = Some(b"ua \xff\n");
    line.upstream = Some("app");
    line.conn = Some(&CONN);
    line
}

fn written(line: &AccessLine<'_>, format: &Format) -> String {
    let mut out = Vec::new();
    line.write(format, &Redaction::default(), &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn combined() {
    let full = "2001:db8::7 - - [20/Nov/2026:17:04:05 +0000] \"GET /a?b=\\\"c\\\" HTTP/2.0\" 200 1234 \
                \"https://r.example/\" \"ua \\xff\\x0a\" 2.000345 \"app\" h2\n";
    assert_eq!(written(&line(), &Format::Combined), full);
    let bare = AccessLine::new(UNIX_EPOCH, "GET", "/", Version::HTTP_11);
    let text =
        "- - - [01/Jan/1970:00:00:00 +0000] \"GET / HTTP/1.1\" 499 0 \"-\" \"-\" 0.000000 \"-\" http/1.1\n";
    assert_eq!(written(&bare, &Format::Combined), text);
}

fn json_format() -> Format {
    Format::Json(JsonFields::default())
}

fn template(text: &str) -> Format {
    Format::Template(Template::parse(text).unwrap())
}

#[test]
fn common() {
    let mut line = line();
    line.user = Some("a b");
    let text =
        "2001:db8::7 - a\\x20b [20/Nov/2026:17:04:05 +0000] \"GET /a?b=\\\"c\\\" HTTP/2.0\" 200 1234\n";
    assert_eq!(written(&line, &Format::Common), text);
}

#[test]
fn secrets_are_in_no_form() {
    let mut line = line();
    line.target = "/in?token=s3cret&x=1";
    line.referer = Some(b"https://u:s3cret@r.example/?code=s3cret");
    line.host = Some(b"u:s3cret@h");
    line.user_agent = Some(b"bot (https://u:s3cret@b.example/?token=s3cret)");
    line.request_id = Some(b"https://u:s3cret@i.example/");
    let fields = [
        (http::header::ORIGIN, HeaderValue::from_static("https://o.example/?key=s3cret")),
        (http::header::ORIGIN, HeaderValue::from_static("https://u:s3,cret@p.example/?key=s3cret")),
        (http::header::COOKIE, HeaderValue::from_static("a=https://u:s3cret@c.example/?sid=s3cret")),
    ];
    line.request_fields = &fields;
    for format in [
        Format::Common,
        Format::Combined,
        json_format(),
        template("$target ${query} $referer ${header:origin} $user_agent $request_id ${cookie:a}"),
        template("\"$request\" $path"),
    ] {
        let text = written(&line, &format);
        assert!(text.contains("***") && !text.contains("s3") && !text.contains("cret"), "{text}");
        assert!(text.contains("x=1") || text.ends_with("/in\n"));
    }
    // that of a CONNECT
    line.target = "u:s3cret@h.test:443";
    assert_eq!(
        written(&line, &template("$target \"$request\" $path")),
        "***@h.test:443 \"GET ***@h.test:443 HTTP/2.0\" ***@h.test:443\n"
    );
}

#[test]
fn templates() {
    let fields = [
        (http::header::ACCEPT, HeaderValue::from_static("a/b")),
        (http::header::ACCEPT, HeaderValue::from_static("c/d")),
        (http::header::COOKIE, HeaderValue::from_static("a=1; id=x\"y; id2=3")),
    ];
    let answer = [(http::header::SERVER, HeaderValue::from_static("s p"))];
    let mut line = line();
    line.request_fields = &fields;
    line.response_fields = &answer;
    (line.attempts, line.queue) = (Some(2), Some(Duration::from_micros(1500)));
    (line.route, line.cluster, line.user) = (Some("r 1"), Some("app"), Some(""));
    (line.fault, line.cache, line.outcome) = (Some("connect_failed"), Some("hit"), LineOutcome::Failed);
    (line.received, line.conn_request) = (Some(9), Some(3));
    let conn = format!("{}/3", CONN.id);
    for (text, expected) in [
        ("plain $$ text", "plain $ text"),
        (
            "$client \"$method $target\" $status ${duration_ms}",
            "2001:db8::7 \"GET /a?b=\\\"c\\\"\" 200 2000.345",
        ),
        ("$path|$query|$request", "/a|b=\\\"c\\\"|GET\\x20/a?b=\\\"c\\\"\\x20HTTP/2.0"),
        (
            "$time $time_unix [$time_local]",
            "2026-11-20T17:04:05.123Z 1795194245.123 [20/Nov/2026:17:04:05 +0000]",
        ),
        ("$peer $local $scheme $host", "[2001:db8::7]:4000 192.0.2.1:443 https a.example"),
        ("$protocol $version $bytes $received", "h2 HTTP/2.0 1234 9"),
        ("$user_agent \"$user_agent\"", "ua\\x20\\xff\\x0a \"ua \\xff\\x0a\""),
        ("$route \"$route\" $user \"$user\"", "r\\x201 \"r 1\" - \"\""),
        ("$upstream $cluster $attempts $queue $queue_ms $connect", "app app 2 0.001500 1.500 -"),
        ("$fault $cache $outcome $aborted", "connect_failed hit failed true"),
        (
            "$tls $tls_cipher $tls_group $tls_resumed $tls_early",
            "TLSv1.3 TLS13_AES_128_GCM_SHA256 X25519 false false",
        ),
        ("$sni $alpn $client_subject $transport", "sni.example h2 - tcp"),
        ("$conn/$conn_request", &conn),
        ("${header:Accept} ${header:x} ${response_header:server}", "a/b,\\x20c/d - s\\x20p"),
        ("${cookie:id} ${cookie:id2} ${cookie:i}", "x\\\"y 3 -"),
        ("$request_id $trace_id $time_to_head", "- - 0.000001"),
    ] {
        assert_eq!(written(&line, &template(text)), format!("{expected}\n"), "{text}");
    }
}

#[test]
fn what_formats_ask_for() {
    let format = template("$client ${header:x-a} ${cookie:a} ${cookie:b} ${response_header:x-b} $queue_ms");
    let names: Vec<_> =
        format.headers().into_iter().map(|(name, response)| (name.to_string(), response)).collect();
    assert_eq!(names, [("x-a".into(), false), ("cookie".into(), false), ("x-b".into(), true)]);
    assert!(format.has("queue") && !format.has("connect"));
    assert!(
        Format::Combined.has("referer") && Format::Combined.has("user") && !Format::Common.has("referer")
    );
    assert!(json_format().has("trace_id") && !json_format().has("queue"));
}

#[test]
fn json() {
    let text = written(&line(), &json_format());
    assert!(text.ends_with("}\n") && text.lines().count() == 1);
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let expected = serde_json::json!({
        "time": "2026-11-20T17:04:05.123Z", "client": "2001:db8::7", "method": "GET", "host": "a.example",
        "target": "/a?b=\"c\"", "protocol": "h2", "status": 200, "bytes": 1234, "duration": 2.000345,
        "time_to_head": 0.000001, "referer": "https://r.example/", "user_agent": "ua \u{fffd}\n",
        "upstream": "app", "tls": "TLSv1.3", "conn": CONN.id.get(), "aborted": false, "received": null, "route": null,
        "cluster": null, "attempts": null, "connect": null, "first_byte": null, "fault": null, "cache": null,
        "request_id": null, "trace_id": null,
    });
    assert_eq!(value, expected);

    let mut bare = AccessLine::new(UNIX_EPOCH, "GET", "/", Version::HTTP_3);
    bare.outcome = LineOutcome::Aborted;
    let bare: serde_json::Value = serde_json::from_str(&written(&bare, &json_format())).unwrap();
    let keys = |value: &serde_json::Value| {
        // whether they keep their order is a feature that any crate may set
        let keys = value.as_object().unwrap().keys().cloned();
        keys.collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(keys(&bare), keys(&expected));
    assert_eq!(bare["status"], serde_json::Value::Null);
    assert_eq!(bare["aborted"], true);
}

#[test]
fn no_line_is_longer_than_said() {
    // every field that there is, in two halves: the longest ones don't fit into one
    let long = ["target", "path", "query", "request", "referer", "user_agent"];
    let rest = FIELDS.iter().map(|(name, _)| *name).filter(|name| !long.contains(name));
    let rest: Vec<_> = rest.chain(["header:x-a", "response_header:x-a", "cookie:a"]).collect();
    let formats = [
        Format::Common,
        Format::Combined,
        json_format(),
        Format::Json(JsonFields::new(rest.iter().copied()).unwrap()),
        template(&rest.iter().map(|name| format!("${{{name}}}")).collect::<String>()),
        Format::Json(JsonFields::new(["request", "target", "referer", "user_agent"]).unwrap()),
        template("$request\"$target $query\"$user_agent"),
    ];
    let [peer, local] =
        ["[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"; 2].map(|text| text.parse().unwrap());
    for text in ["\u{1}".repeat(100_000), "\"".repeat(100_000), "a".repeat(100_000)] {
        let mut tls = TlsInfo::default();
        (tls.server_name, tls.alpn) = (Some(text.clone()), Some(text.clone().into()));
        let conn = ConnInfo::new(Transport::Tcp, peer, local).with_tls(tls);
        let target = format!("/?{text}");
        let mut line = line();
        (line.method, line.target, line.conn) = (&text, &target, Some(&conn));
        let all = Some(text.as_str());
        (line.upstream, line.cluster, line.route, line.user) = (all, all, all, all);
        (line.fault, line.cache, line.trace_id) = (all, all, all);
        let bytes = Some(text.as_bytes());
        (line.host, line.referer, line.user_agent, line.request_id) = (bytes, bytes, bytes, bytes);
        line.client = Some("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap());
        (line.bytes, line.received, line.conn_request) = (u64::MAX, Some(u64::MAX), Some(u64::MAX));
        (line.duration, line.time_to_head) = (Duration::MAX, Some(Duration::MAX));
        (line.queue, line.connect, line.first_byte) =
            (Some(Duration::MAX), Some(Duration::MAX), Some(Duration::MAX));
        let value = HeaderValue::from_bytes(&b"\xff".repeat(1000)).unwrap();
        let fields = [
            (HeaderName::from_static("x-a"), value),
            (http::header::COOKIE, HeaderValue::from_static("a=b")),
        ];
        (line.request_fields, line.response_fields) = (&fields, &fields);
        for format in &formats {
            let text = written(&line, format);
            assert!(text.len() < MAX_LINE, "{format:?} {}", text.len());
            assert_eq!(text.lines().count(), 1);
        }
    }
}
