//! Response heads and trailer sections, parsed without copying their values.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header, response};

use super::{decode::Decoder, encode::parse_length, trailers};
use crate::ProtocolError;

/// Fields in a head or trailer section.
const MAX_FIELDS: usize = 100;

/// A response head and how its body ends.
#[derive(Debug)]
pub(crate) struct ResponseHead {
    pub(crate) parts: response::Parts,
    pub(crate) decoder: Decoder,
    /// Whether the connection may carry another request once this response is read to its end.
    pub(crate) keep_alive: bool,
}

/// Where a field's name and value stand in the buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    name: (usize, usize),
    value: (usize, usize),
}

/// Takes one head off the front of `buf`; `None` if it is not complete.
pub(crate) fn parse_head(
    buf: &mut BytesMut,
    spans: &mut Vec<Span>,
    method: &Method,
    max_bytes: usize,
) -> Result<Option<ResponseHead>, ProtocolError> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    // httparse's default is the strict grammar of RFC 9112: no obs-fold, no space before the colon
    let result =
        httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, buf, &mut fields);
    let length = match result {
        Ok(httparse::Status::Complete(length)) if length <= max_bytes => length,
        Ok(httparse::Status::Partial) if buf.len() < max_bytes => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(ProtocolError::HeadTooLarge),
        Err(error) => return Err(ProtocolError::Head(error)),
    };
    let version = if parsed.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    let status = parsed
        .code
        .and_then(|code| StatusCode::from_u16(code).ok())
        .ok_or(ProtocolError::Head(httparse::Error::Status))?;
    spans.clear();
    spans.extend(parsed.headers.iter().map(|field| Span::of(buf, field)));
    let head = buf.split_to(length).freeze();
    let headers = to_map(&head, spans)?;
    let (mut parts, ()) = http::Response::new(()).into_parts();
    parts.status = status;
    parts.version = version;
    parts.headers = headers;
    interpret(parts, method).map(Some)
}

impl Span {
    fn of(buf: &[u8], field: &httparse::Header<'_>) -> Self {
        Self { name: span_in(buf, field.name.as_bytes()), value: span_in(buf, field.value) }
    }
}

fn span_in(buf: &[u8], part: &[u8]) -> (usize, usize) {
    if part.is_empty() {
        return (0, 0);
    }
    let start = part.as_ptr() as usize - buf.as_ptr() as usize;
    (start, start + part.len())
}

fn to_map(head: &Bytes, spans: &[Span]) -> Result<HeaderMap, ProtocolError> {
    let mut headers = HeaderMap::with_capacity(spans.len() + 2);
    for span in spans {
        let name = HeaderName::from_bytes(&head[span.name.0..span.name.1])
            .map_err(|_| ProtocolError::Head(httparse::Error::HeaderName))?;
        let value = HeaderValue::from_maybe_shared(head.slice(span.value.0..span.value.1))
            .map_err(|_| ProtocolError::Head(httparse::Error::HeaderValue))?;
        headers.append(name, value);
    }
    Ok(headers)
}

/// How the body ends (RFC 9112 section 6.3) and whether the connection lives on (section 9.3).
fn interpret(mut parts: response::Parts, method: &Method) -> Result<ResponseHead, ProtocolError> {
    let (mut keep_alive, mut close) = (parts.version == Version::HTTP_11, false);
    for value in parts.headers.get_all(header::CONNECTION) {
        for token in value.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii) {
            if token.eq_ignore_ascii_case(b"close") {
                close = true;
            } else if token.eq_ignore_ascii_case(b"keep-alive") && parts.version == Version::HTTP_10 {
                keep_alive = true;
            }
        }
    }
    keep_alive &= !close;
    let length = content_length(&mut parts.headers)?;
    let chunked = is_chunked(&parts)?;
    if chunked && length.is_some() {
        // section 6.3: two readings of where the body ends; nothing good sends this
        return Err(ProtocolError::TransferEncoding);
    }
    let status = parts.status;
    let bodiless = *method == Method::HEAD
        || status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED;
    let decoder = match (bodiless, chunked, length) {
        (true, ..) => Decoder::none(),
        (false, true, _) => Decoder::chunked(),
        (false, false, Some(length)) => Decoder::length(length),
        (false, false, None) => {
            keep_alive = false;
            Decoder::until_close()
        }
    };
    parts.headers.remove(header::TRANSFER_ENCODING);
    Ok(ResponseHead { parts, decoder, keep_alive })
}

/// One length, if every line agrees; repeated equal lines become one (RFC 9110 section 8.6).
fn content_length(headers: &mut HeaderMap) -> Result<Option<u64>, ProtocolError> {
    let mut lines = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(first) = lines.next() else { return Ok(None) };
    let length = parse_length(first.as_bytes()).ok_or(ProtocolError::ContentLength)?;
    let mut repeated = None;
    for line in lines {
        if parse_length(line.as_bytes()) != Some(length) {
            return Err(ProtocolError::ContentLength);
        }
        repeated = Some(first.clone());
    }
    if let Some(first) = repeated {
        headers.insert(header::CONTENT_LENGTH, first);
    }
    Ok(Some(length))
}

/// Exactly one `chunked`, on HTTP/1.1 only (RFC 9112 section 6.1).
fn is_chunked(parts: &response::Parts) -> Result<bool, ProtocolError> {
    let mut lines = parts.headers.get_all(header::TRANSFER_ENCODING).iter();
    let Some(first) = lines.next() else { return Ok(false) };
    let exact = first.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    if lines.next().is_some() || !exact || parts.version == Version::HTTP_10 {
        return Err(ProtocolError::TransferEncoding);
    }
    Ok(true)
}

/// Takes a trailer section with its closing empty line off the front of `buf`; `None` if it is not complete.
pub(crate) fn parse_trailers(
    buf: &mut BytesMut,
    max_bytes: usize,
) -> Result<Option<HeaderMap>, ProtocolError> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let (length, count) = match httparse::parse_headers(buf, &mut fields) {
        Ok(httparse::Status::Complete((length, parsed))) if length <= max_bytes => (length, parsed.len()),
        Ok(httparse::Status::Partial) if buf.len() < max_bytes => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(ProtocolError::HeadTooLarge),
        Err(_) => return Err(ProtocolError::Trailer),
    };
    let spans: Vec<Span> = fields[..count].iter().map(|field| Span::of(buf, field)).collect();
    let section = buf.split_to(length).freeze();
    let mut trailers = to_map(&section, &spans).map_err(|_| ProtocolError::Trailer)?;
    trailers::keep_allowed(&mut trailers);
    Ok(Some(trailers))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, method: &Method) -> Result<Option<ResponseHead>, ProtocolError> {
        parse_head(&mut BytesMut::from(text), &mut Vec::new(), method, 4096)
    }

    #[test]
    fn framing_table() {
        use Decoder as D;
        let ok: &[(&str, Method, Decoder, bool)] = &[
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", Method::GET, D::length(5), true),
            (
                "HTTP/1.1 200 \r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
                Method::GET,
                D::length(5),
                true,
            ),
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", Method::HEAD, D::none(), true),
            ("HTTP/1.1 204 No Content\r\n\r\n", Method::GET, D::none(), true),
            ("HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n", Method::GET, D::none(), true),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n", Method::GET, D::chunked(), true),
            ("HTTP/1.1 200 OK\r\n\r\n", Method::GET, D::until_close(), false),
            (
                "HTTP/1.1 200 OK\r\nconnection: x, Close\r\ncontent-length: 1\r\n\r\n",
                Method::GET,
                D::length(1),
                false,
            ),
            ("HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\n", Method::GET, D::length(1), false),
            (
                "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 1\r\n\r\n",
                Method::GET,
                D::length(1),
                true,
            ),
        ];
        for (text, method, decoder, keep_alive) in ok {
            let head = parse(text, method).unwrap().unwrap();
            assert_eq!((&head.decoder, head.keep_alive), (decoder, *keep_alive), "{text}");
            assert!(!head.parts.headers.contains_key(header::TRANSFER_ENCODING));
            assert!(head.parts.headers.get_all(header::CONTENT_LENGTH).iter().count() < 2);
        }
    }

    #[test]
    fn ambiguous_answers_are_refused() {
        use ProtocolError as E;
        let bad: &[(&str, E)] = &[
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n", E::ContentLength),
            ("HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\n\r\n", E::ContentLength),
            ("HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\n", E::ContentLength),
            ("HTTP/1.1 200 OK\r\ncontent-length: \r\n\r\n", E::ContentLength),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
                E::TransferEncoding,
            ),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n", E::TransferEncoding),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
                E::TransferEncoding,
            ),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: xchunked\r\n\r\n", E::TransferEncoding),
            ("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", E::TransferEncoding),
        ];
        for (text, error) in bad {
            assert_eq!(parse(text, &Method::GET).unwrap_err(), *error, "{text}");
        }
        for text in [
            "HTTP/2.0 200 OK\r\n\r\n",
            "HTTP/1.1 99 x\r\n\r\n",
            "ICY 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\na b: c\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: b\r\n folded\r\n\r\n",
            "HTTP/1.1 200 OK\r\n: empty\r\n\r\n",
            "HTTP/1.1 200 OK\r\na : b\r\n\r\n",
        ] {
            assert!(matches!(parse(text, &Method::GET), Err(E::Head(_))), "{text}");
        }
    }

    #[test]
    fn size_and_count_are_bounded() {
        let long = format!("HTTP/1.1 200 OK\r\na: {}\r\n\r\n", "x".repeat(5000));
        assert_eq!(parse(&long, &Method::GET).unwrap_err(), ProtocolError::HeadTooLarge);
        assert_eq!(parse(&long[..4500], &Method::GET).unwrap_err(), ProtocolError::HeadTooLarge);
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(101));
        assert_eq!(parse(&many, &Method::GET).unwrap_err(), ProtocolError::HeadTooLarge);
    }

    #[test]
    fn every_prefix_is_incomplete() {
        let text = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx: \r\n\r\n";
        for end in 0..text.len() {
            assert!(parse(&text[..end], &Method::GET).unwrap().is_none(), "{end}");
        }
        let head = parse(text, &Method::GET).unwrap().unwrap();
        assert_eq!(head.parts.headers["x"], "");
    }

    #[test]
    fn trailers() {
        let mut buf = BytesMut::from("grpc-status: 0\r\ncontent-length: 9\r\n\r\nrest");
        let map = parse_trailers(&mut buf, 4096).unwrap().unwrap();
        assert_eq!((map.len(), map["grpc-status"].as_bytes(), &buf[..]), (1, &b"0"[..], &b"rest"[..]));
        assert!(parse_trailers(&mut BytesMut::from("a: b\r\n"), 4096).unwrap().is_none());
        assert!(parse_trailers(&mut BytesMut::from("a b: c\r\n\r\n"), 4096).is_err());
    }
}
