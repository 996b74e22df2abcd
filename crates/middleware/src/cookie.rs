//! Cookies of a request.

use http::{HeaderMap, header::COOKIE};

/// All values of this name (RFC 6265 section 4.2.1; HTTP/2 may split the field, RFC 9113 section 8.2.3), without white space around names and values: there are
/// servers that read it so, and what they take for a second one is a second one.
pub(crate) fn values<'h>(headers: &'h HeaderMap, name: &str) -> impl Iterator<Item = &'h [u8]> {
    let pairs = headers.get_all(COOKIE).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    pairs.filter_map(move |pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        (pair[..at].trim_ascii() == name.as_bytes()).then(|| pair[at + 1..].trim_ascii())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn by_name() {
        let table: [(&[&str], &[&str]); 8] = [
            (&["a=1"], &["1"]),
            (&["b=2; a=1"], &["1"]),
            (&["a=1;a =2", " a= 3 "], &["1", "2", "3"]),
            (&["a=1=2"], &["1=2"]),
            (&["a="], &[""]),
            (&["a"], &[]),
            (&["aa=1; ba=2; A=3"], &[]),
            (&[], &[]),
        ];
        for (lines, expected) in table {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(COOKIE, HeaderValue::from_str(line).unwrap());
            }
            let got: Vec<_> = values(&headers, "a").collect();
            assert_eq!(got, expected.iter().map(|value| value.as_bytes()).collect::<Vec<_>>(), "{lines:?}");
        }
    }
}
