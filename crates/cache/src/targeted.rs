//! Cache control for this kind of cache alone (RFC 9213): a dictionary of structured fields (RFC 9651).

use std::time::Duration;

use http::{HeaderMap, HeaderName};

use crate::directives::ResponseDirectives;

/// A value of the dictionary; only integers matter beyond their being there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    Integer(i64),
    No,
    Other,
}

/// What the field says; `None` when it is not there, empty or no dictionary, and is to be ignored (RFC 9213 section 2.1).
pub(crate) fn read(headers: &HeaderMap, name: &HeaderName) -> Option<ResponseDirectives> {
    let mut lines = headers.get_all(name).iter().peekable();
    lines.peek()?;
    let mut read = ResponseDirectives::default();
    let mut any = false;
    for line in lines {
        let mut rest = Text { bytes: line.as_bytes().trim_ascii() };
        while !rest.bytes.is_empty() {
            let key = rest.key()?;
            let value = if rest.take(b'=') { rest.item_or_list()? } else { Value::Other };
            rest.parameters()?;
            any = true;
            note(&mut read, key, value);
            rest.skip_ows();
            if rest.bytes.is_empty() {
                break;
            }
            if !rest.take(b',') {
                return None;
            }
            rest.skip_ows();
            // A comma at the end is an error.
            if rest.bytes.is_empty() {
                return None;
            }
        }
    }
    any.then_some(read)
}

/// A later value takes the place of an earlier one. What forbids is heeded whatever its value is.
fn note(read: &mut ResponseDirectives, key: &[u8], value: Value) {
    let duration = |read: &mut Option<Duration>| {
        // RFC 9213 section 2.1: a value of another type is as if the directive were not there.
        if let Value::Integer(seconds) = value {
            let seconds = u64::try_from(seconds.max(0)).unwrap_or(0).min(1 << 31);
            *read = Some(Duration::from_secs(seconds));
        }
    };
    let set = value != Value::No;
    match key {
        b"max-age" => duration(&mut read.max_age),
        b"s-maxage" => duration(&mut read.s_maxage),
        b"stale-while-revalidate" => duration(&mut read.stale_while_revalidate),
        b"stale-if-error" => duration(&mut read.stale_if_error),
        b"no-store" => read.no_store = set,
        b"private" => read.private = set,
        b"no-cache" => read.no_cache = set,
        b"public" => read.public = set,
        b"must-revalidate" => read.must_revalidate = set,
        b"proxy-revalidate" => read.proxy_revalidate = set,
        b"must-understand" => read.must_understand = set,
        _ => {}
    }
}

struct Text<'a> {
    bytes: &'a [u8],
}

impl<'a> Text<'a> {
    fn take(&mut self, byte: u8) -> bool {
        let is = self.bytes.first() == Some(&byte);
        if is {
            self.bytes = &self.bytes[1..];
        }
        is
    }

    fn take_while(&mut self, is: impl Fn(u8) -> bool) -> &'a [u8] {
        let end = self.bytes.iter().position(|byte| !is(*byte)).unwrap_or(self.bytes.len());
        let (taken, rest) = self.bytes.split_at(end);
        self.bytes = rest;
        taken
    }

    fn skip_ows(&mut self) {
        self.take_while(|byte| matches!(byte, b' ' | b'\t'));
    }

    fn key(&mut self) -> Option<&'a [u8]> {
        let first = *self.bytes.first()?;
        (first.is_ascii_lowercase() || first == b'*').then(|| {
            self.take_while(|byte| {
                byte.is_ascii_lowercase()
                    || byte.is_ascii_digit()
                    || matches!(byte, b'_' | b'-' | b'.' | b'*')
            })
        })
    }

    fn parameters(&mut self) -> Option<()> {
        while self.take(b';') {
            self.take_while(|byte| byte == b' ');
            self.key()?;
            if self.take(b'=') {
                self.item()?;
            }
        }
        Some(())
    }

    fn item_or_list(&mut self) -> Option<Value> {
        if !self.take(b'(') {
            return self.item();
        }
        loop {
            self.take_while(|byte| byte == b' ');
            if self.take(b')') {
                return Some(Value::Other);
            }
            self.item()?;
            self.parameters()?;
            if !matches!(self.bytes.first(), Some(b' ' | b')')) {
                return None;
            }
        }
    }

    fn item(&mut self) -> Option<Value> {
        match *self.bytes.first()? {
            b'-' | b'0'..=b'9' => self.number(),
            b'"' => self.string(),
            b'?' => {
                self.take(b'?');
                if self.take(b'0') {
                    return Some(Value::No);
                }
                self.take(b'1').then_some(Value::Other)
            }
            b':' => {
                self.take(b':');
                self.take_while(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'='));
                self.take(b':').then_some(Value::Other)
            }
            b'@' => {
                self.take(b'@');
                self.number().filter(|value| matches!(value, Value::Integer(_)))?;
                Some(Value::Other)
            }
            first if first.is_ascii_alphabetic() || first == b'*' => {
                self.take_while(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&byte));
                Some(Value::Other)
            }
            _ => None,
        }
    }

    fn number(&mut self) -> Option<Value> {
        let negative = self.take(b'-');
        let digits = self.take_while(|byte| byte.is_ascii_digit());
        if digits.is_empty() || digits.len() > 15 {
            return None;
        }
        if self.take(b'.') {
            let fraction = self.take_while(|byte| byte.is_ascii_digit());
            return (matches!(fraction.len(), 1..=3) && digits.len() <= 12).then_some(Value::Other);
        }
        let value = digits.iter().fold(0_i64, |sum, digit| sum * 10 + i64::from(digit - b'0'));
        Some(Value::Integer(if negative { -value } else { value }))
    }

    fn string(&mut self) -> Option<Value> {
        self.take(b'"');
        loop {
            self.take_while(|byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\');
            if self.take(b'"') {
                return Some(Value::Other);
            }
            if !self.take(b'\\') || !(self.take(b'"') || self.take(b'\\')) {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    const NAME: HeaderName = HeaderName::from_static("cdn-cache-control");

    fn of(lines: &[&str]) -> Option<ResponseDirectives> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(NAME, line.parse().unwrap());
        }
        read(&headers, &NAME)
    }

    #[test]
    fn fields() {
        let none = ResponseDirectives::default();
        let age = |seconds| ResponseDirectives { max_age: Some(Duration::from_secs(seconds)), ..none };
        for (lines, want) in [
            (&["max-age=60"][..], Some(age(60))),
            (&["max-age=60;x=\"y\";z, foobar"], Some(age(60))),
            (&["max-age=60", "max-age=10"], Some(age(10))),
            (&["max-age=99999999999"], Some(age(1 << 31))),
            (&["max-age=-5"], Some(age(0))),
            (&["max-age=60, a=(1 \"x\" t;q), b=:aGk=:, c=?1, d=1.5, e=@99, f=*t/x"], Some(age(60))),
            (&["max-age=\"60\""], Some(none)),
            (&["max-age"], Some(none)),
            (&["max-age=1.5"], Some(none)),
            (&["no-store"], Some(ResponseDirectives { no_store: true, ..none })),
            (
                &["must-revalidate=?0, proxy-revalidate"],
                Some(ResponseDirectives { proxy_revalidate: true, ..none }),
            ),
            (&["no-store=?0, private=1"], Some(ResponseDirectives { private: true, ..none })),
            (&[], None),
            (&[""], None),
            (&["max-age=60, &&&"], None),
            (&["max-age=60,"], None),
            (&["max-age =60"], None),
            (&["max-age= 60"], None),
            (&["MaX-aGe=60"], None),
            (&["max-age=60 no-store"], None),
            (&["max-age=1234567890123456"], None),
            (&["a=\"x"], None),
            (&["a=(1"], None),
            (&["a=(1 \"b\"c)"], None),
            (&["a=?2"], None),
            (&["a=\"\\x\""], None),
        ] {
            assert_eq!(of(lines), want, "{lines:?}");
        }
    }

    proptest! {
        #[test]
        fn anything_is_survived(bytes in proptest::collection::vec(32_u8..255, 0..60)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let mut headers = HeaderMap::new();
                headers.insert(NAME, value);
                let _ = read(&headers, &NAME);
            }
        }
    }
}
