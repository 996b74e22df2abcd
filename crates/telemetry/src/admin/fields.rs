//! What was posted to an action: names and values, from a form or a JSON object.

use http::{HeaderMap, header::CONTENT_TYPE};

/// More fields than any action has.
const MOST: usize = 32;

/// What an action is asked: the fields of the query, then those of the body, in order. A name may stand more than once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(Vec<(String, String)>);

impl Fields {
    /// Reads the query and a body of `application/x-www-form-urlencoded` or `application/json`: an object of strings, numbers and truth
    /// values. At most 32 fields. The error says what is wrong, for the caller of the action.
    pub(crate) fn read(query: Option<&str>, headers: &HeaderMap, body: &[u8]) -> Result<Self, &'static str> {
        let mut fields = Self::default();
        fields.form(query.unwrap_or_default().as_bytes())?;
        if body.is_empty() {
            return Ok(fields);
        }
        let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        match kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
            "application/x-www-form-urlencoded" => fields.form(body)?,
            "application/json" => fields.json(body)?,
            _ => return Err("the body is neither application/json nor application/x-www-form-urlencoded"),
        }
        Ok(fields)
    }

    fn push(&mut self, name: String, value: String) -> Result<(), &'static str> {
        if self.0.len() == MOST {
            return Err("too many fields");
        }
        self.0.push((name, value));
        Ok(())
    }

    fn form(&mut self, text: &[u8]) -> Result<(), &'static str> {
        for pair in text.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()) {
            let mut sides = pair.splitn(2, |byte| *byte == b'=');
            let mut side = || decode(sides.next().unwrap_or_default());
            let (name, value) = (side()?, side()?);
            self.push(name, value)?;
        }
        Ok(())
    }

    fn json(&mut self, text: &[u8]) -> Result<(), &'static str> {
        let object: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(text).map_err(|_| "the body is no JSON object")?;
        for (name, value) in object {
            let value = match value {
                serde_json::Value::String(text) => text,
                serde_json::Value::Bool(_) | serde_json::Value::Number(_) => value.to_string(),
                _ => return Err("a value is neither a string, a number nor a truth value"),
            };
            self.push(name, value)?;
        }
        Ok(())
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl FromIterator<(String, String)> for Fields {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(fields: T) -> Self {
        Self(fields.into_iter().collect())
    }
}

/// `%41` and `+`, as forms write them; a `%` that is no such thing is refused, so that nothing is read in two ways.
fn decode(text: &[u8]) -> Result<String, &'static str> {
    const BROKEN: &str = "a field is not written as forms are";
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(byte) = rest.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || {
                    let digit = char::from(*rest.next()?).to_digit(16)?;
                    u8::try_from(digit).ok()
                };
                let (high, low) = (digit().ok_or(BROKEN)?, digit().ok_or(BROKEN)?);
                high << 4 | low
            }
            byte => *byte,
        });
    }
    String::from_utf8(out).map_err(|_| BROKEN)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn read(query: &str, kind: &'static str, body: &str) -> Result<Vec<(String, String)>, &'static str> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        Fields::read(Some(query), &headers, body.as_bytes()).map(|fields| fields.0)
    }

    #[test]
    fn forms_and_objects_are_read_alike() {
        const FORM: &str = "application/x-www-form-urlencoded";
        const JSON: &str = "application/json; charset=utf-8";
        let two = [("url".to_owned(), "http://a/b?c&d".to_owned()), ("soft".to_owned(), "true".to_owned())];
        for (query, kind, body) in [
            ("url=http%3A//a/b%3fc%26d&soft=true", "", ""),
            ("", FORM, "url=http://a/b?c%26d&soft=true"),
            ("url=http://a/b?c%26d", FORM, "&soft=true&"),
            ("url=http://a/b?c%26d", JSON, "{\"soft\":true}"),
        ] {
            assert_eq!(read(query, kind, body).unwrap(), two, "{query} {body}");
        }
        assert_eq!(read("a+b", "", "").unwrap(), [("a b".to_owned(), String::new())]);
        assert_eq!(read("", JSON, "{\"n\":7}").unwrap(), [("n".to_owned(), "7".to_owned())]);
    }

    #[test]
    fn what_is_not_clear_is_refused() {
        for (query, kind, body) in [
            ("a=%4", "", ""),
            ("a=%zz", "", ""),
            ("a=%ff", "", ""),
            ("", "text/plain", "a=b"),
            ("", "", "a=b"),
            ("", "application/json", "[]"),
            ("", "application/json", "{\"a\":[]}"),
            ("", "application/json", "{\"a\":null}"),
            ("", "application/json", "{"),
        ] {
            assert!(read(query, kind, body).is_err(), "{query} {kind} {body}");
        }
        let many = |count: usize| read(&"a=b&".repeat(count), "", "");
        assert_eq!(many(MOST).unwrap().len(), MOST);
        assert!(many(MOST + 1).is_err());
    }
}
