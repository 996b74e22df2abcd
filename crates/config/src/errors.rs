//! What is found in a file: positions, messages, and how they are shown.

use std::{error::Error, fmt, io, ops::Range, path::PathBuf};

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use thiserror::Error;

/// One thing found in a file: an error in [`Errors`], something doubtful in [`Warnings`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigError {
    /// The line, counted from 1.
    pub line: usize,
    /// The column, counted from 1 in characters.
    pub column: usize,
    /// What is wrong, in one line without a full stop.
    pub message: String,
    /// What to do about it, or what would have been right.
    pub hint: Option<String>,
    span: Range<usize>,
}

impl ConfigError {
    /// The bytes of the text that are meant; empty where something is missing.
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.message)
    }
}

/// A [`ConfigError`] before its line is known.
#[derive(Debug)]
pub(crate) struct Finding {
    pub(crate) span: Range<usize>,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

/// Every error of one file, in the order of the file. Never empty.
#[derive(Clone, Debug)]
pub struct Errors(Report);

impl Errors {
    pub(crate) fn new(name: &str, text: &str, findings: Vec<Finding>) -> Self {
        Self(Report::new(name, text, findings))
    }

    /// The name of the file, as it was given.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The errors, first line first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &ConfigError> {
        self.0.list.iter()
    }

    /// How many there are; at least one.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.0.list.len()
    }

    /// For people: each error with its source line, a caret and a hint, then a line that counts them. `color` adds
    /// ANSI escapes; the caller knows whether it writes to a terminal.
    pub fn render(&self, color: bool) -> String {
        let mut text = self.0.render(&Level::ERROR, color);
        let (count, name) = (self.len(), escape(self.name()));
        text.push_str(&format!("{name}: {count} error{}\n", if count == 1 { "" } else { "s" }));
        text
    }
}

/// The same as [`Errors::render`] without colour.
impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.render(false).trim_end())
    }
}

impl Error for Errors {}

/// What is allowed but probably not meant, in the order of the file.
#[derive(Clone, Debug)]
pub struct Warnings(Report);

impl Warnings {
    pub(crate) fn new(name: &str, text: &str, findings: Vec<Finding>) -> Self {
        Self(Report::new(name, text, findings))
    }

    /// The warnings, first line first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &ConfigError> {
        self.0.list.iter()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.list.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.list.len()
    }

    /// As [`Errors::render`], without the count; the empty string if there are none.
    pub fn render(&self, color: bool) -> String {
        self.0.render(&Level::WARNING, color)
    }
}

/// Why a file was not loaded.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is too large to be a configuration.
    #[error("{} is larger than {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most bytes that are read.
        limit: u64,
    },
    /// The file has errors; they show themselves in full.
    #[error(transparent)]
    Invalid(#[from] Errors),
}

impl LoadError {
    /// The errors in the file, if it could be read.
    pub fn errors(&self) -> Option<&Errors> {
        match self {
            Self::Invalid(errors) => Some(errors),
            Self::Read { .. } | Self::TooLarge { .. } => None,
        }
    }

    /// For people, see [`Errors::render`]; always ends with a newline.
    pub fn render(&self, color: bool) -> String {
        match self {
            Self::Invalid(errors) => errors.render(color),
            Self::Read { source, .. } => format!("{self}: {source}\n"),
            Self::TooLarge { .. } => format!("{self}\n"),
        }
    }
}

/// A file and what was found in it.
#[derive(Clone, Debug)]
struct Report {
    name: String,
    text: String,
    list: Vec<ConfigError>,
}

impl Report {
    fn new(name: &str, text: &str, mut findings: Vec<Finding>) -> Self {
        findings.sort_by(|a, b| (a.span.start, &a.message).cmp(&(b.span.start, &b.message)));
        findings.dedup_by(|a, b| a.span == b.span && a.message == b.message);
        let lines = Lines::new(text);
        let list = findings
            .into_iter()
            .map(|Finding { span, message, hint }| {
                let span = lines.clamp(span);
                let (line, column) = lines.position(span.start);
                ConfigError { line, column, message, hint, span }
            })
            .collect();
        Self { name: name.to_owned(), text: text.to_owned(), list }
    }

    fn render(&self, level: &Level<'_>, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let lines = Lines::new(&self.text);
        let name = escape(&self.name);
        let mut text = String::new();
        for found in &self.list {
            // one line each, however long the file or the value is
            let (start, line) = lines.line(found.line);
            let from = (found.span.start - start).min(line.len());
            let to = found.span.end.saturating_sub(start).clamp(from, line.len());
            let snippet = Snippet::source(line)
                .line_start(found.line)
                .path(&*name)
                .annotation(AnnotationKind::Primary.span(from..to));
            let mut group = level.clone().primary_title(&found.message).element(snippet);
            if let Some(hint) = &found.hint {
                group = group.element(Level::HELP.message(hint));
            }
            text.push_str(&renderer.render(&[group]));
            text.push_str("\n\n");
        }
        text
    }
}

/// Where the lines of a text begin.
pub(crate) struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, starts }
    }

    /// The line of a byte, counted from 1.
    pub(crate) fn number(&self, at: usize) -> usize {
        self.starts.partition_point(|start| *start <= at)
    }

    /// Line and column, both from 1, of a byte on a character border.
    fn position(&self, at: usize) -> (usize, usize) {
        let line = self.number(at);
        let start = self.starts[line - 1];
        (line, self.text[start..at].chars().count() + 1)
    }

    /// The first byte and the text of a line, without its end.
    fn line(&self, number: usize) -> (usize, &'a str) {
        let start = self.starts[number - 1];
        let line = self.text[start..].split('\n').next().unwrap_or_default();
        (start, line.strip_suffix('\r').unwrap_or(line))
    }

    /// The same range inside the text and on character borders.
    fn clamp(&self, span: Range<usize>) -> Range<usize> {
        let border = |at: usize| {
            let at = at.min(self.text.len());
            (0..=at).rev().find(|at| self.text.is_char_boundary(*at)).unwrap_or_default()
        };
        let start = border(span.start);
        start..border(span.end).max(start)
    }
}

/// Text from the file or a file name, made safe to show on a terminal.
pub(crate) fn escape(text: &str) -> String {
    const MOST: usize = 80;
    let mut shown: String = text.chars().take(MOST).flat_map(char::escape_debug).collect();
    if text.chars().nth(MOST).is_some() {
        shown.push('…');
    }
    // escape_debug is made for literals: quotes read better as they are
    shown.replace("\\\"", "\"").replace("\\'", "'")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str, span: Range<usize>) -> ConfigError {
        let found = Finding { span, message: "x".to_owned(), hint: None };
        let errors = Errors::new("f.toml", text, vec![found]);
        assert!(errors.render(false).contains("f.toml: 1 error\n"));
        assert!(errors.render(true).contains('\u{1b}'));
        errors.iter().next().unwrap().clone()
    }

    #[test]
    fn counts_lines_and_characters_from_one() {
        for (text, span, line, column) in [
            ("", 0..0, 1, 1),
            ("", 7..9, 1, 1),
            ("ab", 2..2, 1, 3),
            ("ab\n", 3..3, 2, 1),
            ("a = 1\r\nb = 2\r\n", 7..8, 2, 1),
            ("# héé\nkey = 'ü' # é", 14..18, 2, 7),
            ("é", 1..2, 1, 1),
            ("x = [\n1,\n]\n", 4..10, 1, 5),
        ] {
            let found = one(text, span.clone());
            assert_eq!((found.line, found.column), (line, column), "{text:?} {span:?}");
        }
    }

    #[test]
    fn renders_the_line_a_caret_and_the_hint() {
        let text = "[limits]\nmax_tunnels = 0\n";
        let found =
            Finding { span: 23..24, message: "must be more".to_owned(), hint: Some("write 1".to_owned()) };
        assert_eq!(
            Errors::new("edge.toml", text, vec![found]).render(false),
            "error: must be more\n \
             --> edge.toml:2:15\n  \
             |\n\
             2 | max_tunnels = 0\n  \
             |               ^\n  \
             |\n  \
             = help: write 1\n\n\
             edge.toml: 1 error\n"
        );
    }

    #[test]
    fn sorts_and_drops_what_is_said_twice() {
        let found =
            |at: usize, message: &str| Finding { span: at..at + 1, message: message.to_owned(), hint: None };
        let errors = Errors::new("f", "a\nb\nc\n", vec![found(4, "z"), found(0, "y"), found(4, "z")]);
        let seen: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(seen, ["1:1: y", "3:1: z"]);
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(escape("a\u{1b}[31m\"b\""), "a\\u{1b}[31m\"b\"");
        assert_eq!(escape(&"é".repeat(100)).chars().count(), 81);
        let found = Finding { span: 0..1, message: "x".to_owned(), hint: None };
        let shown = Errors::new("f\u{1b}", "\u{1b}[31m = 1", vec![found]).render(false);
        assert!(!shown.contains('\u{1b}'), "{shown:?}");
    }
}
