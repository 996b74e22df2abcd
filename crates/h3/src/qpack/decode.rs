//! Reads field sections.

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue};

use super::{
    huffman,
    static_table::{self, Line},
};

/// What a field costs besides its name and value, RFC 9114 section 4.2.2.
const OVERHEAD: u64 = 32;

/// Why a field section can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SectionFault {
    /// It does not follow RFC 9204, or refers to a dynamic table that we never allowed: the end of the connection
    /// (`QPACK_DECOMPRESSION_FAILED`).
    #[error("the field section can not be decompressed")]
    Decompression,
    /// Malformed, RFC 9114 section 4.1.2: the end of the stream.
    #[error("the message is malformed")]
    Malformed,
    /// Larger than `max_field_section_size`.
    #[error("the fields are too large")]
    TooLarge,
    /// More fields than allowed.
    #[error("there are too many fields")]
    TooMany,
}

impl From<huffman::Malformed> for SectionFault {
    fn from(_: huffman::Malformed) -> Self {
        Self::Decompression
    }
}

/// What a section may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Bytes of all names and values, and 32 for each field.
    pub(crate) size: u64,
    pub(crate) fields: usize,
}

/// Takes the fields of a section in their order.
pub(crate) trait Fields {
    /// A field whose name begins with a colon; `name` has it.
    fn pseudo(&mut self, name: &[u8], value: Value<'_>) -> Result<(), SectionFault>;
    fn field(&mut self, name: HeaderName, value: HeaderValue) -> Result<(), SectionFault>;
}

/// The value of a pseudo-header field.
pub(crate) enum Value<'a> {
    Static(&'static str),
    /// A part of what was received.
    Borrowed(&'a [u8]),
    Owned(Bytes),
}

impl Value<'_> {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Static(text) => text.as_bytes(),
            Self::Borrowed(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }

    pub(crate) fn into_bytes(self) -> Bytes {
        match self {
            Self::Static(text) => Bytes::from_static(text.as_bytes()),
            Self::Borrowed(bytes) => Bytes::copy_from_slice(bytes),
            Self::Owned(bytes) => bytes,
        }
    }
}

/// Reads a whole section. What it makes does not keep `section` alive.
pub(crate) fn decode(section: &[u8], bounds: Bounds, fields: &mut impl Fields) -> Result<(), SectionFault> {
    let mut rest = section;
    // RFC 9204 section 4.5.1: without a dynamic table nothing is required of it
    if integer(&mut rest, 8)? != 0 {
        return Err(SectionFault::Decompression);
    }
    integer(&mut rest, 7)?;
    // every value is a part of one piece of memory, made large enough at once: 8/5 is what Huffman coding saves at most
    let buffer = BytesMut::with_capacity(rest.len() * 8 / 5);
    let mut state = State { rest, buffer, left: bounds.size, count: bounds.fields };
    while let Some(first) = state.rest.first() {
        match first {
            0x80.. => state.indexed(fields)?,
            0x40..=0x7f => state.named_by_index(fields)?,
            0x20..=0x3f => state.literal(fields)?,
            // relative to the base: the dynamic table's
            _ => return Err(SectionFault::Decompression),
        }
    }
    Ok(())
}

struct State<'a> {
    rest: &'a [u8],
    buffer: BytesMut,
    left: u64,
    count: usize,
}

impl<'a> State<'a> {
    /// RFC 9204 section 4.5.2.
    fn indexed(&mut self, fields: &mut impl Fields) -> Result<(), SectionFault> {
        match self.static_line(0x40, 6)? {
            Line::Pseudo(name, value) => {
                self.pay(name.len(), value.len())?;
                fields.pseudo(name.as_bytes(), Value::Static(value))
            }
            Line::Field(name, value) => {
                self.pay(name.as_str().len(), value.len())?;
                self.one_more()?;
                fields.field(name.clone(), value.clone())
            }
        }
    }

    /// RFC 9204 section 4.5.4.
    fn named_by_index(&mut self, fields: &mut impl Fields) -> Result<(), SectionFault> {
        let sensitive = self.rest[0] & 0x20 != 0;
        match self.static_line(0x10, 4)? {
            Line::Pseudo(name, _) => self.pseudo(name.as_bytes(), fields),
            Line::Field(name, _) => {
                let value = self.value(name.as_str().len(), sensitive)?;
                fields.field(name.clone(), value)
            }
        }
    }

    /// RFC 9204 section 4.5.6.
    fn literal(&mut self, fields: &mut impl Fields) -> Result<(), SectionFault> {
        let first = self.rest[0];
        let sensitive = first & 0x10 != 0;
        let raw = self.string(3)?;
        if first & 0x08 != 0 {
            huffman::decode(raw, &mut self.buffer)?;
            if self.buffer.first() == Some(&b':') {
                let name = self.buffer.split().freeze();
                return self.pseudo(&name, fields);
            }
            let name = HeaderName::from_lowercase(&self.buffer);
            self.buffer.clear();
            self.named(name, sensitive, fields)
        } else if raw.first() == Some(&b':') {
            self.pseudo(raw, fields)
        } else {
            self.named(HeaderName::from_lowercase(raw), sensitive, fields)
        }
    }

    fn named<E>(
        &mut self,
        name: Result<HeaderName, E>,
        sensitive: bool,
        fields: &mut impl Fields,
    ) -> Result<(), SectionFault> {
        // RFC 9114 section 4.2: upper case is malformed, and so is what is no name at all (RFC 9110 section 5.1)
        let name = name.map_err(|_| SectionFault::Malformed)?;
        let value = self.value(name.as_str().len(), sensitive)?;
        fields.field(name, value)
    }

    fn pseudo(&mut self, name: &[u8], fields: &mut impl Fields) -> Result<(), SectionFault> {
        let huffman = self.is_huffman();
        let raw = self.string(7)?;
        let value = if huffman {
            huffman::decode(raw, &mut self.buffer)?;
            Value::Owned(self.buffer.split().freeze())
        } else {
            Value::Borrowed(raw)
        };
        self.pay(name.len(), value.as_bytes().len())?;
        fields.pseudo(name, value)
    }

    fn value(&mut self, name: usize, sensitive: bool) -> Result<HeaderValue, SectionFault> {
        let huffman = self.is_huffman();
        let raw = self.string(7)?;
        if huffman {
            huffman::decode(raw, &mut self.buffer)?;
        } else {
            self.buffer.extend_from_slice(raw);
        }
        self.pay(name, self.buffer.len())?;
        self.one_more()?;
        let mut value = HeaderValue::from_maybe_shared(self.buffer.split().freeze())
            .map_err(|_| SectionFault::Malformed)?;
        value.set_sensitive(sensitive);
        Ok(value)
    }

    fn static_line(&mut self, flag: u8, prefix: u32) -> Result<&'static Line, SectionFault> {
        let is_static = self.rest[0] & flag != 0;
        let index = integer(&mut self.rest, prefix)?;
        static_table::line(index).filter(|_| is_static).ok_or(SectionFault::Decompression)
    }

    /// Whether the string that begins here is Huffman-coded.
    fn is_huffman(&self) -> bool {
        self.rest.first().is_some_and(|first| first & 0x80 != 0)
    }

    /// The bytes of a string literal, still coded.
    fn string(&mut self, prefix: u32) -> Result<&'a [u8], SectionFault> {
        let length = integer(&mut self.rest, prefix)?;
        let length = usize::try_from(length).map_err(|_| SectionFault::Decompression)?;
        let (string, rest) = self.rest.split_at_checked(length).ok_or(SectionFault::Decompression)?;
        self.rest = rest;
        Ok(string)
    }

    fn pay(&mut self, name: usize, value: usize) -> Result<(), SectionFault> {
        let size = name as u64 + value as u64 + OVERHEAD;
        self.left = self.left.checked_sub(size).ok_or(SectionFault::TooLarge)?;
        Ok(())
    }

    fn one_more(&mut self) -> Result<(), SectionFault> {
        self.count = self.count.checked_sub(1).ok_or(SectionFault::TooMany)?;
        Ok(())
    }
}

/// A prefixed integer, RFC 7541 section 5.1; RFC 9204 section 4.1.1 bounds it by 62 bits.
pub(crate) fn integer(rest: &mut &[u8], prefix: u32) -> Result<u64, SectionFault> {
    let (first, mut tail) = rest.split_first().ok_or(SectionFault::Decompression)?;
    let mask = (1u64 << prefix) - 1;
    let mut value = u64::from(*first) & mask;
    if value == mask {
        let mut shift = 0;
        loop {
            let (byte, more) = tail.split_first().ok_or(SectionFault::Decompression)?;
            tail = more;
            // 9 times 7 bits
            if shift > 56 {
                return Err(SectionFault::Decompression);
            }
            value += u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    *rest = tail;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Default, PartialEq, Eq)]
    struct Lines(Vec<(String, Vec<u8>)>);

    impl Fields for Lines {
        fn pseudo(&mut self, name: &[u8], value: Value<'_>) -> Result<(), SectionFault> {
            self.0.push((String::from_utf8(name.to_vec()).unwrap(), value.into_bytes().to_vec()));
            Ok(())
        }

        fn field(&mut self, name: HeaderName, value: HeaderValue) -> Result<(), SectionFault> {
            self.0.push((name.to_string(), value.as_bytes().to_vec()));
            Ok(())
        }
    }

    const ANY: Bounds = Bounds { size: 10_000, fields: 20 };

    fn read(section: &[u8], bounds: Bounds) -> Result<Vec<(String, Vec<u8>)>, SectionFault> {
        let mut lines = Lines::default();
        decode(section, bounds, &mut lines).map(|()| lines.0)
    }

    fn one(name: &str, value: &str) -> Result<Vec<(String, Vec<u8>)>, SectionFault> {
        Ok(vec![(name.to_owned(), value.as_bytes().to_vec())])
    }

    #[test]
    fn lines_of_every_kind() {
        // RFC 9204 appendix B.1
        assert_eq!(read(b"\0\0\x51\x0b/index.html", ANY), one(":path", "/index.html"));
        assert_eq!(read(b"\0\0\xd1", ANY), one(":method", "GET"));
        assert_eq!(read(b"\0\0\xff\x1f", ANY), one("upgrade-insecure-requests", "1"));
        assert_eq!(read(b"\0\0\x5f\x50\x03abc", ANY), one("user-agent", "abc"));
        assert_eq!(read(b"\0\0\x23abc\x02de", ANY), one("abc", "de"));
        assert_eq!(read(b"\0\0\x24:abc\x02de", ANY), one(":abc", "de"));
        // "custom-key" and "302" in Huffman's code
        let custom = b"\0\0\x2f\x01\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f\x82\x64\x02";
        assert_eq!(read(custom, ANY), one("custom-key", "302"));
        assert_eq!(read(b"\0\0", ANY), Ok(vec![]));
        // the base is of no use without a dynamic table
        assert_eq!(read(b"\0\x85\xd1", ANY), one(":method", "GET"));
    }

    #[test]
    fn what_can_not_be_decompressed() {
        for section in [
            &b""[..],
            b"\0",
            b"\x01\0\xd1",
            // the dynamic table, by all its ways
            b"\0\0\x80",
            b"\0\0\x40\x01a",
            b"\0\0\x10",
            b"\0\0\x00\x01a",
            // no such line
            b"\0\0\xff\x24",
            b"\0\0\x5f\x54\x01a",
            // strings that are cut off
            b"\0\0\x23ab",
            b"\0\0\x23abc\x03de",
            b"\0\0\x51",
            // an integer without end, and one that is too large
            b"\0\0\xff\x80",
            b"\0\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            // an end of string inside a string
            b"\0\0\x51\x84\xff\xff\xff\xff",
        ] {
            assert_eq!(read(section, ANY), Err(SectionFault::Decompression), "{section:x?}");
        }
    }

    #[test]
    fn what_is_malformed() {
        for section in [
            &b"\0\0\x23aBc\x01a"[..],
            b"\0\0\x23a c\x01a",
            b"\0\0\x20\x01a",
            b"\0\0\x23abc\x03a\nb",
            b"\0\0\x23abc\x03a\0b",
            b"\0\0\x5f\x50\x03a\rb",
        ] {
            assert_eq!(read(section, ANY), Err(SectionFault::Malformed), "{section:x?}");
        }
    }

    #[test]
    fn bounds() {
        let section = b"\0\0\xd1\x23abc\x02de\x23abc\x02de";
        // 7 + 3, 3 + 2, 3 + 2, and 32 each
        let size = 116;
        assert!(read(section, Bounds { size, fields: 2 }).is_ok());
        assert_eq!(read(section, Bounds { size: size - 1, fields: 2 }), Err(SectionFault::TooLarge));
        assert_eq!(read(section, Bounds { size, fields: 1 }), Err(SectionFault::TooMany));
    }

    #[test]
    fn never_indexed_values_are_sensitive() {
        struct Sensitive(Vec<bool>);
        impl Fields for Sensitive {
            fn pseudo(&mut self, _: &[u8], _: Value<'_>) -> Result<(), SectionFault> {
                Ok(())
            }

            fn field(&mut self, _: HeaderName, value: HeaderValue) -> Result<(), SectionFault> {
                self.0.push(value.is_sensitive());
                Ok(())
            }
        }
        let mut found = Sensitive(Vec::new());
        decode(b"\0\0\x75\x01a\x55\x01a\x31a\x01b\x21a\x01b", ANY, &mut found).unwrap();
        assert_eq!(found.0, [true, false, true, false]);
    }

    proptest! {
        #[test]
        fn noise_never_panics(section in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&section, ANY);
            let _ = read(&[&[0, 0], &section[..]].concat(), ANY);
        }

        #[test]
        fn what_the_encoder_writes_is_read(
            fields in prop::collection::vec(("[a-z][a-z0-9-]{0,20}", "[ -~]{0,60}"), 0..10)
        ) {
            let mut out = BytesMut::new();
            super::super::encode::begin(&mut out);
            for (name, value) in &fields {
                super::super::encode::raw_field(&mut out, name, value.as_bytes());
            }
            let expected: Vec<_> =
                fields.into_iter().map(|(name, value)| (name, value.into_bytes())).collect();
            prop_assert_eq!(read(&out, ANY), Ok(expected));
        }
    }
}
