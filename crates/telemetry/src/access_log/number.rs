//! Numbers without the formatting machinery, which costs more than the rest of a line.

use std::{fmt, io::Write, time::Duration};

/// As it shows itself.
pub(super) fn display(out: &mut Vec<u8>, value: impl fmt::Display) {
    // a write into a Vec doesn't fail
    let _ = write!(out, "{value}");
}

/// Decimal digits.
pub(super) fn push_number(out: &mut Vec<u8>, mut number: u64) {
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
    out.extend_from_slice(&digits[at..]);
}

/// Seconds with microseconds.
pub(super) fn push_seconds(out: &mut Vec<u8>, duration: Duration) {
    push_number(out, duration.as_secs());
    out.push(b'.');
    push_padded(out, duration.subsec_micros(), 6);
}

/// Milliseconds with microseconds.
pub(super) fn push_millis(out: &mut Vec<u8>, duration: Duration) {
    push_number(out, u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
    out.push(b'.');
    push_padded(out, duration.subsec_micros() % 1000, 3);
}

/// The last `width` decimal digits, with leading zeros.
pub(super) fn push_padded(out: &mut Vec<u8>, mut number: u32, width: usize) {
    let start = out.len();
    out.resize(start + width, b'0');
    for digit in out[start..].iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for number in [0, 9, 10, 99, 100, 1_234_567_890, u64::MAX] {
            let mut out = Vec::new();
            push_number(&mut out, number);
            assert_eq!(String::from_utf8(out).unwrap(), number.to_string());
        }
        for (micros, seconds, millis) in [
            (0, "0.000000", "0.000"),
            (1, "0.000001", "0.001"),
            (999_999, "0.999999", "999.999"),
            (61_000_000, "61.000000", "61000.000"),
        ] {
            let (mut out, mut ms) = (Vec::new(), Vec::new());
            push_seconds(&mut out, Duration::from_micros(micros));
            push_millis(&mut ms, Duration::from_micros(micros));
            assert_eq!(String::from_utf8(out).unwrap(), seconds);
            assert_eq!(String::from_utf8(ms).unwrap(), millis);
        }
    }
}
