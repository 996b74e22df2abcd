//! Codings of content, and which of them a client likes best (RFC 9110 section 12.5.3).

use http::{HeaderMap, header::ACCEPT_ENCODING};

/// A coding of content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Coding {
    /// `gzip`, RFC 1952.
    Gzip,
    /// `br`, RFC 7932.
    Brotli,
    /// `zstd`, RFC 8878, with the window of RFC 9659.
    Zstd,
}

impl Coding {
    /// Its name in `Accept-Encoding` and `Content-Encoding`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
        }
    }

    /// The coding of this name, without regard to case. `x-gzip` is `gzip` (RFC 9110 section 8.4.1.3).
    pub fn by_name(name: &str) -> Option<Self> {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        match () {
            () if is("gzip") || is("x-gzip") => Some(Self::Gzip),
            () if is("br") => Some(Self::Brotli),
            () if is("zstd") => Some(Self::Zstd),
            () => None,
        }
    }
}

/// Those of `codings` that the client takes, the one with the most weight first, as they stand between equals. What it likes less than the content as it is
/// is not among them. A client that says nothing gets the content as it is.
#[cfg(feature = "files")]
pub(crate) fn liked(headers: &HeaderMap, codings: &[Coding]) -> Vec<Coding> {
    if !headers.contains_key(ACCEPT_ENCODING) {
        return Vec::new();
    }
    let weights = Weights::of(headers);
    let mut liked: Vec<_> = codings.iter().copied().filter(|coding| weights.likes(*coding)).collect();
    liked.sort_by_key(|coding| std::cmp::Reverse(weights.weight(*coding)));
    liked
}

/// The first of [`liked`], without an allocation.
#[cfg(feature = "compression")]
pub(crate) fn choose(headers: &HeaderMap, codings: &[Coding]) -> Option<Coding> {
    if !headers.contains_key(ACCEPT_ENCODING) {
        return None;
    }
    let weights = Weights::of(headers);
    let liked = codings.iter().rev().copied().filter(|coding| weights.likes(*coding));
    // the last of several that are as large
    liked.max_by_key(|coding| weights.weight(*coding))
}

#[derive(Default)]
struct Weights {
    gzip: Option<u16>,
    brotli: Option<u16>,
    zstd: Option<u16>,
    identity: Option<u16>,
    rest: Option<u16>,
}

impl Weights {
    fn of(headers: &HeaderMap) -> Self {
        let mut weights = Self::default();
        for line in headers.get_all(ACCEPT_ENCODING) {
            // what is no text names nothing
            line.to_str().unwrap_or_default().split(',').for_each(|item| weights.take(item));
        }
        weights
    }

    fn likes(&self, coding: Coding) -> bool {
        self.weight(coding) >= self.identity.unwrap_or(0).max(1)
    }

    fn take(&mut self, item: &str) {
        let (name, parameters) = item.split_once(';').unwrap_or((item, ""));
        let name = name.trim();
        let slot = match Coding::by_name(name) {
            Some(Coding::Gzip) => &mut self.gzip,
            Some(Coding::Brotli) => &mut self.brotli,
            Some(Coding::Zstd) => &mut self.zstd,
            None if name == "*" => &mut self.rest,
            None if name.eq_ignore_ascii_case("identity") => &mut self.identity,
            None => return,
        };
        *slot = Some(weight(parameters));
    }

    fn weight(&self, coding: Coding) -> u16 {
        let named = match coding {
            Coding::Gzip => self.gzip,
            Coding::Brotli => self.brotli,
            Coding::Zstd => self.zstd,
        };
        named.or(self.rest).unwrap_or(0)
    }
}

/// A weight in thousandths (RFC 9110 section 12.4.2); what is none refuses.
fn weight(parameters: &str) -> u16 {
    let parameters = parameters.trim();
    if parameters.is_empty() {
        return 1000;
    }
    let Some(value) = parameters.strip_prefix("q=").or_else(|| parameters.strip_prefix("Q=")) else {
        return 0;
    };
    let (whole, part) = value.split_once('.').unwrap_or((value, ""));
    let whole = match whole {
        "0" => 0,
        "1" => 1000,
        _ => return 0,
    };
    if part.len() > 3 || !part.bytes().all(|b| b.is_ascii_digit()) {
        return 0;
    }
    let part =
        part.bytes().zip([100, 10, 1]).map(|(digit, unit)| u16::from(digit - b'0') * unit).sum::<u16>();
    (whole + part).min(1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Coding::{Brotli, Gzip, Zstd};
    use http::HeaderValue;

    #[test]
    fn rfc9110_12_5_3_what_is_liked_best() {
        for (accept, expected) in [
            (&[][..], None),
            (&[""], None),
            (&["gzip"], Some(Gzip)),
            (&["x-gzip"], Some(Gzip)),
            (&["GZIP"], Some(Gzip)),
            (&["gzip, deflate, br, zstd"], Some(Zstd)),
            (&["gzip", "br"], Some(Brotli)),
            (&["gzip;q=1.0, br;q=0.9"], Some(Gzip)),
            (&["gzip;q=0.5 , br ; q=0.5"], Some(Brotli)),
            (&["*"], Some(Zstd)),
            (&["*;q=0"], None),
            (&["gzip, *;q=0"], Some(Gzip)),
            (&["zstd;q=0, *"], Some(Brotli)),
            (&["gzip;q=0"], None),
            (&["gzip;q=0.000"], None),
            (&["gzip;q=0.001"], Some(Gzip)),
            (&["identity;q=1, gzip;q=0.5"], None),
            (&["identity;q=0.5, gzip;q=0.5"], Some(Gzip)),
            (&["identity;q=0, gzip"], Some(Gzip)),
            (&["identity;q=0"], None),
            (&["gzip;q=2"], None),
            (&["gzip;q=0.0001"], None),
            (&["gzip;q=x"], None),
            (&["gzip;level=1"], None),
            (&["deflate, compress"], None),
            (&["gzip;q=1.5"], Some(Gzip)),
        ] {
            let mut headers = HeaderMap::new();
            for line in accept {
                headers.append(ACCEPT_ENCODING, HeaderValue::from_static(line));
            }
            let all = [Zstd, Brotli, Gzip];
            assert_eq!(liked(&headers, &all).first().copied(), expected, "{accept:?}");
            #[cfg(feature = "compression")]
            assert_eq!(choose(&headers, &all), expected, "{accept:?}");
        }
    }

    #[test]
    fn only_what_is_offered() {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip;q=0.1, br, zstd"));
        assert_eq!(liked(&headers, &[Gzip]), [Gzip]);
        assert_eq!(liked(&headers, &[Gzip, Zstd, Brotli]), [Zstd, Brotli, Gzip]);
        assert_eq!(liked(&headers, &[]), []);
    }
}
