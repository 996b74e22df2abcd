//! Percent-encoded octets (RFC 3986 section 2.1).

/// The octet that the two digits after a `%` stand for.
pub(crate) fn triplet(after: &[u8]) -> Option<u8> {
    let [high, low, ..] = after else { return None };
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(high)? << 4 | digit(low)?)
}

/// The octets of a text that is decoded once, each with whether it was encoded. A `%` without two digits stands for itself.
pub(crate) fn octets(text: &[u8]) -> impl Iterator<Item = (u8, bool)> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (first, tail) = rest.split_first()?;
        let octet = triplet(tail).filter(|_| *first == b'%');
        rest = if octet.is_some() { &tail[2..] } else { tail };
        Some((octet.unwrap_or(*first), octet.is_some()))
    })
}

/// All decoded once.
pub(crate) fn decoded(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    out.extend(octets(text).map(|(octet, _)| octet));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once() {
        for (text, expected) in [
            ("", ""),
            ("a%20b", "a b"),
            ("%41%61%7a%7A", "Aazz"),
            ("%2541", "%41"),
            ("%%41%4%zz%", "%A%4%zz%"),
            ("%+1%-1", "%+1%-1"),
        ] {
            assert_eq!(decoded(text.as_bytes()), expected.as_bytes(), "{text}");
        }
        assert!(octets(b"%25%").eq([(b'%', true), (b'%', false)]));
    }
}
