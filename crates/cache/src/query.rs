//! Which parts of a query belong to the key.

use crate::{buf::Buf, rules::Query};

/// Writes a query, without its `?`, as the key has it.
pub(crate) fn write(query: &str, keep: &Query, sorted: bool, key: &mut Buf) {
    let all = matches!(keep, Query::All);
    if all && !sorted {
        key.push(b'?');
        key.extend(query.as_bytes());
        return;
    }
    let kept = query.split('&').filter(|part| !part.is_empty() && keeps(keep, name(part)));
    let mut first = true;
    let mut write = |part: &str| {
        key.push(if first { b'?' } else { b'&' });
        first = false;
        key.extend(part.as_bytes());
    };
    if sorted {
        let mut parts: Vec<_> = kept.collect();
        // Stable: what has one name stays in its order, which may mean something.
        parts.sort_by_key(|part| name(part));
        parts.into_iter().for_each(&mut write);
    } else {
        kept.for_each(&mut write);
    }
    // `/x?` is not `/x` as long as everything counts.
    if all && first {
        key.push(b'?');
    }
}

fn name(part: &str) -> &str {
    part.split_once('=').map_or(part, |(name, _)| name)
}

fn keeps(keep: &Query, name: &str) -> bool {
    match keep {
        Query::All => true,
        Query::Nothing => false,
        Query::Without(names) => !names.iter().any(|pattern| matches(pattern, name)),
        Query::Only(names) => names.iter().any(|pattern| matches(pattern, name)),
    }
}

/// Byte for byte, since an origin decides what an encoded name means; `*` at the end stands for any rest.
fn matches(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |start| name.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts() {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let without = Query::Without(names(&["utm_*", "id"]));
        let only = Query::Only(names(&["a", "b*"]));
        for (query, keep, sorted, want) in [
            ("b=1&a=2", &Query::All, false, "?b=1&a=2"),
            ("b=1&a=2", &Query::All, true, "?a=2&b=1"),
            ("a=2&b=1&a=1", &Query::All, true, "?a=2&a=1&b=1"),
            ("", &Query::All, false, "?"),
            ("", &Query::All, true, "?"),
            ("&&a", &Query::All, false, "?&&a"),
            ("utm_x=1&a=2&id&ids=3", &without, false, "?a=2&ids=3"),
            ("utm_x=1&id", &without, false, ""),
            ("%75tm_x=1", &without, false, "?%75tm_x=1"),
            ("c=1&bb=2&a&A=1", &only, false, "?bb=2&a"),
            ("c=1&bb=2&a", &only, true, "?a&bb=2"),
            ("a=1", &Query::Nothing, false, ""),
        ] {
            let mut key = Buf::new();
            write(query, keep, sorted, &mut key);
            assert_eq!(std::str::from_utf8(key.as_slice()).unwrap(), want, "{query} {keep:?} {sorted}");
        }
    }
}
