//! Readers of plain values: numbers, durations, sizes, words.

use std::{ops::RangeInclusive, time::Duration};

use toml::de::DeValue;

use crate::{
    errors::escape,
    reader::{Read, Wrong, describe},
    suggest::nearest,
};

/// A value of the wrong type.
pub(crate) fn wants(what: &str, found: &DeValue<'_>) -> Wrong {
    Wrong::new(format!("wants {what}, found {}", describe(found)))
}

/// `true` or `false`.
pub(crate) fn boolean(value: &DeValue<'_>) -> Read<bool> {
    match value {
        DeValue::Boolean(value) => Ok(*value),
        DeValue::String(text) if ["true", "false"].contains(&&**text) => {
            Err(wants("true or false", value).hint("remove the quotes"))
        }
        other => Err(wants("true or false", other).hint("write true or false, without quotes")),
    }
}

/// Any string.
pub(crate) fn text<'v>(value: &'v DeValue<'_>) -> Read<&'v str> {
    match value {
        DeValue::String(text) => Ok(text),
        other => Err(wants("a string", other).hint("put it in double quotes")),
    }
}

/// A string of some form: `what` names it, `example` shows one.
pub(crate) fn word<'v>(value: &'v DeValue<'_>, what: &str, example: &str) -> Read<&'v str> {
    match value {
        DeValue::String(text) => Ok(text),
        other => Err(wants(what, other).hint(format!("for example \"{example}\""))),
    }
}

/// An integer in a range.
pub(crate) fn integer<T: TryFrom<u64>>(range: RangeInclusive<u64>) -> impl Fn(&DeValue<'_>) -> Read<T> {
    move |value| {
        let (least, most) = (range.start(), range.end());
        let number = match value {
            DeValue::Integer(number) => number,
            DeValue::String(text) if text.parse::<u64>().is_ok() => {
                return Err(wants("an integer", value).hint("remove the quotes"));
            }
            other => {
                return Err(wants("an integer", other)
                    .hint(format!("a whole number from {least} to {most}, without quotes")));
            }
        };
        i128::from_str_radix(number.as_str(), number.radix())
            .ok()
            .and_then(|number| u64::try_from(number).ok())
            .filter(|number| range.contains(number))
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| {
                let shown = escape(&number.to_string());
                Wrong::new(format!("must be from {least} to {most}, found {shown}"))
            })
    }
}

/// One of some words, with its meaning.
pub(crate) fn choice<T: Copy>(words: &[(&str, T)]) -> impl Fn(&DeValue<'_>) -> Read<T> {
    move |value| {
        let names = words.iter().map(|(name, _)| *name);
        let all = names.clone().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(" or ");
        let DeValue::String(text) = value else {
            return Err(wants(&all, value).hint("put it in double quotes"));
        };
        if let Some((_, meaning)) = words.iter().find(|(name, _)| name == text) {
            return Ok(*meaning);
        }
        let wrong = Wrong::new(format!("must be {all}, found \"{}\"", escape(text)));
        Err(match nearest(text, names) {
            Some(meant) => wrong.hint(format!("did you mean \"{meant}\"?")),
            None => wrong,
        })
    }
}

/// Milliseconds, for ranges.
pub(crate) const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Seconds, for ranges.
pub(crate) const fn secs(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// The units of a duration in milliseconds, longest first.
const TIME_UNITS: &[(&str, u64)] =
    &[("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// A duration in a range: whole numbers with units, the longest first: "10s", "500ms", "1h30m".
pub(crate) fn duration(range: RangeInclusive<Duration>) -> impl Fn(&DeValue<'_>) -> Read<Duration> {
    move |value| {
        let DeValue::String(text) = value else {
            let wrong = wants("a duration", value);
            return Err(match value {
                DeValue::Integer(number) => {
                    wrong.hint(format!("say the unit: \"{number}s\" or \"{number}ms\""))
                }
                _ => wrong.hint("for example \"10s\""),
            });
        };
        let found = parse_duration(text).ok_or_else(|| {
            Wrong::new(format!("wants a duration, found \"{}\"", escape(text)))
                .hint("a whole number and a unit, ms, s, m, h or d: \"500ms\", \"10s\", \"1h30m\"")
        })?;
        if range.contains(&found) {
            return Ok(found);
        }
        let (least, most) = (show_duration(*range.start()), show_duration(*range.end()));
        Err(Wrong::new(format!("must be from \"{least}\" to \"{most}\", found \"{}\"", escape(text))))
    }
}

/// As [`duration`], without milliseconds.
pub(crate) fn whole_seconds(range: RangeInclusive<Duration>) -> impl Fn(&DeValue<'_>) -> Read<Duration> {
    let read = duration(range);
    move |value| {
        let found = read(value)?;
        if found.subsec_nanos() != 0 {
            return Err(wants("whole seconds", value).hint("the unit is s, m, h or d"));
        }
        Ok(found)
    }
}

fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut units = TIME_UNITS.iter();
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let (unit, after) = after.split_at(after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len()));
        // going on in the same iterator lets no unit stand twice or after a shorter one
        let (_, factor) = units.find(|(name, _)| *name == unit)?;
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(*factor)?)?;
        rest = after;
    }
    (!text.is_empty()).then(|| Duration::from_millis(total))
}

fn show_duration(duration: Duration) -> String {
    let mut rest = duration.as_millis();
    let mut shown = String::new();
    for (unit, factor) in TIME_UNITS {
        let count = rest / u128::from(*factor);
        rest %= u128::from(*factor);
        if count > 0 {
            shown.push_str(&format!("{count}{unit}"));
        }
    }
    if shown.is_empty() { "0s".to_owned() } else { shown }
}

/// The units of a size in bytes, largest first.
const SIZE_UNITS: &[(&str, u64)] =
    &[("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// A number of bytes in a range: "512B", "64KiB", "1MiB".
pub(crate) fn size<T: TryFrom<u64>>(range: RangeInclusive<u64>) -> impl Fn(&DeValue<'_>) -> Read<T> {
    move |value| {
        let DeValue::String(text) = value else {
            let wrong = wants("a size", value);
            return Err(match value {
                DeValue::Integer(number) => {
                    wrong.hint(format!("say the unit: \"{number}B\" or \"{number}KiB\""))
                }
                _ => wrong.hint("for example \"64KiB\""),
            });
        };
        let found = parse_size(text).ok_or_else(|| {
            Wrong::new(format!("wants a size, found \"{}\"", escape(text)))
                .hint("a whole number and a unit, B, KiB, MiB, GiB or TiB: \"64KiB\"")
        })?;
        Some(found)
            .filter(|found| range.contains(found))
            .and_then(|found| T::try_from(found).ok())
            .ok_or_else(|| {
                let (least, most) = (show_size(*range.start()), show_size(*range.end()));
                Wrong::new(format!("must be from \"{least}\" to \"{most}\", found \"{}\"", escape(text)))
            })
    }
}

fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let (_, factor) = SIZE_UNITS.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// As [`size`] reads it.
pub(crate) fn show_size(bytes: u64) -> String {
    let (unit, factor) = SIZE_UNITS
        .iter()
        .find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor))
        .unwrap_or(&("B", 1));
    format!("{}{unit}", bytes / factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toml(text: &str) -> DeValue<'_> {
        DeValue::parse(text).unwrap().into_inner()
    }

    #[test]
    fn durations() {
        for (text, wanted) in [
            ("10s", Some(secs(10))),
            ("500ms", Some(ms(500))),
            ("5m", Some(secs(300))),
            ("1h30m", Some(secs(5400))),
            ("365d", Some(secs(365 * 86_400))),
            ("1d1h1m1s1ms", Some(ms(90_061_001))),
            ("0s", Some(Duration::ZERO)),
            ("", None),
            ("s", None),
            ("10", None),
            ("1s1m", None),
            ("1s1s", None),
            ("-1s", None),
            ("1.5s", None),
            ("10 s", None),
            ("10S", None),
            ("99999999999999999999s", None),
            ("999999999999999999d", None),
            ("18446744073709551615ms1ms", None),
            ("５s", None),
        ] {
            assert_eq!(parse_duration(text), wanted, "{text}");
        }
        for text in ["0s", "1ms", "1h30m", "2d", "1m1s"] {
            assert_eq!(show_duration(parse_duration(text).unwrap()), text);
        }
    }

    #[test]
    fn sizes() {
        for (text, wanted) in [
            ("0B", Some(0)),
            ("512B", Some(512)),
            ("64KiB", Some(65_536)),
            ("1MiB", Some(1 << 20)),
            ("2GiB", Some(2 << 30)),
            ("1TiB", Some(1 << 40)),
            ("64", None),
            ("64KB", None),
            ("64kib", None),
            ("KiB", None),
            ("", None),
            ("99999999TiB", None),
        ] {
            assert_eq!(parse_size(text), wanted, "{text}");
        }
        for text in ["0B", "1023B", "64KiB", "1MiB", "1025KiB"] {
            assert_eq!(show_size(parse_size(text).unwrap()), text);
        }
    }

    #[test]
    fn integers_keep_to_their_range_and_type() {
        let read = |text: &str| integer::<u16>(1..=70_000)(&toml(text)).map_err(|wrong| wrong.message);
        assert_eq!(read("8_0"), Ok(80));
        assert_eq!(read("0x50"), Ok(80));
        assert_eq!(read("+65535"), Ok(65_535));
        for (text, message) in [
            ("0", "must be from 1 to 70000, found 0"),
            ("-1", "must be from 1 to 70000, found -1"),
            ("65536", "must be from 1 to 70000, found 65536"),
            ("1e3", "wants an integer, found the number 1e3"),
            ("'80'", "wants an integer, found the string \"80\""),
            ("[80]", "wants an integer, found a list"),
            ("1979-05-27", "wants an integer, found a date or time"),
            ("{}", "wants an integer, found a table"),
            ("true", "wants an integer, found the boolean true"),
        ] {
            assert_eq!(read(text), Err(message.to_owned()), "{text}");
        }
        assert!(read(&"9".repeat(200)).is_err());
    }

    #[test]
    fn wrong_values_say_what_would_be_right() {
        let hint = |wrong: Wrong| wrong.hint.unwrap_or_default();
        assert_eq!(hint(boolean(&toml("'true'")).unwrap_err()), "remove the quotes");
        assert_eq!(
            hint(duration(ms(0)..=secs(1))(&toml("10")).unwrap_err()),
            "say the unit: \"10s\" or \"10ms\""
        );
        assert_eq!(hint(size::<u64>(0..=1)(&toml("10")).unwrap_err()), "say the unit: \"10B\" or \"10KiB\"");
        assert_eq!(
            duration(ms(100)..=secs(60))(&toml("'2m'")).unwrap_err().message,
            "must be from \"100ms\" to \"1m\", found \"2m\""
        );
        assert_eq!(
            size::<u64>(1..=1 << 20)(&toml("'2MiB'")).unwrap_err().message,
            "must be from \"1B\" to \"1MiB\", found \"2MiB\""
        );
        let words = choice(&[("combined", 1), ("json", 2)]);
        assert_eq!(words(&toml("'json'")).unwrap(), 2);
        let wrong = words(&toml("'jsn'")).unwrap_err();
        assert_eq!(wrong.message, "must be \"combined\" or \"json\", found \"jsn\"");
        assert_eq!(hint(wrong), "did you mean \"json\"?");
    }
}
