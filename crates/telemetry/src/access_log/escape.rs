//! Makes text that a client chose safe inside quotes, and short.

/// Which quotes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Style {
    /// Double quotes in a line of text: `\"`, `\\`, and `\xHH` for every byte outside printable ASCII.
    Quoted,
    /// The same outside of quotes: a space is `\x20`.
    Bare,
    /// A JSON string (RFC 8259 section 7): UTF-8 stays, but for control characters and line separators.
    Json,
}

/// In place of what is cut.
const CUT: &[u8] = b"...";

/// Appends the text, escaped. Once it would take more than `limit` bytes it is cut, and three dots are appended.
pub(super) fn escape(out: &mut Vec<u8>, text: &[u8], limit: usize, style: Style) {
    let end = out.len() + limit;
    let fits = match style {
        Style::Quoted => escape_quoted(out, text, end, is_plain),
        Style::Bare => escape_quoted(out, text, end, |byte| is_plain(byte) && byte != b' '),
        Style::Json => escape_json(out, text, end),
    };
    if !fits {
        out.extend_from_slice(CUT);
    }
}

fn escape_quoted(out: &mut Vec<u8>, mut text: &[u8], end: usize, is_plain: impl Fn(u8) -> bool) -> bool {
    loop {
        let run = run_of(text, &is_plain);
        if !push_ascii(out, &text[..run], end) {
            return false;
        }
        let Some((byte, rest)) = text[run..].split_first() else { return true };
        let fits = match byte {
            b'"' | b'\\' => push_whole(out, &[b'\\', *byte], end),
            _ => push_whole(out, &[b'\\', b'x', hex(byte >> 4), hex(byte & 15)], end),
        };
        if !fits {
            return false;
        }
        text = rest;
    }
}

fn escape_json(out: &mut Vec<u8>, text: &[u8], end: usize) -> bool {
    text.utf8_chunks().all(|chunk| {
        escape_json_str(out, chunk.valid(), end)
            && (chunk.invalid().is_empty() || push_whole(out, "\u{fffd}".as_bytes(), end))
    })
}

fn escape_json_str(out: &mut Vec<u8>, mut text: &str, end: usize) -> bool {
    loop {
        let run = run_of(text.as_bytes(), is_plain);
        if !push_ascii(out, &text.as_bytes()[..run], end) {
            return false;
        }
        let mut rest = text[run..].chars();
        let Some(special) = rest.next() else { return true };
        let fits = match special {
            '"' | '\\' => push_whole(out, &[b'\\', special as u8], end),
            // C1 controls steer terminals as C0 do; U+2028 and U+2029 break lines in JavaScript; U+202A to U+202E and U+2066
            // to U+2069 turn the direction of what follows
            '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                let code = special as u32;
                let digit = |shift: u32| hex((code >> shift & 15) as u8);
                push_whole(out, &[b'\\', b'u', digit(12), digit(8), digit(4), digit(0)], end)
            }
            other => push_whole(out, other.encode_utf8(&mut [0; 4]).as_bytes(), end),
        };
        if !fits {
            return false;
        }
        text = rest.as_str();
    }
}

/// How many bytes of the text are so, from its beginning. Sixteen at a time, as processors like it.
pub(super) fn run_of(text: &[u8], is: impl Fn(u8) -> bool) -> usize {
    let (chunks, _) = text.as_chunks::<16>();
    let whole = chunks.iter().take_while(|chunk| chunk.iter().fold(true, |all, byte| all & is(*byte)));
    let run = whole.count() * 16;
    run + text[run..].iter().position(|byte| !is(*byte)).unwrap_or(text.len() - run)
}

/// Printable ASCII that means nothing inside quotes.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\'
}

/// Appends as much as fits.
fn push_ascii(out: &mut Vec<u8>, text: &[u8], end: usize) -> bool {
    let room = end - out.len();
    out.extend_from_slice(&text[..text.len().min(room)]);
    text.len() <= room
}

/// Appends all of it or nothing.
fn push_whole(out: &mut Vec<u8>, text: &[u8], end: usize) -> bool {
    let fits = text.len() <= end - out.len();
    if fits {
        out.extend_from_slice(text);
    }
    fits
}

fn hex(nibble: u8) -> u8 {
    b"0123456789abcdef"[usize::from(nibble & 15)]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn escaped(text: &[u8], limit: usize, style: Style) -> String {
        let mut out = b">".to_vec();
        escape(&mut out, text, limit, style);
        String::from_utf8(out).unwrap()[1..].to_owned()
    }

    #[test]
    fn what_becomes_of_what() {
        let table: [(&[u8], &str, &str); 13] = [
            (b"", "", ""),
            (b"/plain?a=b&c", "/plain?a=b&c", "/plain?a=b&c"),
            (b"say \"hi\"", "say \\\"hi\\\"", "say \\\"hi\\\""),
            (b"back\\slash", "back\\\\slash", "back\\\\slash"),
            (b"two\r\nlines", "two\\x0d\\x0alines", "two\\u000d\\u000alines"),
            (b"\x1b[31mred", "\\x1b[31mred", "\\u001b[31mred"),
            (b"nul\0", "nul\\x00", "nul\\u0000"),
            (b"del\x7f", "del\\x7f", "del\\u007f"),
            ("\u{e9}".as_bytes(), "\\xc3\\xa9", "\u{e9}"),
            ("csi\u{9b}".as_bytes(), "csi\\xc2\\x9b", "csi\\u009b"),
            ("\u{2028}".as_bytes(), "\\xe2\\x80\\xa8", "\\u2028"),
            ("\u{202e}x".as_bytes(), "\\xe2\\x80\\xaex", "\\u202ex"),
            (b"not\xffutf8", "not\\xffutf8", "not\u{fffd}utf8"),
        ];
        for (text, quoted, json) in table {
            assert_eq!(escaped(text, 100, Style::Quoted), quoted);
            assert_eq!(escaped(text, 100, Style::Bare), quoted.replace(' ', "\\x20"));
            assert_eq!(escaped(text, 100, Style::Json), json);
        }
    }

    #[test]
    fn cut_between_escapes_and_characters() {
        let table: [(&[u8], usize, &str, &str); 6] = [
            (b"abcdef", 6, "abcdef", "abcdef"),
            (b"abcdef", 5, "abcde...", "abcde..."),
            (b"abc\"", 4, "abc...", "abc..."),
            (b"abc\"", 5, "abc\\\"", "abc\\\""),
            (b"ab\n", 5, "ab...", "ab..."),
            ("ab\u{20ac}".as_bytes(), 4, "ab...", "ab..."),
        ];
        for (text, limit, quoted, json) in table {
            assert_eq!(escaped(text, limit, Style::Quoted), quoted);
            assert_eq!(escaped(text, limit, Style::Json), json);
        }
    }

    proptest! {
        #[test]
        fn always_printable_and_never_too_long(text in prop::collection::vec(any::<u8>(), 0..64), limit in 0_usize..80) {
            let quoted = escaped(&text, limit, Style::Quoted);
            prop_assert!(quoted.len() <= limit + CUT.len());
            prop_assert!(quoted.bytes().all(|byte| matches!(byte, b' '..=b'~')));
            let json = escaped(&text, limit, Style::Json);
            prop_assert!(json.len() <= limit + CUT.len());
            prop_assert!(!json.chars().any(char::is_control));
        }

        #[test]
        fn json_reads_back(text in "\\PC*|[\\x00-\\xff]{0,20}") {
            let line = format!("\"{}\"", escaped(text.as_bytes(), 10_000, Style::Json));
            prop_assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
        }
    }
}
