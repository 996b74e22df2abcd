//! Endpoints from a file, one a line: `host:port weight=2 priority=1 zone=a`. What follows a `#` is a comment.
//!
//! The file is read again by the clock: a link that is swapped, as Kubernetes does it, is seen like any other change.

use std::{fs::File, io, io::Read as _, path::PathBuf, time::Duration};

use super::{Found, Listed, Resolve};
use crate::Endpoint;

/// The most of a file that is read.
const MAX_FILE: u64 = 1024 * 1024;

/// A file that names endpoints; at most 1 MiB of text.
#[derive(Clone, Debug)]
pub struct FileSource {
    path: PathBuf,
    interval: Duration,
}

impl FileSource {
    /// The file at this path, read every second.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), interval: Duration::from_secs(1) }
    }

    /// Sets how often it is read. Default 1 s.
    #[must_use]
    pub fn with_interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }
}

/// Why a file gives no endpoints.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// It cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is longer than 1 MiB.
    #[error("{} is longer than 1 MiB", .0.display())]
    TooLong(PathBuf),
    /// A line is wrong.
    #[error("{}: {source}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line.
        source: InvalidLine,
    },
}

/// A line that names no endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct InvalidLine {
    line: usize,
    why: String,
}

impl Resolve for FileSource {
    type Error = FileError;

    async fn resolve(&self) -> Result<Found, FileError> {
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
            Ok(text)
        });
        let text = read.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        let text = text.map_err(|source| FileError::Read { path: self.path.clone(), source })?;
        if text.len() as u64 > MAX_FILE {
            return Err(FileError::TooLong(self.path.clone()));
        }
        let listed = parse(&text).map_err(|source| FileError::Line { path: self.path.clone(), source })?;
        Ok(Found::new(listed, self.interval))
    }

    fn retry_after(&self, _: u32) -> Duration {
        self.interval
    }
}

/// Reads the text of such a file.
pub fn parse(text: &str) -> Result<Vec<Listed>, InvalidLine> {
    let mut all = Vec::new();
    let mut names = std::collections::HashSet::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.split_once('#').map_or(line, |(before, _)| before);
        let invalid = |why: String| InvalidLine { line: at + 1, why };
        if let Some(listed) = parse_line(line).map_err(invalid)? {
            if !names.insert(listed.endpoint.name().to_owned()) {
                return Err(invalid(format!("{} is named twice", listed.endpoint)));
            }
            all.push(listed);
        }
    }
    Ok(all)
}

fn parse_line(line: &str) -> Result<Option<Listed>, String> {
    let mut words = line.split_whitespace();
    let Some(endpoint) = words.next() else { return Ok(None) };
    let mut listed = Listed::from(endpoint.parse::<Endpoint>().map_err(|error| error.to_string())?);
    let mut seen = Vec::new();
    for word in words {
        let Some((key, value)) = word.split_once('=') else {
            return Err(format!("`{word}` is not key=value"));
        };
        if seen.contains(&key) {
            return Err(format!("{key} is set twice"));
        }
        seen.push(key);
        match key {
            "weight" => match value.parse() {
                Ok(weight) if weight > 0 => listed.weight = weight,
                _ => return Err(format!("`{value}` is no weight: a number of 1 or more")),
            },
            "priority" => {
                let wrong = |_| format!("`{value}` is no priority: a number from 0 to 255");
                listed.priority = value.parse().map_err(wrong)?;
            }
            "zone" if !value.is_empty() => listed.zone = Some(value.into()),
            "zone" => return Err("zone is empty".to_owned()),
            _ => return Err(format!("`{key}` is not known: weight, priority and zone are")),
        }
    }
    Ok(Some(listed))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines() {
        let text = "# all\n10.0.0.1:80\n\n  app:81 weight=2 priority=1 zone=a # one\n[::1]:82 zone=b\n";
        let listed = parse(text).unwrap();
        let seen: Vec<_> =
            listed.iter().map(|l| (l.endpoint.name(), l.weight, l.priority, l.zone.as_deref())).collect();
        assert_eq!(
            seen,
            [("10.0.0.1:80", 1, 0, None), ("app:81", 2, 1, Some("a")), ("[::1]:82", 1, 0, Some("b"))]
        );
    }

    #[test]
    fn mistakes_name_their_line() {
        for (text, part) in [
            ("a:1\nb", "line 2: `b` is not host:port"),
            ("a:1 x", "line 1: `x` is not key=value"),
            ("a:1 color=1", "line 1: `color` is not known"),
            ("a:1 weight=0", "line 1: `0` is no weight"),
            ("a:1 priority=256", "line 1: `256` is no priority"),
            ("a:1 zone=", "line 1: zone is empty"),
            ("a:1 zone=a zone=b", "line 1: zone is set twice"),
            ("a:1\n\na:1", "line 3: a:1 is named twice"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with(part), "{error}");
        }
    }

    #[tokio::test]
    async fn a_file_that_is_not_there_is_an_error() {
        let error = FileSource::new("/nowhere/at/all").resolve().await.unwrap_err();
        assert!(error.to_string().starts_with("/nowhere/at/all cannot be read"), "{error}");
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        assert!(matches!(FileSource::new(path).resolve().await, Err(FileError::Line { .. })));
    }

    proptest! {
        #[test]
        fn no_text_panics(text: String) {
            let _ = parse(&text);
        }

        #[test]
        fn what_is_written_is_read(weight in 1_u32.., priority: u8, zone in "[a-z]{1,9}") {
            let listed = parse(&format!("a:1 weight={weight} priority={priority} zone={zone}")).unwrap();
            let expected =
                Listed { weight, priority, zone: Some(zone.into()), ..Listed::from("a:1".parse::<Endpoint>().unwrap()) };
            prop_assert_eq!(listed, vec![expected]);
        }
    }
}
