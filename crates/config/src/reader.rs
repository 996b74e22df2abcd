//! Reads TOML tables by key and notes everything that is wrong with them, instead of stopping at the first thing.
//!
//! A [`Table`] hands out its values through [`Table::set`], [`Table::get`] and [`Table::need`]; each remembers the
//! key, so that [`Table::finish`] can tell which keys nobody asked for.

use std::{cell::RefCell, ops::Range};

use portcullis_edge::plan::Setting;
use toml::de::{DeTable, DeValue};

use crate::{
    errors::{Finding, Lines, escape},
    suggest::nearest,
};

pub(crate) use toml::Spanned;

/// What is wrong with one value. The message goes on after the name of the key: "wants an integer, found a string".
#[derive(Debug)]
pub(crate) struct Wrong {
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

impl Wrong {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None }
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

/// A value, or what is wrong with it.
pub(crate) type Read<T> = Result<T, Wrong>;

/// What a list has, without where.
pub(crate) fn items<T>(list: Option<Spanned<Vec<Spanned<T>>>>) -> Vec<T> {
    list.into_iter().flat_map(Spanned::into_inner).map(Spanned::into_inner).collect()
}

/// Collects what is found, from anywhere in the tree.
#[derive(Debug, Default)]
pub(crate) struct Sink {
    found: RefCell<Found>,
}

#[derive(Debug, Default)]
struct Found {
    syntax: Vec<Finding>,
    errors: Vec<Finding>,
    absent: Vec<Finding>,
    warnings: Vec<Finding>,
    /// The parser lost a part of the file.
    lossy: bool,
}

impl Sink {
    /// Something that stands in the file is wrong.
    pub(crate) fn error(&self, span: Range<usize>, wrong: Wrong) {
        self.found.borrow_mut().errors.push(finding(span, wrong));
    }

    /// Something that should stand in the file does not. Not told when the parser lost a part of the file, where it
    /// may stand.
    pub(crate) fn absent(&self, span: Range<usize>, wrong: Wrong) {
        self.found.borrow_mut().absent.push(finding(span, wrong));
    }

    /// Something is allowed but probably not meant.
    pub(crate) fn warn(&self, span: Range<usize>, wrong: Wrong) {
        self.found.borrow_mut().warnings.push(finding(span, wrong));
    }

    /// The text is not TOML.
    pub(crate) fn syntax(&self, error: &toml::de::Error) {
        let mut found = self.found.borrow_mut();
        let duplicate = error.message() == "duplicate key";
        found.lossy |= !duplicate;
        let wrong = Wrong::new(error.message());
        let wrong = if duplicate { wrong.hint("a key or `[table]` may stand only once") } else { wrong };
        found.syntax.push(finding(error.span().unwrap_or_default(), wrong));
    }

    /// Errors and warnings. What the reader says about a line that is not even TOML is noise and left out.
    pub(crate) fn into_findings(self, text: &str) -> (Vec<Finding>, Vec<Finding>) {
        let Found { syntax, mut errors, absent, warnings, lossy } = self.found.into_inner();
        if lossy {
            let lines = Lines::new(text);
            let broken: Vec<_> = syntax.iter().map(|found| lines.number(found.span.start)).collect();
            // an empty span is a value that the parser made up
            errors
                .retain(|found| !found.span.is_empty() && !broken.contains(&lines.number(found.span.start)));
        } else {
            errors.extend(absent);
        }
        errors.extend(syntax);
        (errors, warnings)
    }
}

fn finding(span: Range<usize>, Wrong { message, hint }: Wrong) -> Finding {
    Finding { span, message, hint }
}

/// The keys of the top level, for a hint when one is written below a `[table]` header.
pub(crate) const TOP_LEVEL: &[&str] =
    &["workers", "threads", "drain_timeout", "drain_delay", "certificate_poll", "health_path"];

/// A table that is being read.
pub(crate) struct Table<'s, 'i> {
    sink: &'s Sink,
    /// How messages call it: "`[limits]`".
    name: &'static str,
    span: Range<usize>,
    rest: Vec<(Spanned<std::borrow::Cow<'i, str>>, Spanned<DeValue<'i>>)>,
    asked: Vec<&'static str>,
}

impl<'s, 'i> Table<'s, 'i> {
    pub(crate) fn new(sink: &'s Sink, name: &'static str, span: Range<usize>, table: DeTable<'i>) -> Self {
        Self { sink, name, span, rest: table.into_iter().collect(), asked: Vec::new() }
    }

    pub(crate) fn sink(&self) -> &'s Sink {
        self.sink
    }

    /// Where the table's header stands.
    pub(crate) fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// Where a key stands that has not been read yet.
    pub(crate) fn key_span(&self, key: &str) -> Option<Range<usize>> {
        self.rest.iter().find(|(name, _)| name.get_ref() == key).map(|(name, _)| name.span())
    }

    fn take(&mut self, key: &'static str) -> Option<Spanned<DeValue<'i>>> {
        self.asked.push(key);
        let at = self.rest.iter().position(|(name, _)| name.get_ref() == key)?;
        Some(self.rest.swap_remove(at).1)
    }

    /// The value of a key if it is there and right.
    pub(crate) fn get<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&DeValue<'_>) -> Read<T>,
    ) -> Option<Spanned<T>> {
        let value = self.take(key)?;
        match read(value.get_ref()) {
            Ok(read) => Some(Spanned::new(value.span(), read)),
            Err(wrong) => {
                self.sink.error(value.span(), named(&format!("`{key}`"), wrong));
                None
            }
        }
    }

    /// Replaces a default by the value of a key.
    pub(crate) fn set<T>(
        &mut self,
        key: &'static str,
        field: &mut T,
        read: impl FnOnce(&DeValue<'_>) -> Read<T>,
    ) {
        if let Some(value) = self.get(key, read) {
            *field = value.into_inner();
        }
    }

    /// The value of a key that must be there.
    pub(crate) fn need<T>(
        &mut self,
        key: &'static str,
        example: &str,
        read: impl FnOnce(&DeValue<'_>) -> Read<T>,
    ) -> Option<Spanned<T>> {
        if self.key_span(key).is_none() {
            self.asked.push(key);
            let wrong = Wrong::new(format!("`{key}` is missing in {}", self.name));
            self.sink.absent(self.span(), wrong.hint(format!("add `{key} = {example}`")));
            return None;
        }
        self.get(key, read)
    }

    /// A list of which every item is read; wrong items are told and left out. An empty list is an error.
    pub(crate) fn list<T>(
        &mut self,
        key: &'static str,
        example: &str,
        read: impl Fn(&DeValue<'_>) -> Read<T>,
    ) -> Option<Spanned<Vec<Spanned<T>>>> {
        let list = self.list_or_empty(key, example, read)?;
        if list.1 {
            let wrong = Wrong::new(format!("`{key}` is an empty list"));
            let hint = format!("write `{key} = [{example}]`, or leave the key out");
            self.sink.error(list.0.span(), wrong.hint(hint));
            return None;
        }
        Some(list.0)
    }

    /// As [`Table::list`], and an empty one is as good as any. Says whether it is empty as it is written.
    pub(crate) fn list_or_empty<T>(
        &mut self,
        key: &'static str,
        example: &str,
        read: impl Fn(&DeValue<'_>) -> Read<T>,
    ) -> Option<(Spanned<Vec<Spanned<T>>>, bool)> {
        let value = self.take(key)?;
        let span = value.span();
        let items = match value.into_inner() {
            DeValue::Array(items) => items,
            other => {
                let wrong = Wrong::new(format!("`{key}` wants a list, found {}", describe(&other)));
                let hint = match other {
                    DeValue::String(text) => format!("write `{key} = [\"{}\"]`", escape(&text)),
                    _ => format!("write `{key} = [{example}]`"),
                };
                self.sink.error(span, wrong.hint(hint));
                return None;
            }
        };
        let is_empty = items.is_empty();
        let mut list = Vec::with_capacity(items.len());
        for (at, item) in items.into_iter().enumerate() {
            match read(item.get_ref()) {
                Ok(read) => list.push(Spanned::new(item.span(), read)),
                Err(wrong) => self.sink.error(item.span(), named(&format!("`{key}[{at}]`"), wrong)),
            }
        }
        Some((Spanned::new(span, list), is_empty))
    }

    /// As [`Table::list`], for a list that must be there.
    pub(crate) fn need_list<T>(
        &mut self,
        key: &'static str,
        example: &str,
        read: impl Fn(&DeValue<'_>) -> Read<T>,
    ) -> Option<Spanned<Vec<Spanned<T>>>> {
        if self.key_span(key).is_none() {
            self.asked.push(key);
            let wrong = Wrong::new(format!("`{key}` is missing in {}", self.name));
            self.sink.absent(self.span(), wrong.hint(format!("add `{key} = [{example}]`")));
            return None;
        }
        self.list(key, example, read)
    }

    /// A table below this one: `[key]`.
    pub(crate) fn table(&mut self, key: &'static str, name: &'static str) -> Option<Table<'s, 'i>> {
        let value = self.take(key)?;
        let span = value.span();
        match value.into_inner() {
            DeValue::Table(table) => Some(Table::new(self.sink, name, span, table)),
            other => {
                let wrong = Wrong::new(format!("`{key}` wants one table, found {}", describe(&other)));
                self.sink.error(span, wrong.hint(format!("write {name} with single brackets, once")));
                None
            }
        }
    }

    /// A layer of a chain: a table, or `"off"`.
    pub(crate) fn setting<T>(
        &mut self,
        key: &'static str,
        name: &'static str,
        read: impl FnOnce(Table<'s, 'i>) -> Option<T>,
    ) -> Setting<T> {
        let Some(value) = self.take(key) else { return Setting::Inherit };
        let span = value.span();
        match value.into_inner() {
            DeValue::Table(table) => match read(Table::new(self.sink, name, span, table)) {
                Some(own) => Setting::Own(own),
                None => Setting::Inherit,
            },
            DeValue::String(text) if text == "off" => Setting::Off,
            other => {
                let wrong =
                    Wrong::new(format!("`{key}` wants a table or \"off\", found {}", describe(&other)));
                self.sink.error(span, wrong.hint(format!("write {name}, or `{key} = \"off\"`")));
                Setting::Inherit
            }
        }
    }

    /// A layer of a chain that has a list: one table, a list of them, or `"off"`.
    pub(crate) fn settings<T>(
        &mut self,
        key: &'static str,
        name: &'static str,
        read: impl FnOnce(Vec<Table<'s, 'i>>) -> Option<T>,
    ) -> Setting<T> {
        let value = self.rest.iter().find(|(found, _)| found.get_ref() == key).map(|(_, value)| value);
        let Some(DeValue::Array(items)) = value.map(Spanned::get_ref) else {
            return self.setting(key, name, |table| read(vec![table]));
        };
        if let (true, Some(value)) = (items.is_empty(), value) {
            let wrong = Wrong::new(format!("`{key}` is an empty list"));
            self.sink.error(value.span(), wrong.hint(format!("write {name}, or `{key} = \"off\"`")));
        }
        read(self.tables(key, name)).map_or(Setting::Inherit, Setting::Own)
    }

    /// Whether a key has this word for its value.
    pub(crate) fn is_word(&self, key: &str, word: &str) -> bool {
        let value = self.rest.iter().find(|(name, _)| name.get_ref() == key);
        value.is_some_and(|(_, value)| matches!(value.get_ref(), DeValue::String(text) if text == word))
    }

    /// One table, `[key]`, or several, `[[key]]`.
    pub(crate) fn one_or_more(&mut self, key: &'static str, name: &'static str) -> Vec<Table<'s, 'i>> {
        let value = self.rest.iter().find(|(name, _)| name.get_ref() == key);
        match value.map(|(_, value)| value.get_ref()) {
            Some(DeValue::Array(_)) => self.tables(key, name),
            _ => self.table(key, name).into_iter().collect(),
        }
    }

    /// The tables of a list below this one: `[[key]]`.
    pub(crate) fn tables(&mut self, key: &'static str, name: &'static str) -> Vec<Table<'s, 'i>> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let wrong = |found: &DeValue<'_>| {
            Wrong::new(format!("`{key}` wants a list of tables, found {}", describe(found)))
                .hint(format!("write {name} with double brackets, once for each"))
        };
        let span = value.span();
        let items: Vec<_> = match value.into_inner() {
            DeValue::Array(items) => items.into_iter().collect(),
            other => {
                self.sink.error(span.clone(), wrong(&other));
                // one table is read all the same, for what is wrong inside
                if other.is_table() { vec![Spanned::new(span, other)] } else { Vec::new() }
            }
        };
        let mut tables = Vec::with_capacity(items.len());
        for item in items {
            let span = item.span();
            match item.into_inner() {
                DeValue::Table(table) => tables.push(Table::new(self.sink, name, span, table)),
                other => self.sink.error(span, wrong(&other)),
            }
        }
        tables
    }

    /// Tells which keys are left over.
    pub(crate) fn finish(self) {
        let Self { sink, name, rest, asked, .. } = self;
        for (key, _) in rest {
            let known = asked.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
            let wrong = Wrong::new(format!("unknown key `{}` in {name}", escape(key.get_ref())));
            let hint = match nearest(key.get_ref(), asked.iter().copied()) {
                Some(meant) => format!("did you mean `{meant}`? known keys: {known}"),
                None if TOP_LEVEL.contains(&&**key.get_ref()) => {
                    format!(
                        "it belongs to the top level: move it above the first `[table]`; known here: {known}"
                    )
                }
                None => format!("known keys: {known}"),
            };
            sink.error(key.span(), wrong.hint(hint));
        }
    }
}

fn named(key: &str, Wrong { message, hint }: Wrong) -> Wrong {
    Wrong { message: format!("{key} {message}"), hint }
}

/// A value in words.
pub(crate) fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the string \"{}\"", escape(text)),
        DeValue::Integer(number) => format!("the integer {}", escape(&number.to_string())),
        DeValue::Float(number) => format!("the number {}", escape(&number.to_string())),
        DeValue::Boolean(value) => format!("the boolean {value}"),
        DeValue::Datetime(_) => "a date or time".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}
