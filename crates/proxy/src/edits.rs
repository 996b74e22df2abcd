//! Fields that a route sets, adds and removes.
//!
//! They change neither how a message is framed nor where it goes: fields that end at this hop, `Host`, `Content-Length` and
//! what announces trailers are refused when the edits are made. (`Host` has an option of its own where a route has one.)

use http::{HeaderMap, HeaderName, HeaderValue};

/// Why an edit can't be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EditError {
    /// The field belongs to the message's frame or to one hop.
    #[error("the field {0} is not a route's to change")]
    Protected(HeaderName),
}

const PROTECTED: &[&str] = &[
    "connection",
    "content-length",
    "early-data",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "max-forwards",
    "proxy",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What happens to the fields of a message: first some are removed, then some set, then some added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldEdits {
    remove: Vec<HeaderName>,
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
}

impl FieldEdits {
    /// Removes every line of a field.
    pub fn remove(mut self, name: HeaderName) -> Result<Self, EditError> {
        self.remove.push(allowed(name)?);
        Ok(self)
    }

    /// Sets a field to one line, in place of those that are there.
    pub fn set(mut self, name: HeaderName, value: HeaderValue) -> Result<Self, EditError> {
        self.set.push((allowed(name)?, value));
        Ok(self)
    }

    /// Adds a line to a field.
    pub fn add(mut self, name: HeaderName, value: HeaderValue) -> Result<Self, EditError> {
        self.add.push((allowed(name)?, value));
        Ok(self)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }

    /// Makes the changes. A field that has as many lines as it can stays as it is.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            // full: a map holds 32,768 fields
            let _ = headers.try_insert(name, value.clone());
        }
        for (name, value) in &self.add {
            let _ = headers.try_append(name, value.clone());
        }
    }
}

fn allowed(name: HeaderName) -> Result<HeaderName, EditError> {
    if PROTECTED.contains(&name.as_str()) { Err(EditError::Protected(name)) } else { Ok(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &'static str) -> HeaderName {
        HeaderName::from_static(text)
    }

    fn value(text: &'static str) -> HeaderValue {
        HeaderValue::from_static(text)
    }

    #[test]
    fn removed_then_set_then_added() {
        let edits = FieldEdits::default()
            .add(name("x-a"), value("2"))
            .and_then(|edits| edits.set(name("x-a"), value("1")))
            .and_then(|edits| edits.remove(name("x-a")))
            .and_then(|edits| edits.remove(name("x-gone")))
            .and_then(|edits| edits.add(name("x-b"), value("more")))
            .unwrap();
        let mut headers = HeaderMap::new();
        for (name, line) in [("x-a", "old"), ("x-a", "older"), ("x-gone", "1"), ("x-b", "one"), ("x-c", "c")]
        {
            headers.append(name, value(line));
        }
        edits.apply(&mut headers);
        let all = |name: &str| headers.get_all(name).iter().collect::<Vec<_>>();
        assert_eq!(all("x-a"), ["1", "2"]);
        assert_eq!(all("x-b"), ["one", "more"]);
        assert_eq!(all("x-c"), ["c"]);
        assert!(!headers.contains_key("x-gone"));
        assert!(!edits.is_empty() && FieldEdits::default().is_empty());
    }

    #[test]
    fn the_frame_of_a_message_is_not_a_routes_to_change() {
        for protected in PROTECTED {
            let name = name(protected);
            let error = EditError::Protected(name.clone());
            assert_eq!(FieldEdits::default().remove(name.clone()), Err(error.clone()));
            assert_eq!(FieldEdits::default().set(name.clone(), value("x")), Err(error.clone()));
            assert_eq!(FieldEdits::default().add(name, value("x")), Err(error));
        }
    }
}
