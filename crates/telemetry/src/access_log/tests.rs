use std::time::UNIX_EPOCH;

use super::*;

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
    line.tls = Some("TLSv1.3");
    line.conn_id = Some(7);
    line
}

fn written(line: &AccessLine<'_>, format: Format) -> String {
    let mut out = Vec::new();
    line.write(format, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn combined() {
    let full = "2001:db8::7 - - [20/Nov/2026:17:04:05 +0000] \"GET /a?b=\\\"c\\\" HTTP/2.0\" 200 1234 \
                \"https://r.example/\" \"ua \\xff\\x0a\" 2.000345 \"app\" h2\n";
    assert_eq!(written(&line(), Format::Combined), full);
    let bare = AccessLine::new(UNIX_EPOCH, "GET", "/", Version::HTTP_11);
    let text =
        "- - - [01/Jan/1970:00:00:00 +0000] \"GET / HTTP/1.1\" 499 0 \"-\" \"-\" 0.000000 \"-\" http/1.1\n";
    assert_eq!(written(&bare, Format::Combined), text);
}

#[test]
fn json() {
    let text = written(&line(), Format::Json);
    assert!(text.ends_with("}\n") && text.lines().count() == 1);
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let expected = serde_json::json!({
        "time": "2026-11-20T17:04:05.123Z", "client": "2001:db8::7", "method": "GET", "host": "a.example",
        "target": "/a?b=\"c\"", "protocol": "h2", "status": 200, "bytes": 1234, "duration": 2.000345,
        "time_to_head": 0.000001, "referer": "https://r.example/", "user_agent": "ua \u{fffd}\n",
        "upstream": "app", "tls": "TLSv1.3", "conn": 7, "aborted": false,
    });
    assert_eq!(value, expected);

    let mut bare = AccessLine::new(UNIX_EPOCH, "GET", "/", Version::HTTP_3);
    bare.aborted = true;
    let bare: serde_json::Value = serde_json::from_str(&written(&bare, Format::Json)).unwrap();
    let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&bare), keys(&expected));
    assert_eq!(bare["status"], serde_json::Value::Null);
    assert_eq!(bare["aborted"], true);
}

#[test]
fn no_line_is_longer_than_said() {
    for text in ["\u{1}".repeat(100_000), "\"".repeat(100_000), "a".repeat(100_000)] {
        let mut line = line();
        (line.method, line.target) = (&text, &text);
        (line.upstream, line.tls) = (Some(text.as_str()), Some(text.as_str()));
        let bytes = Some(text.as_bytes());
        (line.host, line.referer, line.user_agent) = (bytes, bytes, bytes);
        line.client = Some("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap());
        (line.bytes, line.conn_id) = (u64::MAX, Some(u64::MAX));
        (line.duration, line.time_to_head) = (Duration::MAX, Some(Duration::MAX));
        for format in [Format::Combined, Format::Json] {
            let text = written(&line, format);
            assert!(text.len() < 9 * 1024, "{format:?} {}", text.len());
            assert_eq!(text.lines().count(), 1);
        }
    }
}

#[test]
fn numbers() {
    for number in [0, 9, 10, 99, 100, 1_234_567_890, u64::MAX] {
        let mut out = Vec::new();
        push_number(&mut out, number);
        assert_eq!(String::from_utf8(out).unwrap(), number.to_string());
    }
    for (micros, text) in [(0, "0.000000"), (1, "0.000001"), (999_999, "0.999999"), (61_000_000, "61.000000")]
    {
        let mut out = Vec::new();
        push_seconds(&mut out, Duration::from_micros(micros));
        assert_eq!(String::from_utf8(out).unwrap(), text);
    }
}
