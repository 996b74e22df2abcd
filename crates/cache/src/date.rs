//! Dates of HTTP (RFC 9110 section 5.6.7), read as caches have to: letters in any case.

use std::time::SystemTime;

use http::HeaderValue;

/// The longest form is `Wednesday, 06-Nov-94 08:49:37 GMT`.
const LONGEST: usize = 40;

/// RFC 9111 section 4.2: names of days, months and the zone are matched without case. What is no date is `None`.
pub(crate) fn read(value: &HeaderValue) -> Option<SystemTime> {
    let bytes = value.as_bytes();
    let mut text = [0; LONGEST];
    let text = text.get_mut(..bytes.len())?;
    let mut inside = false;
    for (to, from) in text.iter_mut().zip(bytes) {
        *to = if inside { from.to_ascii_lowercase() } else { from.to_ascii_uppercase() };
        inside = from.is_ascii_alphabetic();
    }
    if let Some(start) = text.len().checked_sub(3) {
        let zone = &mut text[start..];
        if zone == b"Gmt" {
            zone.make_ascii_uppercase();
        }
    }
    parse(text).or_else(|| with_another_day(text))
}

fn parse(text: &[u8]) -> Option<SystemTime> {
    httpdate::parse_http_date(std::str::from_utf8(text).ok()?).ok()
}

/// The day of the week says nothing that the date does not, so a wrong one is of no account.
fn with_another_day(text: &mut [u8]) -> Option<SystemTime> {
    const DAYS: [[u8; 3]; 7] = [*b"Mon", *b"Tue", *b"Wed", *b"Thu", *b"Fri", *b"Sat", *b"Sun"];
    let said: [u8; 3] = text.get(..3)?.try_into().ok()?;
    if !DAYS.contains(&said) || !matches!(text.get(3), Some(b',' | b' ')) {
        return None;
    }
    DAYS.iter().find_map(|day| {
        text[..3].copy_from_slice(day);
        parse(text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    #[test]
    fn dates() {
        let want = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777));
        for (text, is) in [
            ("Sun, 06 Nov 1994 08:49:37 GMT", true),
            ("SUN, 06 nov 1994 08:49:37 gMt", true),
            ("Sunday, 06-Nov-94 08:49:37 GMT", true),
            ("Sun Nov  6 08:49:37 1994", true),
            ("Thu Nov  6 08:49:37 1994", true),
            ("Mon, 06 Nov 1994 08:49:37 GMT", true),
            ("Xyz, 06 Nov 1994 08:49:37 GMT", false),
            ("Sun, 31 Feb 1994 08:49:37 GMT", false),
            ("Sun, 06 Nov 1994 08:49:37 UTC", false),
            ("Sun, 06 Nov 94 08:49:37 GMT", false),
            ("Sun 06 Nov 1994 08:49:37 GMT", false),
            ("Sun, 06  Nov  1994 08:49:37 GMT", false),
            ("Sun, 06-Nov-1994 08:49:37 GMT", false),
            ("Sun, 06 Nov 1994 08.49.37 GMT", false),
            ("Sun, 06 Nov 1994 8:49:37 GMT", false),
            ("0", false),
            ("", false),
            ("Sun, 06 Nov 1994 08:49:37 GMT and something after it", false),
        ] {
            let read = read(&text.parse().unwrap());
            assert_eq!(read.is_some(), is, "{text}");
            assert!(!is || read == want, "{text}");
        }
        // Two digits are of this century where the other is long past.
        assert!(read(&"Thursday, 18-Aug-50 02:01:18 GMT".parse().unwrap()) > want);
    }

    proptest! {
        #[test]
        fn anything_is_survived(bytes in proptest::collection::vec(32_u8..255, 0..60)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let _ = read(&value);
            }
        }
    }
}
