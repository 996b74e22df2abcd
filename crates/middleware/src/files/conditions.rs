//! Conditions and ranges (RFC 9110 sections 13 and 14), as pure functions.

use std::time::{Duration, SystemTime};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method,
    header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE},
};

/// What a file is known by.
pub(super) struct Version<'v> {
    /// A strong entity tag.
    pub(super) tag: &'v str,
    /// In whole seconds, as `Last-Modified` tells it.
    pub(super) modified: Option<SystemTime>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Serve,
    NotModified,
    Failed,
}

/// RFC 9110 section 13.2.2, in its order.
pub(super) fn judge(headers: &HeaderMap, version: &Version<'_>) -> Verdict {
    if headers.contains_key(IF_MATCH) {
        // section 13.1.1: strongly
        if !lists(headers, IF_MATCH, |tag| tag == version.tag) {
            return Verdict::Failed;
        }
    } else if let (Some(since), Some(modified)) = (date(headers, IF_UNMODIFIED_SINCE), version.modified)
        && modified > since
    {
        return Verdict::Failed;
    }
    if headers.contains_key(IF_NONE_MATCH) {
        // section 13.1.2: weakly
        if lists(headers, IF_NONE_MATCH, |tag| tag.strip_prefix("W/").unwrap_or(tag) == version.tag) {
            return Verdict::NotModified;
        }
    } else if let (Some(since), Some(modified)) = (date(headers, IF_MODIFIED_SINCE), version.modified)
        && modified <= since
    {
        return Verdict::NotModified;
    }
    Verdict::Serve
}

/// Whether one of the tags is such, or all are meant (`*`).
fn lists(headers: &HeaderMap, name: HeaderName, is: impl Fn(&str) -> bool) -> bool {
    // our tags have no comma in them, so what is split wrongly is none of ours
    headers
        .get_all(name)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .any(|line| line.split(',').map(str::trim).any(|tag| tag == "*" || is(tag)))
}

fn date(headers: &HeaderMap, name: HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok()
}

/// Which part of a file is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    Whole,
    /// From the first byte, so many, at least one.
    Range {
        from: u64,
        count: u64,
    },
    /// No byte of the file is in it.
    Unsatisfiable,
}

/// One range of bytes of a GET whose `If-Range` holds. What is malformed, in another unit, or more than one range is passed over, as section 14.2 allows.
pub(super) fn part(method: &Method, headers: &HeaderMap, version: &Version<'_>, size: u64) -> Part {
    let mut lines = headers.get_all(RANGE).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else { return Part::Whole };
    if *method != Method::GET || !headers.get(IF_RANGE).is_none_or(|value| is_same(value, version)) {
        return Part::Whole;
    }
    range(line, size).unwrap_or(Part::Whole)
}

/// Section 13.1.5: a strong tag that is the same, or a date that is the same to the second.
fn is_same(value: &HeaderValue, version: &Version<'_>) -> bool {
    let Ok(value) = value.to_str() else { return false };
    if value.starts_with('"') || value.starts_with("W/") {
        return value == version.tag;
    }
    // a file that changed twice in the second of its date is not the same; it has to be older than that
    let settled = |modified: SystemTime| modified.elapsed().is_ok_and(|age| age > Duration::from_secs(1));
    let date = httpdate::parse_http_date(value).ok();
    date.is_some() && date == version.modified.filter(|modified| settled(*modified))
}

fn range(line: &HeaderValue, size: u64) -> Option<Part> {
    let line = line.to_str().ok()?;
    let (unit, set) = line.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = set.trim().split_once('-')?;
    let part = match (number(first), number(last)) {
        (None, Some(suffix)) if first.is_empty() => {
            let count = suffix.min(size);
            if count == 0 { Part::Unsatisfiable } else { Part::Range { from: size - count, count } }
        }
        (Some(from), None) if last.is_empty() => {
            if from >= size {
                Part::Unsatisfiable
            } else {
                Part::Range { from, count: size - from }
            }
        }
        (Some(from), Some(last)) if from <= last => {
            let last = last.min(size.saturating_sub(1));
            if from >= size { Part::Unsatisfiable } else { Part::Range { from, count: last - from + 1 } }
        }
        _ => return None,
    };
    Some(part)
}

/// Digits only; what is too large for us is larger than any file.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    // the largest but one, so that one more is still a number
    digits.then(|| text.parse().unwrap_or(u64::MAX).min(u64::MAX - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const THEN: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";

    fn version() -> Version<'static> {
        Version { tag: "\"a\"", modified: httpdate::parse_http_date(THEN).ok() }
    }

    fn headers(fields: &[(HeaderName, &'static str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn rfc9110_13_2_2() {
        for (fields, expected) in [
            (&[][..], Verdict::Serve),
            (&[(IF_MATCH, "\"a\"")], Verdict::Serve),
            (&[(IF_MATCH, "\"b\", \"a\"")], Verdict::Serve),
            (&[(IF_MATCH, "*")], Verdict::Serve),
            (&[(IF_MATCH, "W/\"a\"")], Verdict::Failed),
            (&[(IF_MATCH, "\"b\"")], Verdict::Failed),
            (&[(IF_MATCH, "\"a\""), (IF_UNMODIFIED_SINCE, BEFORE)], Verdict::Serve),
            (&[(IF_UNMODIFIED_SINCE, THEN)], Verdict::Serve),
            (&[(IF_UNMODIFIED_SINCE, BEFORE)], Verdict::Failed),
            (&[(IF_UNMODIFIED_SINCE, "nonsense")], Verdict::Serve),
            (&[(IF_NONE_MATCH, "\"a\"")], Verdict::NotModified),
            (&[(IF_NONE_MATCH, "W/\"a\"")], Verdict::NotModified),
            (&[(IF_NONE_MATCH, "\"b\",W/\"a\"")], Verdict::NotModified),
            (&[(IF_NONE_MATCH, "*")], Verdict::NotModified),
            (&[(IF_NONE_MATCH, "\"b\""), (IF_MODIFIED_SINCE, THEN)], Verdict::Serve),
            (&[(IF_MODIFIED_SINCE, THEN)], Verdict::NotModified),
            (&[(IF_MODIFIED_SINCE, BEFORE)], Verdict::Serve),
            (&[(IF_MATCH, "\"b\""), (IF_NONE_MATCH, "\"a\"")], Verdict::Failed),
        ] {
            assert_eq!(judge(&headers(fields), &version()), expected, "{fields:?}");
        }
    }

    #[test]
    fn rfc9110_14_2() {
        let is = |from, count| Part::Range { from, count };
        for (line, expected) in [
            ("bytes=0-0", is(0, 1)),
            ("bytes=0-9", is(0, 10)),
            ("Bytes=2-5", is(2, 4)),
            ("bytes=5-", is(5, 5)),
            ("bytes=-3", is(7, 3)),
            ("bytes=-30", is(0, 10)),
            ("bytes=5-100", is(5, 5)),
            ("bytes=0-99999999999999999999999", is(0, 10)),
            ("bytes=10-", Part::Unsatisfiable),
            ("bytes=10-11", Part::Unsatisfiable),
            ("bytes=99999999999999999999999-", Part::Unsatisfiable),
            ("bytes=-0", Part::Unsatisfiable),
            ("bytes=5-4", Part::Whole),
            ("bytes=", Part::Whole),
            ("bytes=-", Part::Whole),
            ("bytes=a-b", Part::Whole),
            ("bytes=+1-2", Part::Whole),
            ("bytes=0-1,3-4", Part::Whole),
            ("lines=0-1", Part::Whole),
            ("0-1", Part::Whole),
        ] {
            assert_eq!(part(&Method::GET, &headers(&[(RANGE, line)]), &version(), 10), expected, "{line}");
            assert_eq!(part(&Method::HEAD, &headers(&[(RANGE, line)]), &version(), 10), Part::Whole);
        }
        assert_eq!(part(&Method::GET, &headers(&[(RANGE, "bytes=0-")]), &version(), 0), Part::Unsatisfiable);
    }

    #[test]
    fn rfc9110_13_1_5() {
        for (value, holds) in [
            ("\"a\"", true),
            ("\"b\"", false),
            ("W/\"a\"", false),
            (THEN, true),
            (BEFORE, false),
            ("x", false),
        ] {
            let fields = headers(&[(RANGE, "bytes=0-0"), (IF_RANGE, value)]);
            let expected = if holds { Part::Range { from: 0, count: 1 } } else { Part::Whole };
            assert_eq!(part(&Method::GET, &fields, &version(), 10), expected, "{value}");
        }
    }
}
