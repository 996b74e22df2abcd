//! The Huffman code of RFC 7541 appendix B, which QPACK shares (RFC 9204 section 4.1.2).
//!
//! The code is canonical: its codes are consecutive numbers when symbols are ordered by length and then by value. So the
//! lengths are all there is to know, and the tables are made from them when this is compiled.

use bytes::BytesMut;

/// Not a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Symbols, the end of a string not among them.
const SYMBOLS: usize = 256;
/// The longest code, the end of a string among them.
const MAX: usize = 30;

/// Bits of the code of each byte.
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28,
    28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6,
    6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7,
    8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7,
    15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24,
    23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23,
    23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26,
    26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20,
    21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27,
    27, 27, 26,
];

/// Symbols by length, then by value.
const ORDER: [u8; SYMBOLS] = order();
/// For each length the first code, and where its symbols begin in [`ORDER`]; a code past the last symbol of its length
/// belongs to a longer one.
const FIRST: [(u32, u16, u16); MAX + 1] = first();
/// What the next 8 bits begin with: a symbol and the bits of its code, or no bits for a longer code.
const SHORT: [(u8, u8); 256] = short();

const fn order() -> [u8; SYMBOLS] {
    let mut order = [0; SYMBOLS];
    let (mut at, mut length) = (0, 1);
    while length <= MAX {
        let mut symbol = 0;
        while symbol < SYMBOLS {
            if LENGTHS[symbol] as usize == length {
                order[at] = symbol as u8;
                at += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    order
}

const fn first() -> [(u32, u16, u16); MAX + 1] {
    let mut first = [(0, 0, 0); MAX + 1];
    let (mut code, mut at, mut length) = (0u32, 0u16, 1);
    while length <= MAX {
        code <<= 1;
        let mut count = 0;
        let mut symbol = 0;
        while symbol < SYMBOLS {
            if LENGTHS[symbol] as usize == length {
                count += 1;
            }
            symbol += 1;
        }
        first[length] = (code, at, count);
        code += count as u32;
        at += count;
        length += 1;
    }
    first
}

const fn short() -> [(u8, u8); 256] {
    let mut short = [(0, 0); 256];
    let mut length = 1;
    while length <= 8 {
        let (code, at, count) = FIRST[length];
        let mut n = 0;
        while n < count {
            let spare = 8 - length;
            let begin = ((code + n as u32) << spare) as usize;
            let mut rest = 0;
            while rest < 1 << spare {
                short[begin + rest] = (ORDER[(at + n) as usize], length as u8);
                rest += 1;
            }
            n += 1;
        }
        length += 1;
    }
    short
}

/// Appends what `code` stands for.
pub(crate) fn decode(code: &[u8], out: &mut BytesMut) -> Result<(), Malformed> {
    // the shortest code has 5 bits
    out.reserve(code.len() * 8 / 5);
    // bits that were taken in and not used up, left-aligned
    let (mut bits, mut have) = (0u64, 0u32);
    let mut rest = code.iter();
    loop {
        while have <= 56 {
            let Some(byte) = rest.next() else { break };
            bits |= u64::from(*byte) << (56 - have);
            have += 8;
        }
        if have == 0 {
            return Ok(());
        }
        let (symbol, length) = match SHORT[(bits >> 56) as usize] {
            (_, 0) => match long(bits) {
                Some(found) => found,
                // RFC 7541 section 5.2: padding is the beginning of the end of a string, less than 8 bits of it
                None => return padding(bits, have),
            },
            found => found,
        };
        if u32::from(length) > have {
            return padding(bits, have);
        }
        out.extend_from_slice(&[symbol]);
        bits <<= length;
        have -= u32::from(length);
    }
}

/// A code of more than 8 bits; `None` for the end of a string, which no string may contain.
fn long(bits: u64) -> Option<(u8, u8)> {
    (9..=MAX).find_map(|length| {
        let (first, at, count) = FIRST[length];
        // cannot truncate: at most 30 bits
        let code = (bits >> (64 - length)) as u32;
        let place = code.checked_sub(first).filter(|place| *place < u32::from(count))?;
        Some((ORDER[usize::from(at) + place as usize], length as u8))
    })
}

fn padding(bits: u64, have: u32) -> Result<(), Malformed> {
    let ones = if have == 0 { 0 } else { u64::MAX << (64 - have) };
    if have < 8 && bits == ones { Ok(()) } else { Err(Malformed) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(text: &[u8]) -> Vec<u8> {
        let (mut out, mut bits, mut have) = (Vec::new(), 0u64, 0u32);
        for symbol in text {
            let length = u32::from(LENGTHS[usize::from(*symbol)]);
            let (first, at, _) = FIRST[length as usize];
            let place = ORDER[usize::from(at)..].iter().position(|other| other == symbol).unwrap();
            bits = (bits << length) | u64::from(first + place as u32);
            have += length;
            while have >= 8 {
                have -= 8;
                out.push((bits >> have) as u8);
            }
            bits &= (1 << have) - 1;
        }
        if have > 0 {
            out.push(((bits << (8 - have)) as u8) | ((1u16 << (8 - have)) - 1) as u8);
        }
        out
    }

    fn decoded(code: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut out = BytesMut::new();
        decode(code, &mut out).map(|()| out.to_vec())
    }

    #[test]
    fn the_examples_of_rfc_7541_appendix_c() {
        for (code, text) in [
            (
                &[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff][..],
                "www.example.com",
            ),
            (&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf], "no-cache"),
            (&[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xa9, 0x7d, 0x7f], "custom-key"),
            (&[0x64, 0x02], "302"),
            (
                &[
                    0xd0, 0x7a, 0xbe, 0x94, 0x10, 0x54, 0xd4, 0x44, 0xa8, 0x20, 0x05, 0x95, 0x04, 0x0b, 0x81,
                    0x66, 0xe0, 0x82, 0xa6, 0x2d, 0x1b, 0xff,
                ],
                "Mon, 21 Oct 2013 20:13:21 GMT",
            ),
        ] {
            assert_eq!(decoded(code).unwrap(), text.as_bytes());
            assert_eq!(encode(text.as_bytes()), code, "{text}");
        }
    }

    #[test]
    fn every_byte_there_and_back() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decoded(&encode(&all)).unwrap(), all);
        for byte in 0..=255 {
            assert_eq!(decoded(&encode(&[byte])).unwrap(), [byte]);
        }
    }

    #[test]
    fn padding_is_short_and_of_ones() {
        // "0" is 00000
        assert_eq!(decoded(&[0b0000_0111]), Ok(b"0".to_vec()));
        assert_eq!(decoded(&[0b0000_0110]), Err(Malformed));
        assert_eq!(decoded(&[0b0000_0111, 0xff]), Err(Malformed));
        assert_eq!(decoded(&[0xff]), Err(Malformed));
        // the end of a string in full
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xff]), Err(Malformed));
        assert_eq!(decoded(&[]), Ok(vec![]));
    }

    proptest! {
        #[test]
        fn noise_never_panics_and_never_grows_past_its_bound(code in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(text) = decoded(&code) {
                prop_assert!(text.len() * 5 <= code.len() * 8);
                prop_assert_eq!(encode(&text), code);
            }
        }

        #[test]
        fn any_text_there_and_back(text in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(decoded(&encode(&text)), Ok(text));
        }
    }
}
