//! What the head of a request must be, and what the head of a response becomes.

use std::{
    cell::RefCell,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::{BufMut, BytesMut};
use http::{HeaderMap, HeaderName, Request, StatusCode, header, response};

use crate::qpack;

/// RFC 9114 section 7.2.2.
const HEADERS_FRAME: u8 = 0x01;
/// RFC 9114 section 7.2.1.
const DATA_FRAME: u8 = 0x00;

static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
static PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// What is wrong with the head of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeadFault {
    /// More fields than allowed: answered with 431.
    TooManyFields,
    /// Malformed, RFC 9114 section 4.1.2: the stream is reset.
    Malformed,
}

/// Checks what `h3` does not, and returns the announced length of the body.
pub(crate) fn check<T>(request: &Request<T>, max_fields: usize) -> Result<Option<u64>, HeadFault> {
    let headers = request.headers();
    if headers.len() > max_fields {
        return Err(HeadFault::TooManyFields);
    }
    // RFC 9114 section 4.2: a message with connection-specific fields is malformed, and so is TE with anything
    // but "trailers"
    if headers.keys().any(is_connection_specific)
        || headers.get_all(header::TE).iter().any(|te| !te.as_bytes().eq_ignore_ascii_case(b"trailers"))
    {
        return Err(HeadFault::Malformed);
    }
    content_length(headers).map_err(|()| HeadFault::Malformed)
}

/// The one value of all `Content-Length` lines; an error if they differ or are not plain numbers (RFC 9110
/// section 8.6).
pub(crate) fn content_length(headers: &HeaderMap) -> Result<Option<u64>, ()> {
    let mut length = None;
    for value in headers.get_all(header::CONTENT_LENGTH) {
        let value = number(value.as_bytes()).ok_or(())?;
        if length.is_some_and(|length| length != value) {
            return Err(());
        }
        length = Some(value);
    }
    Ok(length)
}

/// Digits only: no sign, no list, no space.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

/// RFC 9114 section 4.2.
fn is_connection_specific(name: &HeaderName) -> bool {
    name == header::CONNECTION
        || name == header::TRANSFER_ENCODING
        || name == header::UPGRADE
        || name == KEEP_ALIVE
        || name == PROXY_CONNECTION
}

/// Whether a response with this status never has a body (RFC 9110 sections 15.3.5 and 15.4.5).
pub(crate) fn is_bodiless(status: StatusCode) -> bool {
    status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED
}

/// Writes the HEADERS frame of a response. `length` is announced unless the head announces one already;
/// connection-specific fields are left out and `Date` is added where it is missing (RFC 9110 section 6.6.1).
pub(crate) fn encode_response(out: &mut BytesMut, parts: &response::Parts, length: Option<u64>) {
    encode_frame(out, |out| {
        qpack::status(out, parts.status);
        let (mut has_date, mut has_length) = (false, false);
        for (name, value) in &parts.headers {
            if is_connection_specific(name) {
                continue;
            }
            has_date |= name == header::DATE;
            has_length |= name == header::CONTENT_LENGTH;
            qpack::field(out, name, value);
        }
        if let (Some(length), false) = (length, has_length) {
            decimal(length, |digits| qpack::raw_field(out, "content-length", digits));
        }
        if !has_date {
            with_date(|date| qpack::raw_field(out, "date", date));
        }
    });
}

/// Writes the HEADERS frame of trailers.
pub(crate) fn encode_trailers(out: &mut BytesMut, trailers: &HeaderMap) {
    encode_frame(out, |out| {
        for (name, value) in trailers {
            if !is_connection_specific(name) {
                qpack::field(out, name, value);
            }
        }
    });
}

fn encode_frame(out: &mut BytesMut, fields: impl FnOnce(&mut BytesMut)) {
    out.put_u8(HEADERS_FRAME);
    let at = out.len();
    out.put_u32(0);
    qpack::begin(out);
    fields(out);
    // the length as an integer of 4 bytes (RFC 9000 section 16), whatever it is, so that nothing has to move; a
    // head of 1 GiB does not exist
    let length = (out.len() - at - 4) as u32;
    out[at..at + 4].copy_from_slice(&(length | 0x8000_0000).to_be_bytes());
}

/// Writes the header of a DATA frame.
pub(crate) fn encode_data_header(out: &mut BytesMut, length: u64) {
    out.put_u8(DATA_FRAME);
    // RFC 9000 section 16; the casts keep all bits
    match length {
        0..0x40 => out.put_u8(length as u8),
        0x40..0x4000 => out.put_u16(length as u16 | 0x4000),
        0x4000..0x4000_0000 => out.put_u32(length as u32 | 0x8000_0000),
        _ => out.put_u64(length | 0xc000_0000_0000_0000),
    }
}

fn decimal(mut number: u64, write: impl FnOnce(&[u8])) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    write(&digits[at..]);
}

/// Hands out the date of now, formatted once per second and thread.
fn with_date(write: impl FnOnce(&[u8])) {
    thread_local! {
        static DATE: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    DATE.with_borrow_mut(|(second, date)| {
        if *second != now {
            *date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(now));
            *second = now;
        }
        write(date.as_bytes());
    });
}

#[cfg(test)]
mod tests {
    use http::Response;

    use super::*;

    fn request(fields: &[(&str, &str)]) -> Request<()> {
        let mut builder = Request::builder();
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap()
    }

    #[test]
    fn heads_of_requests() {
        let malformed = Err(HeadFault::Malformed);
        for (fields, expected) in [
            (&[][..], Ok(None)),
            (&[("te", "trailers")], Ok(None)),
            (&[("te", "gzip")], malformed),
            (&[("connection", "x")], malformed),
            (&[("keep-alive", "x")], malformed),
            (&[("proxy-connection", "x")], malformed),
            (&[("transfer-encoding", "chunked")], malformed),
            (&[("upgrade", "x")], malformed),
            (&[("content-length", "12")], Ok(Some(12))),
            (&[("content-length", "12"), ("content-length", "12")], Ok(Some(12))),
            (&[("content-length", "12"), ("content-length", "13")], malformed),
            (&[("content-length", "")], malformed),
            (&[("content-length", "+1")], malformed),
            (&[("content-length", "1, 1")], malformed),
            (&[("content-length", "18446744073709551616")], malformed),
            (&[("a", "1"), ("a", "2"), ("b", "3"), ("c", "4")], Err(HeadFault::TooManyFields)),
        ] {
            assert_eq!(check(&request(fields), 3), expected, "{fields:?}");
        }
    }

    #[test]
    fn responses_lose_connection_specific_fields_and_gain_length_and_date() {
        let response = Response::builder()
            .header("connection", "x")
            .header("keep-alive", "x")
            .header("upgrade", "x")
            .header("transfer-encoding", "chunked")
            .header("proxy-connection", "x")
            .header("x-kept", "yes")
            .body(())
            .unwrap();
        let mut out = BytesMut::new();
        encode_response(&mut out, &response.into_parts().0, Some(40));
        assert_eq!(out[0], HEADERS_FRAME);
        let length = u32::from_be_bytes(out[1..5].try_into().unwrap()) & 0x3fff_ffff;
        assert_eq!(length as usize, out.len() - 5);
        let mut expected = BytesMut::new();
        qpack::begin(&mut expected);
        qpack::status(&mut expected, StatusCode::OK);
        qpack::raw_field(&mut expected, "x-kept", b"yes");
        qpack::raw_field(&mut expected, "content-length", b"40");
        qpack::raw_field(&mut expected, "date", &[b'x'; 29]);
        assert_eq!(out.len() - 5, expected.len());
        assert_eq!(out[5..out.len() - 29], expected[..expected.len() - 29]);
    }

    #[test]
    fn what_the_service_said_stays() {
        let response =
            Response::builder().header("content-length", "7").header("date", "then").body(()).unwrap();
        let mut out = BytesMut::new();
        encode_response(&mut out, &response.into_parts().0, Some(40));
        let mut expected = BytesMut::new();
        qpack::begin(&mut expected);
        qpack::status(&mut expected, StatusCode::OK);
        qpack::raw_field(&mut expected, "content-length", b"7");
        qpack::raw_field(&mut expected, "date", b"then");
        assert_eq!(out[5..], expected[..]);
    }

    #[test]
    fn data_headers_of_every_size() {
        for (length, bytes) in [
            (5, &[0, 5][..]),
            (64, &[0, 0x40, 64]),
            (16_384, &[0, 0x80, 0, 0x40, 0]),
            (1 << 30, &[0, 0xc0, 0, 0, 0, 0x40, 0, 0, 0]),
        ] {
            let mut out = BytesMut::new();
            encode_data_header(&mut out, length);
            assert_eq!(out, bytes);
        }
    }

    #[test]
    fn decimals() {
        for number in [0, 9, 10, u64::MAX] {
            decimal(number, |digits| assert_eq!(digits, number.to_string().as_bytes()));
        }
    }
}
