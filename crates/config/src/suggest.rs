//! "Did you mean": the nearest of some known names.

/// The known name that is most likely meant, if one is near enough. Case and the choice of `-` or `_` do not count.
pub(crate) fn nearest<'k>(name: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    // a long name is no slip of the finger, and the work is the product of the lengths
    const LONGEST: usize = 64;
    let name = plain(name);
    if name.is_empty() || name.len() > LONGEST {
        return None;
    }
    known
        .into_iter()
        .filter(|known| known.chars().count() <= LONGEST)
        .map(|known| (distance(&name, &plain(known)), known))
        .filter(|(distance, known)| {
            let longer = known.chars().count().max(name.len());
            *distance < longer && *distance <= 1.max(longer / 3)
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

fn plain(name: &str) -> Vec<char> {
    name.chars().flat_map(char::to_lowercase).map(|c| if c == '-' { '_' } else { c }).collect()
}

/// Insertions, deletions, replacements and swaps of neighbours that lead from one to the other.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_edits() {
        for (a, b, edits) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("abc", "abc", 0),
            ("abc", "acb", 1),
            ("kitten", "sitting", 3),
            ("adress", "address", 1),
        ] {
            assert_eq!(distance(&plain(a), &plain(b)), edits, "{a} {b}");
        }
    }

    #[test]
    fn finds_what_was_meant() {
        let known = ["address", "protocol", "http3", "max_connections", "path", "n"];
        for (typed, meant) in [
            ("adress", Some("address")),
            ("maxConnections", Some("max_connections")),
            ("Max-Connections", Some("max_connections")),
            ("pth", Some("path")),
            ("htpp3", Some("http3")),
            ("wholly_other", None),
            ("", None),
            ("x", None),
            ("o", None),
        ] {
            assert_eq!(nearest(typed, known), meant, "{typed}");
        }
        assert_eq!(nearest(&"p".repeat(100_000), known), None);
    }
}
