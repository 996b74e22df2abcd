//! The request head, and how the body that follows is framed.

use bytes::BytesMut;
use http::{HeaderMap, Method, header, request};
use http_body::Body;

use super::trailers;
use crate::Error;

/// How the request body is framed (RFC 9112 section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestFraming {
    /// There is none.
    None,
    /// This many bytes.
    Length(u64),
    /// Chunks, with a trailer section.
    Chunked,
}

/// Decides the framing. The `Content-Length` field is believed if it is there, and the body is held to it later; the
/// body's own account comes second.
pub(crate) fn framing_of<B: Body>(headers: &HeaderMap, body: &B) -> Result<RequestFraming, Error> {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    if let Some(value) = lengths.next() {
        if lengths.next().is_some() {
            return Err(Error::InvalidRequest { reason: "it has more than one Content-Length" });
        }
        let length = parse_length(value.as_bytes())
            .ok_or(Error::InvalidRequest { reason: "its Content-Length is not a number" })?;
        return Ok(if length == 0 && body.is_end_stream() {
            RequestFraming::None
        } else {
            RequestFraming::Length(length)
        });
    }
    if body.is_end_stream() {
        return Ok(RequestFraming::None);
    }
    Ok(body.size_hint().exact().map_or(RequestFraming::Chunked, RequestFraming::Length))
}

/// Digits only (RFC 9110 section 8.6): no sign, no white space, no list, no overflow.
pub(crate) fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 19 {
        return None;
    }
    value.iter().try_fold(0u64, |n, b| b.is_ascii_digit().then(|| n * 10 + u64::from(b - b'0')))
}

/// Writes the head. `Host` comes from the field, else from the URI's authority, else it is the endpoint's name.
pub(crate) fn encode_head(
    out: &mut BytesMut,
    parts: &request::Parts,
    framing: RequestFraming,
    endpoint: &str,
    title: bool,
) -> Result<(), Error> {
    if parts.method == Method::CONNECT {
        return Err(Error::InvalidRequest { reason: "CONNECT has no response that this client could frame" });
    }
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    let mut need = target.len() + 64 + endpoint.len();
    for (name, value) in &parts.headers {
        need += name.as_str().len() + value.len() + 4;
    }
    out.reserve(need);
    out.extend_from_slice(parts.method.as_str().as_bytes());
    out.extend_from_slice(b" ");
    if !target.starts_with('/') && target != "*" {
        out.extend_from_slice(b"/");
    }
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let start = out.len();
    // RFC 9112 section 3.2: a client sends Host in every request; first, as RFC 9110 section 7.2 recommends.
    match parts.headers.get(header::HOST) {
        Some(host) => put_field(out, "host", host.as_bytes()),
        None => {
            let host = parts.uri.authority().map_or(endpoint, |authority| authority.as_str());
            put_field(out, "host", host.as_bytes());
        }
    }
    for (name, value) in &parts.headers {
        if *name == header::HOST || *name == header::CONTENT_LENGTH || *name == header::TRANSFER_ENCODING {
            continue;
        }
        put_field(out, name.as_str(), value.as_bytes());
    }
    // RFC 9110 section 10.1.4: TE is a field of this hop, and Connection says so
    if parts.headers.contains_key(header::TE) && !parts.headers.contains_key(header::CONNECTION) {
        put_field(out, "connection", b"te");
    }
    match framing {
        RequestFraming::Length(length) => put_length(out, length),
        RequestFraming::Chunked => put_field(out, "transfer-encoding", b"chunked"),
        // RFC 9110 section 8.6: a method that defines content says so when it has none
        RequestFraming::None
            if matches!(parts.method, Method::POST | Method::PUT | Method::PATCH)
                || parts.headers.contains_key(header::CONTENT_LENGTH) =>
        {
            put_length(out, 0);
        }
        RequestFraming::None => {}
    }
    out.extend_from_slice(b"\r\n");
    if title {
        title_case(&mut out[start..]);
    }
    Ok(())
}

/// Turns `content-length: 3` into `Content-Length: 3`, in whole lines.
fn title_case(lines: &mut [u8]) {
    for line in lines.split_mut(|&b| b == b'\n') {
        let mut first = true;
        for byte in line.iter_mut().take_while(|byte| **byte != b':') {
            if first {
                byte.make_ascii_uppercase();
            }
            first = *byte == b'-';
        }
    }
}

/// Writes a trailer section, without the fields that have no place in one.
pub(crate) fn encode_trailers(out: &mut BytesMut, section: &HeaderMap) {
    for (name, value) in section {
        if trailers::is_allowed(name) {
            put_field(out, name.as_str(), value.as_bytes());
        }
    }
}

fn put_field(out: &mut BytesMut, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn put_length(out: &mut BytesMut, mut length: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        // the remainder of a division by ten is one digit
        digits[at] = b'0' + u8::try_from(length % 10).unwrap_or(0);
        length /= 10;
        if length == 0 {
            break;
        }
    }
    put_field(out, "content-length", &digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http::Request;
    use http_body_util::{Empty, Full};

    fn head<B: Body>(request: Request<B>) -> Result<String, Error> {
        let (parts, body) = request.into_parts();
        let mut out = BytesMut::new();
        encode_head(&mut out, &parts, framing_of(&parts.headers, &body)?, "10.0.0.1:80", false)?;
        Ok(String::from_utf8(out.to_vec()).unwrap())
    }

    #[test]
    fn heads() {
        let get = Request::get("/a?b=c")
            .header("host", "h")
            .header("x-a", "1")
            .body(Empty::<Bytes>::new())
            .unwrap();
        assert_eq!(head(get).unwrap(), "GET /a?b=c HTTP/1.1\r\nhost: h\r\nx-a: 1\r\n\r\n");
        let no_host = Request::get("/").body(Empty::<Bytes>::new()).unwrap();
        assert_eq!(head(no_host).unwrap(), "GET / HTTP/1.1\r\nhost: 10.0.0.1:80\r\n\r\n");
        let authority = Request::get("http://u:1").body(Empty::<Bytes>::new()).unwrap();
        assert_eq!(head(authority).unwrap(), "GET / HTTP/1.1\r\nhost: u:1\r\n\r\n");
        let te = Request::get("/")
            .header("host", "h")
            .header("te", "trailers")
            .body(Empty::<Bytes>::new())
            .unwrap();
        assert_eq!(head(te).unwrap(), "GET / HTTP/1.1\r\nhost: h\r\nte: trailers\r\nconnection: te\r\n\r\n");
        let star = Request::options("*").header("host", "h").body(Empty::<Bytes>::new()).unwrap();
        assert_eq!(head(star).unwrap(), "OPTIONS * HTTP/1.1\r\nhost: h\r\n\r\n");
        let post = Request::post("/").header("host", "h").body(Full::new(Bytes::from("abc"))).unwrap();
        assert_eq!(head(post).unwrap(), "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\n");
        let empty_post = Request::post("/").header("host", "h").body(Empty::<Bytes>::new()).unwrap();
        assert_eq!(head(empty_post).unwrap(), "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n");
    }

    #[test]
    fn names_in_title_case_by_choice() {
        let request = Request::post("/a-b")
            .header("host", "h")
            .header("x-a-b", "c-d: e")
            .body(Full::new(Bytes::from("a")));
        let (parts, body) = request.unwrap().into_parts();
        let mut out = BytesMut::from("left: over\r\n");
        encode_head(&mut out, &parts, framing_of(&parts.headers, &body).unwrap(), "e", true).unwrap();
        let wanted =
            "left: over\r\nPOST /a-b HTTP/1.1\r\nHost: h\r\nX-A-B: c-d: e\r\nContent-Length: 1\r\n\r\n";
        assert_eq!(out, wanted);
    }

    #[test]
    fn a_caller_can_not_frame_by_hand() {
        let smuggle = Request::post("/")
            .header("host", "h")
            .header("transfer-encoding", "chunked")
            .body(Full::new(Bytes::from("abc")))
            .unwrap();
        assert!(!head(smuggle).unwrap().contains("transfer-encoding"));
        for bad in ["+3", "3,3", "0x3", "", " 3", "99999999999999999999"] {
            let request =
                Request::post("/").header("content-length", bad).body(Full::new(Bytes::from("abc"))).unwrap();
            assert!(head(request).is_err(), "{bad:?}");
        }
        let twice = Request::post("/").header("content-length", "3").header("content-length", "3");
        assert!(head(twice.body(Full::new(Bytes::from("abc"))).unwrap()).is_err());
        assert!(head(Request::connect("a:1").body(Empty::<Bytes>::new()).unwrap()).is_err());
    }

    #[test]
    fn lengths_are_written_in_full() {
        for n in [0, 7, 10, 1024, u64::MAX] {
            let mut out = BytesMut::new();
            put_length(&mut out, n);
            assert_eq!(out, format!("content-length: {n}\r\n"));
        }
    }
}
