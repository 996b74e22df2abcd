//! Byte ranges of a stored response (RFC 9110 section 14).

use std::{ops::Range, time::Duration};

use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{DATE, ETAG, IF_RANGE, LAST_MODIFIED, RANGE},
};

use crate::date;

const SECOND: Duration = Duration::from_secs(1);

/// What a request wants of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Whole,
    Bytes(Range<u64>),
    /// 416.
    Unsatisfiable,
}

/// The fields of a request that ask for a part, kept while it is forwarded for the whole.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ranged {
    asked: bool,
    range: Option<HeaderValue>,
    condition: Option<HeaderValue>,
}

impl Ranged {
    /// A range is a matter of GET alone (RFC 9110 section 14.2).
    pub(crate) fn read(method: &Method, headers: &HeaderMap) -> Self {
        let Some(range) = headers.get(RANGE).filter(|_| *method == Method::GET) else {
            return Self::default();
        };
        // Two fields are none here; what they are to the origin is up to it.
        let once = headers.get_all(RANGE).iter().count() == 1;
        let range = once.then(|| range.clone());
        Self { asked: true, range, condition: headers.get(IF_RANGE).cloned() }
    }

    /// Whether the request, forwarded as it is, may be answered with a part.
    pub(crate) fn is_some(&self) -> bool {
        self.asked
    }

    /// Which part of a body of this length, which has these fields. Several ranges get the whole, as they may (section 14.2):
    /// what they cost would be up to the client.
    pub(crate) fn part(&self, status: StatusCode, fields: &HeaderMap, len: u64) -> Part {
        match &self.range {
            Some(range) if status == StatusCode::OK && self.condition_holds(fields) => {
                part(range.as_bytes(), len)
            }
            _ => Part::Whole,
        }
    }

    /// RFC 9110 section 13.1.5: by a strong tag, or by the very date where it is strong (section 8.8.2.2).
    fn condition_holds(&self, fields: &HeaderMap) -> bool {
        let Some(condition) = &self.condition else { return true };
        if condition.as_bytes().starts_with(b"\"") {
            return fields.get(ETAG) == Some(condition);
        }
        let strong = |modified: &HeaderValue| {
            let sent = fields.get(DATE).and_then(date::read);
            date::read(modified).zip(sent).is_some_and(|(modified, sent)| modified + SECOND <= sent)
        };
        fields.get(LAST_MODIFIED).is_some_and(|modified| modified == condition && strong(modified))
    }
}

fn part(range: &[u8], len: u64) -> Part {
    let Some(specifier) = range
        .get(..6)
        .filter(|unit| unit.eq_ignore_ascii_case(b"bytes="))
        .and_then(|_| std::str::from_utf8(&range[6..]).ok())
    else {
        return Part::Whole;
    };
    let Some((first, last)) = specifier.trim().split_once('-') else { return Part::Whole };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // Too large is as good as the largest.
    let number = |text: &str| text.parse().unwrap_or(u64::MAX);
    match (digits(first), digits(last)) {
        (true, _) if last.is_empty() || digits(last) => {
            let start: u64 = number(first);
            let end = if last.is_empty() { len } else { number(last).saturating_add(1).min(len) };
            if !last.is_empty() && number(last) < start {
                // No range at all (section 14.1.1).
                return Part::Whole;
            }
            if start < len { Part::Bytes(start..end) } else { Part::Unsatisfiable }
        }
        (false, true) if first.is_empty() => match number(last).min(len) {
            0 => Part::Unsatisfiable,
            suffix => Part::Bytes(len - suffix..len),
        },
        _ => Part::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges() {
        for (range, want) in [
            ("bytes=0-1", Part::Bytes(0..2)),
            ("bytes=0-0", Part::Bytes(0..1)),
            ("BYTES=0-99", Part::Bytes(0..10)),
            ("bytes=9-", Part::Bytes(9..10)),
            ("bytes=0-", Part::Bytes(0..10)),
            ("bytes=-1", Part::Bytes(9..10)),
            ("bytes=-99", Part::Bytes(0..10)),
            ("bytes=0-99999999999999999999999", Part::Bytes(0..10)),
            ("bytes=-99999999999999999999999", Part::Bytes(0..10)),
            ("bytes=10-", Part::Unsatisfiable),
            ("bytes=10-11", Part::Unsatisfiable),
            ("bytes=99999999999999999999999-", Part::Unsatisfiable),
            ("bytes=-0", Part::Unsatisfiable),
            ("bytes=5-4", Part::Whole),
            ("bytes=0-1,3-4", Part::Whole),
            ("bytes=", Part::Whole),
            ("bytes=-", Part::Whole),
            ("bytes=a-b", Part::Whole),
            ("bytes=+1-2", Part::Whole),
            ("bytes=1--2", Part::Whole),
            ("bytes 0-1", Part::Whole),
            ("lines=0-1", Part::Whole),
            ("", Part::Whole),
        ] {
            assert_eq!(part(range.as_bytes(), 10), want, "{range}");
        }
        assert_eq!(part(b"bytes=0-", 0), Part::Unsatisfiable);
    }

    #[test]
    fn a_condition_decides_whether_it_counts() {
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        let stored = HeaderMap::from_iter([
            (ETAG, "\"a\"".parse().unwrap()),
            (LAST_MODIFIED, date.parse().unwrap()),
            (DATE, "Sun, 06 Nov 1994 08:49:38 GMT".parse().unwrap()),
        ]);
        let mut just_written = stored.clone();
        just_written.insert(DATE, date.parse().unwrap());
        for (condition, counts) in [
            (None, true),
            (Some("\"a\""), true),
            (Some(date), true),
            (Some("\"b\""), false),
            (Some("W/\"a\""), false),
            (Some("Sun, 06 Nov 1994 08:49:38 GMT"), false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RANGE, "bytes=0-1".parse().unwrap());
            if let Some(condition) = condition {
                headers.insert(IF_RANGE, condition.parse().unwrap());
            }
            let part = Ranged::read(&Method::GET, &headers).part(StatusCode::OK, &stored, 10);
            assert_eq!(part == Part::Bytes(0..2), counts, "{condition:?}");
            assert_eq!(Ranged::read(&Method::HEAD, &headers).part(StatusCode::OK, &stored, 10), Part::Whole);
            assert_eq!(
                Ranged::read(&Method::GET, &headers).part(StatusCode::NOT_FOUND, &stored, 10),
                Part::Whole
            );
            let part = Ranged::read(&Method::GET, &headers).part(StatusCode::OK, &just_written, 10);
            assert_eq!(part == Part::Bytes(0..2), counts && condition != Some(date), "{condition:?}");
            headers.append(RANGE, "bytes=0-2".parse().unwrap());
            assert_eq!(Ranged::read(&Method::GET, &headers).part(StatusCode::OK, &stored, 10), Part::Whole);
        }
    }

    proptest! {
        #[test]
        fn what_comes_out_is_within(range in "bytes=[0-9,-]{0,12}|[ -~]{0,20}", len in 0_u64..100) {
            if let Part::Bytes(range) = part(range.as_bytes(), len) {
                prop_assert!(range.start < range.end && range.end <= len);
            }
        }
    }
}
