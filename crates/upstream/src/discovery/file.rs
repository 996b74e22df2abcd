//! Endpoints from a file, one a line: `host:port weight=2 priority=1 zone=a`. What follows a `#` is a comment.
//!
//! The file is read again by the clock: a link that is swapped, as Kubernetes does it, is seen like any other change.

use std::{
    fs::File,
    io,
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Found, Resolve};
use crate::{Endpoint, connect::MAX_WEIGHT};

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

    /// Reads it now, and blocks while it does: for a start, when nothing runs yet.
    ///
    /// # Errors
    /// When it cannot be read, is too long, or has a wrong line.
    pub fn read(&self) -> Result<Found, FileError> {
        self.found(read_text(&self.path))
    }

    fn found(&self, text: io::Result<String>) -> Result<Found, FileError> {
        let text = text.map_err(|source| FileError::Read { path: self.path.clone(), source })?;
        if text.len() as u64 > MAX_FILE {
            return Err(FileError::TooLong(self.path.clone()));
        }
        let endpoints = parse(&text).map_err(|source| FileError::Line { path: self.path.clone(), source })?;
        Ok(Found::new(endpoints, self.interval))
    }
}

/// As much of the file as may be read, and a byte more.
fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    Ok(text)
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
        let read = tokio::task::spawn_blocking(move || read_text(&path)).await;
        self.found(read.unwrap_or_else(|error| Err(io::Error::other(error))))
    }

    fn retry_after(&self, _: u32) -> Duration {
        self.interval
    }
}

/// Reads the text of such a file.
pub fn parse(text: &str) -> Result<Vec<Endpoint>, InvalidLine> {
    let mut all = Vec::new();
    let mut names = std::collections::HashSet::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.split_once('#').map_or(line, |(before, _)| before);
        let invalid = |why: String| InvalidLine { line: at + 1, why };
        if let Some(endpoint) = parse_line(line).map_err(invalid)? {
            if !names.insert(endpoint.name().to_owned()) {
                return Err(invalid(format!("{endpoint} is named twice")));
            }
            all.push(endpoint);
        }
    }
    Ok(all)
}

fn parse_line(line: &str) -> Result<Option<Endpoint>, String> {
    let mut words = line.split_whitespace();
    let Some(endpoint) = words.next() else { return Ok(None) };
    let mut endpoint = endpoint.parse::<Endpoint>().map_err(|error| error.to_string())?;
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
                Ok(weight @ 1..=MAX_WEIGHT) => endpoint = endpoint.with_weight(weight),
                _ => return Err(format!("`{value}` is no weight: a number from 1 to {MAX_WEIGHT}")),
            },
            "priority" => {
                let wrong = |_| format!("`{value}` is no priority: a number from 0 to 255");
                endpoint = endpoint.with_priority(value.parse().map_err(wrong)?);
            }
            "zone" if !value.is_empty() => endpoint = endpoint.with_zone(Some(value.into())),
            "zone" => return Err("zone is empty".to_owned()),
            _ => return Err(format!("`{key}` is not known: weight, priority and zone are")),
        }
    }
    Ok(Some(endpoint))
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
            listed.iter().map(|e| (e.name(), e.weight(), e.priority(), e.zone().map(|z| &**z))).collect();
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
            ("a:1 weight=1001", "line 1: `1001` is no weight: a number from 1 to 1000"),
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

    /// Names of the lists that were applied, as they come.
    async fn next(lists: &mut tokio::sync::mpsc::UnboundedReceiver<Vec<String>>) -> Vec<String> {
        tokio::time::timeout(Duration::from_secs(20), lists.recv()).await.unwrap().unwrap()
    }

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("portcullis-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    fn follow_file(path: PathBuf) -> tokio::sync::mpsc::UnboundedReceiver<Vec<String>> {
        let (sender, lists) = tokio::sync::mpsc::unbounded_channel();
        let source = FileSource::new(path).with_interval(Duration::from_millis(20));
        tokio::spawn(async move {
            let apply = |list: Vec<Endpoint>| sender.send(list.iter().map(ToString::to_string).collect());
            crate::discovery::follow("app", source, crate::discovery::Empty::Keep, apply).await
        });
        lists
    }

    #[tokio::test]
    async fn a_file_that_changes_is_seen_and_a_broken_one_changes_nothing() {
        let directory = directory("file-changes");
        let path = directory.join("endpoints");
        std::fs::write(&path, "a:1\n").unwrap();
        let mut lists = follow_file(path.clone());
        assert_eq!(next(&mut lists).await, ["a:1"]);
        for broken in ["nonsense\n", "", "# none\n"] {
            std::fs::write(&path, broken).unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        std::fs::remove_file(&path).unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(lists.try_recv().is_err());
        std::fs::write(directory.join("new"), "b:1 weight=2\na:1\n").unwrap();
        std::fs::rename(directory.join("new"), &path).unwrap();
        assert_eq!(next(&mut lists).await, ["a:1", "b:1"]);
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_link_that_is_swapped_is_seen() {
        use std::os::unix::fs::symlink;
        let directory = directory("file-swap");
        for (version, text) in [("v1", "a:1\n"), ("v2", "b:1\n")] {
            std::fs::create_dir(directory.join(version)).unwrap();
            std::fs::write(directory.join(version).join("endpoints"), text).unwrap();
        }
        // as Kubernetes mounts it: the file is a link through a link to a directory, and that one is swapped
        symlink("v1", directory.join("data")).unwrap();
        symlink("data/endpoints", directory.join("endpoints")).unwrap();
        let mut lists = follow_file(directory.join("endpoints"));
        assert_eq!(next(&mut lists).await, ["a:1"]);
        symlink("v2", directory.join("next")).unwrap();
        std::fs::rename(directory.join("next"), directory.join("data")).unwrap();
        assert_eq!(next(&mut lists).await, ["b:1"]);
        std::fs::remove_dir_all(directory).unwrap();
    }

    proptest! {
        #[test]
        fn no_text_panics(text: String) {
            let _ = parse(&text);
        }

        #[test]
        fn what_is_written_is_read(weight in 1_u32..=1000, priority: u8, zone in "[a-z]{1,9}") {
            let listed = parse(&format!("a:1 weight={weight} priority={priority} zone={zone}")).unwrap();
            let expected = "a:1".parse::<Endpoint>().unwrap();
            let expected =
                expected.with_weight(weight).with_priority(priority).with_zone(Some(zone.into()));
            prop_assert_eq!(listed, vec![expected]);
        }
    }
}
