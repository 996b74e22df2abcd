//! Who a request is from, once somebody has checked it, and the fields that say so to the service behind.

use std::sync::Arc;

use http::{HeaderMap, HeaderName};

#[cfg(any(feature = "basic-auth", feature = "jwt"))]
pub use passing::Identified;
#[cfg(any(feature = "basic-auth", feature = "jwt"))]
pub(crate) use passing::{field_value, quoted};

/// Among the extensions of a request that was authenticated, and of its response: who it is from. A cache that stands behind has to take such a request for
/// one with `Authorization` (RFC 9111 section 3.5), whether it still has that field or not.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Authenticated {
    /// The name, as the layer that checked it knows it; empty where it knows none.
    pub user: Arc<str>,
    /// What checked it.
    pub by: Scheme,
}

/// What authenticated a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scheme {
    /// A name and a password.
    Basic,
    /// A signed token.
    Jwt,
    /// A service that was asked.
    Forward,
}

impl Authenticated {
    /// This user.
    pub fn new(user: impl Into<Arc<str>>, by: Scheme) -> Self {
        Self { user: user.into(), by }
    }
}

/// Names of fields that only the edge may set. What a client sends under one of them is taken away, and so is what many servers take for the
/// same: letter case and every character that is neither a letter nor a digit are no difference, since gateways in the manner of CGI make `X_User` and
/// `X-User` one variable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentityFields(Box<[Box<str>]>);

impl IdentityFields {
    /// These names.
    pub fn new<'n>(names: impl IntoIterator<Item = &'n HeaderName>) -> Self {
        let mut names: Vec<Box<str>> = names.into_iter().map(|name| name.as_str().into()).collect();
        names.sort_unstable();
        names.dedup();
        Self(names.into())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a field of this name would be taken away.
    pub fn covers(&self, name: &HeaderName) -> bool {
        self.0.iter().any(|own| is_alike(own, name.as_str()))
    }

    /// Takes every line of these fields away. Without any of them it allocates nothing.
    pub fn strip(&self, headers: &mut HeaderMap) {
        while let Some(name) = headers.keys().find(|name| self.covers(name)).cloned() {
            headers.remove(name);
        }
    }
}

fn is_alike(a: &str, b: &str) -> bool {
    let plain = |byte: u8| if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' };
    a.len() == b.len() && a.bytes().zip(b.bytes()).all(|(a, b)| plain(a) == plain(b))
}

/// What the layers have in common that check by themselves.
#[cfg(any(feature = "basic-auth", feature = "jwt"))]
mod passing;

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn every_spelling_of_a_field_is_taken_away() {
        let names = [HeaderName::from_static("x-user"), HeaderName::from_static("x-user-groups")];
        let fields = IdentityFields::new(&names);
        let mut headers = HeaderMap::new();
        let taken = ["X-User", "x_user", "X-USER", "x.user", "x-user_groups", "X_User_Groups"];
        let kept = ["x-users", "xuser", "x-user-", "x-use", "cookie"];
        for name in taken.iter().chain(&kept) {
            for value in ["1", "2"] {
                headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_static(value));
            }
        }
        fields.strip(&mut headers);
        assert_eq!(headers.len(), kept.len() * 2);
        for name in kept {
            assert!(headers.contains_key(name), "{name}");
        }
        let before = headers.clone();
        IdentityFields::default().strip(&mut headers);
        assert_eq!(before, headers);
    }

    #[cfg(feature = "jwt")]
    #[test]
    fn values_and_quoted_strings() {
        assert_eq!(quoted(r#"a "b" \ é"#), r#""a \"b\" \\ ?""#);
        assert_eq!(quoted("a\r\nb"), r#""a??b""#);
        assert!(field_value("jörg").is_some() && field_value("").is_some());
        for bad in ["a\nb", "a\0", " a", "a ", "\u{7f}"] {
            assert!(field_value(bad).is_none(), "{bad:?}");
        }
    }
}
