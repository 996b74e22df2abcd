//! Times in UTC, formatted once per second and thread.

use std::{
    cell::Cell,
    time::{SystemTime, UNIX_EPOCH},
};

use super::number::{push_number, push_padded};

/// A second in both forms: `20/Nov/2026:17:04:05 +0000` and `2026-11-20T17:04:05`.
#[derive(Clone, Copy)]
struct Second {
    since_epoch: u64,
    clf: [u8; 26],
    rfc3339: [u8; 19],
}

thread_local! {
    static LAST: Cell<Option<Second>> = const { Cell::new(None) };
}

/// As the combined log format has it.
pub(super) fn push_clf(out: &mut Vec<u8>, time: SystemTime) {
    let (seconds, _) = since_epoch(time);
    out.extend_from_slice(&second(seconds).clf);
}

/// RFC 3339, with milliseconds.
pub(super) fn push_rfc3339(out: &mut Vec<u8>, time: SystemTime) {
    let (seconds, millis) = since_epoch(time);
    out.extend_from_slice(&second(seconds).rfc3339);
    out.push(b'.');
    push_padded(out, millis, 3);
    out.push(b'Z');
}

/// As syslog daemons expect it (RFC 3164 section 4.1.2), in UTC: `Nov 20 17:04:05`.
#[cfg(unix)]
pub(super) fn push_syslog(out: &mut Vec<u8>, time: SystemTime) {
    let (seconds, _) = since_epoch(time);
    let clf = second(seconds).clf;
    // 20/Nov/2026:17:04:05: the day with a space in the place of a leading zero
    out.extend_from_slice(&clf[3..6]);
    out.push(b' ');
    out.push(if clf[0] == b'0' { b' ' } else { clf[0] });
    out.push(clf[1]);
    out.push(b' ');
    out.extend_from_slice(&clf[12..20]);
}

/// Seconds since 1970, with milliseconds.
pub(super) fn push_unix(out: &mut Vec<u8>, time: SystemTime) {
    let (seconds, millis) = since_epoch(time);
    push_number(out, seconds);
    out.push(b'.');
    push_padded(out, millis, 3);
}

/// A time in UTC as RFC 3339 has it, with milliseconds: `2026-11-20T17:04:05.123Z`. Before 1970 and after 9999 it is the nearest of these
/// years.
pub fn rfc3339(time: SystemTime) -> String {
    let mut out = Vec::with_capacity(24);
    push_rfc3339(&mut out, time);
    String::from_utf8_lossy(&out).into_owned()
}

/// Whole seconds and milliseconds, held to 1970 ..= 9999, where both forms have their fixed width.
fn since_epoch(time: SystemTime) -> (u64, u32) {
    const END_OF_9999: u64 = 253_402_300_799;
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    (since.as_secs().min(END_OF_9999), since.subsec_millis())
}

fn second(since_epoch: u64) -> Second {
    LAST.with(|last| match last.get() {
        Some(second) if second.since_epoch == since_epoch => second,
        _ => {
            let second = format_second(since_epoch);
            last.set(Some(second));
            second
        }
    })
}

fn format_second(since_epoch: u64) -> Second {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (year, month, day) = date(since_epoch / 86_400);
    let in_day = (since_epoch % 86_400) as u32;
    let clock = [in_day / 3600, in_day / 60 % 60, in_day % 60];
    let push_clock = |out: &mut Vec<u8>| {
        for (at, part) in clock.into_iter().enumerate() {
            if at > 0 {
                out.push(b':');
            }
            push_padded(out, part, 2);
        }
    };

    let mut clf = Vec::with_capacity(26);
    push_padded(&mut clf, day, 2);
    clf.push(b'/');
    clf.extend_from_slice(MONTHS[month as usize - 1].as_bytes());
    clf.push(b'/');
    push_number(&mut clf, year.into());
    clf.push(b':');
    push_clock(&mut clf);
    clf.extend_from_slice(b" +0000");

    let mut rfc3339 = Vec::with_capacity(19);
    push_number(&mut rfc3339, year.into());
    for part in [month, day] {
        rfc3339.push(b'-');
        push_padded(&mut rfc3339, part, 2);
    }
    rfc3339.push(b'T');
    push_clock(&mut rfc3339);

    let width = "years from 1970 to 9999 have four digits, all other parts two or three";
    Second { since_epoch, clf: clf.try_into().expect(width), rfc3339: rfc3339.try_into().expect(width) }
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
fn date(days: u64) -> (u32, u32, u32) {
    const FOUR_CENTURIES: u64 = 146_097;
    // counted from 1600-03-01, so that a leap day is the last of its year, century and cycle
    let days = days + 135_080;
    let (cycle, rest) = (days / FOUR_CENTURIES, days % FOUR_CENTURIES);
    let century = (rest / 36_524).min(3);
    let rest = rest - century * 36_524;
    let olympiad = rest / 1461;
    let rest = rest % 1461;
    let single = (rest / 365).min(3);
    let day_of_year = rest - single * 365;
    let year = 1600 + cycle * 400 + century * 100 + olympiad * 4 + single;
    // months from March on have 31, 30, 31, 30, 31, then again, then 31 and what is left: 153 days in five
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (year, month) = if month < 10 { (year, month + 3) } else { (year + 1, month - 9) };
    (year as u32, month as u32, day as u32)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn forms(seconds: u64, millis: u64) -> (String, String) {
        let time = UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(millis);
        let (mut clf, mut rfc3339) = (Vec::new(), Vec::new());
        push_clf(&mut clf, time);
        push_rfc3339(&mut rfc3339, time);
        (String::from_utf8(clf).unwrap(), String::from_utf8(rfc3339).unwrap())
    }

    #[test]
    fn known_times() {
        let table = [
            (0, 0, "01/Jan/1970:00:00:00 +0000", "1970-01-01T00:00:00.000Z"),
            (68_169_599, 999, "28/Feb/1972:23:59:59 +0000", "1972-02-28T23:59:59.999Z"),
            (68_169_600, 0, "29/Feb/1972:00:00:00 +0000", "1972-02-29T00:00:00.000Z"),
            (951_782_400, 0, "29/Feb/2000:00:00:00 +0000", "2000-02-29T00:00:00.000Z"),
            (951_868_800, 0, "01/Mar/2000:00:00:00 +0000", "2000-03-01T00:00:00.000Z"),
            (1_795_194_245, 7, "20/Nov/2026:17:04:05 +0000", "2026-11-20T17:04:05.007Z"),
            (4_107_542_400, 0, "01/Mar/2100:00:00:00 +0000", "2100-03-01T00:00:00.000Z"),
            (253_402_300_799, 0, "31/Dec/9999:23:59:59 +0000", "9999-12-31T23:59:59.000Z"),
            (253_402_300_800, 0, "31/Dec/9999:23:59:59 +0000", "9999-12-31T23:59:59.000Z"),
        ];
        for (seconds, millis, clf, rfc3339) in table {
            assert_eq!(forms(seconds, millis), (clf.to_owned(), rfc3339.to_owned()));
        }
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let leap =
            |year: u32| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let length = |year, month| match month {
            4 | 6 | 9 | 11 => 30,
            2 => 28 + u32::from(leap(year)),
            _ => 31,
        };
        let mut expected = (1970, 1, 1);
        for day in 0..366 * 500 {
            assert_eq!(date(day), expected);
            let (year, month, day) = expected;
            expected = if day < length(year, month) {
                (year, month, day + 1)
            } else if month < 12 {
                (year, month + 1, 1)
            } else {
                (year + 1, 1, 1)
            };
        }
    }

    #[test]
    fn before_1970_is_1970() {
        let mut out = Vec::new();
        push_clf(&mut out, UNIX_EPOCH - Duration::from_secs(1));
        assert_eq!(out, b"01/Jan/1970:00:00:00 +0000");
    }
}
