//! Heads of requests: what is accepted has one reading, which a reader of bare lines has, too.
#![no_main]

use http::{Method, Request, Version};
use libfuzzer_sys::fuzz_target;
use portcullis_proxy::framing::{FramingLimits, Head, check_request};

fuzz_target!(|bytes: &[u8]| {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Request::new(&mut fields);
    let Ok(httparse::Status::Complete(end)) = parsed.parse(bytes) else { return };
    let mut request = Request::builder()
        .method(parsed.method.expect("the head is complete"))
        .uri(parsed.path.expect("the head is complete"))
        .version(if parsed.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 });
    for field in parsed.headers.iter() {
        request = request.header(field.name, field.value);
    }
    let Ok(request) = request.body(()) else { return };
    if check_request(Head::of(&request), &FramingLimits::default()).is_err() {
        return;
    }
    assert!(!matches!(*request.method(), Method::CONNECT | Method::TRACE));
    let lengths = lines(&bytes[..end], "content-length");
    let codings = lines(&bytes[..end], "transfer-encoding");
    let hosts = lines(&bytes[..end], "host");
    // RFC 9112 section 6.3: one length, in digits, or `chunked` alone, or no body
    assert!(lengths.len() + codings.len() <= 1, "{lengths:?} {codings:?}");
    for length in lengths {
        let text = std::str::from_utf8(&length).expect("digits");
        assert!(text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u64>().is_ok(), "{text}");
    }
    for coding in codings {
        assert!(coding.eq_ignore_ascii_case(b"chunked"), "{coding:?}");
        assert_eq!(request.version(), Version::HTTP_11);
    }
    // RFC 9112 section 3.2
    assert!(hosts.len() <= 1, "{hosts:?}");
    if request.version() == Version::HTTP_11 {
        assert_eq!(hosts.len(), 1);
    }
});

/// The values of a field, as a reader finds them that knows lines and colons and no more.
fn lines(head: &[u8], name: &str) -> Vec<Vec<u8>> {
    head.split(|byte| *byte == b'\n')
        .skip(1)
        .filter_map(|line| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            let found = line[..colon].trim_ascii().eq_ignore_ascii_case(name.as_bytes());
            found.then(|| line[colon + 1..].trim_ascii().to_vec())
        })
        .collect()
}
