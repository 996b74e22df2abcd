//! Lines of one's own: text with fields in it, and JSON with chosen keys.

use std::sync::Arc;

use super::{
    AccessLine, Field, FieldError, MAX_LINE, Redaction,
    escape::{Style, escape},
};

/// A line of text with fields in it: `$client "$method $target" $status ${duration_ms}ms`.
///
/// `$name` and `${name}` are fields ([`FIELDS`](super::FIELDS)), `$$` is a dollar. A field without a value is `-`. What the client chose is escaped: quotes, backslashes,
/// control characters and what is no ASCII; outside of double quotes in the template, spaces too, so that columns stay columns.
///
/// At most 4 KiB of text, and no line may get longer than 16 KiB: a template with more fields than that allows is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Arc<[Part]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    /// A field, and whether it stands in quotes.
    Field(Field, bool),
}

/// Why a text is no template, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{fault} at byte {at}")]
pub struct TemplateError {
    /// The byte of the text, counted from 0.
    pub at: usize,
    /// What is wrong there.
    #[source]
    pub fault: TemplateFault,
}

/// What is wrong with a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateFault {
    /// A brace is not closed.
    #[error("`${{` without `}}`")]
    Unclosed,
    /// There is no name after a dollar.
    #[error("`$` without a name; `$$` is a dollar")]
    Nameless,
    /// The field.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// A line must stay a line.
    #[error("a control character")]
    Control,
    /// Lines could get too long.
    #[error("lines could get longer than 16 KiB")]
    TooLong,
}

const MAX_TEXT: usize = 4096;

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// What is wrong first, and where.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let wrong = |at, fault| TemplateError { at, fault };
        let (mut parts, mut plain) = (Vec::new(), String::new());
        let (mut quoted, mut longest) = (false, 1);
        let mut at = 0;
        while let Some(next) = text[at..].chars().next() {
            if next.is_control() {
                return Err(wrong(at, TemplateFault::Control));
            }
            if next != '$' {
                quoted ^= next == '"';
                plain.push(next);
                at += next.len_utf8();
                longest += next.len_utf8();
            } else if text[at + 1..].starts_with('$') {
                plain.push('$');
                at += 2;
                longest += 1;
            } else {
                let (name, end) = name_at(text, at).map_err(|fault| wrong(at, fault))?;
                let field = Field::named(name).map_err(|error| wrong(at, error.into()))?;
                longest += field.max_len();
                if !plain.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut plain).into()));
                }
                parts.push(Part::Field(field, quoted));
                at = end;
            }
            if longest > MAX_LINE || text.len() > MAX_TEXT {
                return Err(wrong(at, TemplateFault::TooLong));
            }
        }
        if !plain.is_empty() {
            parts.push(Part::Text(plain.into()));
        }
        Ok(Self { parts: parts.into() })
    }

    /// The fields of it.
    pub fn fields(&self) -> impl Iterator<Item = &Field> {
        self.parts.iter().filter_map(|part| match part {
            Part::Field(field, _) => Some(field),
            Part::Text(_) => None,
        })
    }

    pub(super) fn write(&self, line: &AccessLine<'_>, redaction: &Redaction, out: &mut Vec<u8>) {
        for part in &*self.parts {
            match part {
                Part::Text(text) => out.extend_from_slice(text.as_bytes()),
                Part::Field(field, quoted) => {
                    let style = if *quoted { Style::Quoted } else { Style::Bare };
                    let start = out.len();
                    // an empty value would be a column too few
                    if !field.push(line, out, redaction, style) || (!quoted && out.len() == start) {
                        out.push(b'-');
                    }
                }
            }
        }
        out.push(b'\n');
    }
}

/// The name after a dollar, and where it ends.
fn name_at(text: &str, dollar: usize) -> Result<(&str, usize), TemplateFault> {
    let rest = &text[dollar + 1..];
    if let Some(braced) = rest.strip_prefix('{') {
        let len = braced.find('}').ok_or(TemplateFault::Unclosed)?;
        return Ok((&braced[..len], dollar + 3 + len));
    }
    let len = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
    if len == 0 {
        return Err(TemplateFault::Nameless);
    }
    Ok((&rest[..len], dollar + 1 + len))
}

/// Which keys a line of JSON has, in their order. Default: [`JsonFields::DEFAULT`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonFields {
    /// Each with what stands before its value.
    fields: Arc<[(Box<[u8]>, Field)]>,
}

/// Why a list of names is none of keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JsonFieldsError {
    /// A name in it is no field's.
    #[error("number {at} of the list")]
    Field {
        /// Its place, counted from 0.
        at: usize,
        /// Why not.
        source: FieldError,
    },
    /// A name stands there twice.
    #[error("number {at} of the list stands there twice")]
    Twice {
        /// Its place, counted from 0.
        at: usize,
    },
    /// There are none, or lines could get longer than 16 KiB.
    #[error("no fields, or lines could get longer than 16 KiB")]
    Length,
}

impl JsonFields {
    /// What most want to know.
    pub const DEFAULT: [&'static str; 26] = [
        "time",
        "client",
        "method",
        "host",
        "target",
        "protocol",
        "status",
        "bytes",
        "received",
        "duration",
        "time_to_head",
        "referer",
        "user_agent",
        "route",
        "cluster",
        "upstream",
        "attempts",
        "connect",
        "first_byte",
        "fault",
        "cache",
        "tls",
        "conn",
        "request_id",
        "trace_id",
        "aborted",
    ];

    /// These.
    ///
    /// # Errors
    /// A name is no field's, or stands there twice; or lines could get longer than 16 KiB.
    pub fn new<'n>(names: impl IntoIterator<Item = &'n str>) -> Result<Self, JsonFieldsError> {
        let mut fields: Vec<(Box<[u8]>, Field)> = Vec::new();
        let mut longest = 3;
        for (at, name) in names.into_iter().enumerate() {
            let field = Field::named(name).map_err(|source| JsonFieldsError::Field { at, source })?;
            if fields.iter().any(|(_, known)| *known == field) {
                return Err(JsonFieldsError::Twice { at });
            }
            let mut key = if at == 0 { b"{\"".to_vec() } else { b",\"".to_vec() };
            escape(&mut key, name.as_bytes(), 300, Style::Json);
            key.extend_from_slice(b"\":");
            longest += key.len() + field.max_len();
            fields.push((key.into(), field));
        }
        if fields.is_empty() || longest > MAX_LINE {
            return Err(JsonFieldsError::Length);
        }
        Ok(Self { fields: fields.into() })
    }

    /// The fields.
    pub fn fields(&self) -> impl Iterator<Item = &Field> {
        self.fields.iter().map(|(_, field)| field)
    }

    pub(super) fn write(&self, line: &AccessLine<'_>, redaction: &Redaction, out: &mut Vec<u8>) {
        for (key, field) in &*self.fields {
            out.extend_from_slice(key);
            if !field.push(line, out, redaction, Style::Json) {
                out.extend_from_slice(b"null");
            }
        }
        out.extend_from_slice(b"}\n");
    }
}

impl Default for JsonFields {
    fn default() -> Self {
        Self::new(Self::DEFAULT).expect("a test makes it")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn mistakes_are_told_with_their_place() {
        let unknown = |name: &str| TemplateFault::Field(FieldError::Unknown(name.into()));
        let table = [
            ("$clint", 0, unknown("clint")),
            ("ab ${status", 3, TemplateFault::Unclosed),
            ("$", 0, TemplateFault::Nameless),
            ("a $ b", 2, TemplateFault::Nameless),
            ("\u{e9}${}", 2, unknown("")),
            ("a\nb", 1, TemplateFault::Control),
            (
                "$status ${header:authorization}",
                8,
                TemplateFault::Field(FieldError::Secret("authorization".into())),
            ),
            ("$$$x", 2, unknown("x")),
        ];
        for (text, at, fault) in table {
            assert_eq!(Template::parse(text), Err(TemplateError { at, fault }), "{text}");
        }
        assert_eq!(Template::parse(&"$target".repeat(4)).unwrap_err().fault, TemplateFault::TooLong);
        assert_eq!(Template::parse(&"a".repeat(5000)).unwrap_err().fault, TemplateFault::TooLong);
    }

    #[test]
    fn lists_of_keys() {
        assert!(matches!(JsonFields::new(["time", "tim"]), Err(JsonFieldsError::Field { at: 1, .. })));
        assert_eq!(JsonFields::new(["time", "time"]), Err(JsonFieldsError::Twice { at: 1 }));
        assert_eq!(JsonFields::new([]), Err(JsonFieldsError::Length));
        assert_eq!(JsonFields::new(["target", "path", "query", "request"]), Err(JsonFieldsError::Length));
        assert_eq!(JsonFields::default().fields().count(), JsonFields::DEFAULT.len());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[ \"a-z${}:\u{e9}\n]{0,24}") {
            if let Err(error) = Template::parse(&text) {
                prop_assert!(text.is_char_boundary(error.at));
            }
        }
    }
}
