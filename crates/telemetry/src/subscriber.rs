//! A `tracing` subscriber made from plain options. The binary installs it; nothing here does.

use std::io;

use tracing::Subscriber;
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    fmt::{self, MakeWriter},
    layer::SubscriberExt,
    reload,
};

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum LogFormat {
    /// For people: time, level, module, message, fields.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogOptions {
    /// Levels: one for all (`info`), and others per module (`info,portcullis_tls=debug`). Default `info`: what an operator
    /// acts on. Spans and their fields can be named as `tracing_subscriber::EnvFilter` describes; the environment is not
    /// read.
    pub levels: String,
    /// The form of a line. Default [`LogFormat::Text`].
    pub format: LogFormat,
    /// Colours levels by terminal escapes, in text only. Default `false`: whether a terminal reads the log is for the
    /// binary to find out.
    pub color: bool,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { levels: "info".to_owned(), format: LogFormat::Text, color: false }
    }
}

impl LogOptions {
    /// Sets [`LogOptions::levels`].
    #[must_use]
    pub fn with_levels(mut self, levels: impl Into<String>) -> Self {
        self.levels = levels.into();
        self
    }

    /// Sets [`LogOptions::format`].
    #[must_use]
    pub fn with_format(mut self, format: LogFormat) -> Self {
        self.format = format;
        self
    }

    /// Sets [`LogOptions::color`].
    #[must_use]
    pub fn with_color(mut self, color: bool) -> Self {
        self.color = color;
        self
    }
}

/// Why there is no subscriber, or no new levels.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubscriberError {
    /// The levels can't be read.
    #[error("invalid log levels {levels:?}")]
    Levels {
        /// What was given.
        levels: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The subscriber is gone.
    #[error("the log subscriber no longer exists")]
    Gone(#[source] reload::Error),
}

/// A subscriber ready to be installed.
pub type BoxSubscriber = Box<dyn Subscriber + Send + Sync>;

/// Changes the levels of a running subscriber.
#[derive(Clone, Debug)]
pub struct LevelHandle {
    handle: reload::Handle<EnvFilter, Registry>,
}

impl LevelHandle {
    /// Replaces [`LogOptions::levels`]; on an error the old ones stay.
    pub fn replace(&self, levels: &str) -> Result<(), SubscriberError> {
        self.handle.reload(filter(levels)?).map_err(SubscriberError::Gone)
    }
}

/// A subscriber that writes to standard error, and the handle of its levels.
///
/// Standard error, so that a program's output and its log stay apart. The write happens in the thread that logs: if
/// that may block for long, use [`build_with_writer`].
pub fn build(options: &LogOptions) -> Result<(BoxSubscriber, LevelHandle), SubscriberError> {
    build_with_writer(options, io::stderr)
}

/// A subscriber that writes where `writer` says, and the handle of its levels.
pub fn build_with_writer<W>(
    options: &LogOptions,
    writer: W,
) -> Result<(BoxSubscriber, LevelHandle), SubscriberError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(filter(&options.levels)?);
    let lines =
        fmt::layer().with_writer(writer).with_ansi(options.color && options.format == LogFormat::Text);
    let lines = match options.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    Ok((Box::new(Registry::default().with(filter).with(lines)), LevelHandle { handle }))
}

fn filter(levels: &str) -> Result<EnvFilter, SubscriberError> {
    // no regular expressions in field filters: levels may come from a file that others write
    EnvFilter::builder()
        .with_regex(false)
        .parse(levels)
        .map_err(|source| SubscriberError::Levels { levels: levels.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Memory {
        fn take(&self) -> String {
            String::from_utf8(std::mem::take(&mut self.0.lock().unwrap())).unwrap()
        }
    }

    impl io::Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(options: &LogOptions, events: impl FnOnce(&LevelHandle)) -> String {
        let memory = Memory::default();
        let writer = memory.clone();
        let (subscriber, handle) = build_with_writer(options, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || events(&handle));
        memory.take()
    }

    #[test]
    fn levels_per_module() {
        let options = LogOptions::default().with_levels("warn,noisy=debug");
        let text = logged(&options, |_| {
            tracing::info!("quiet");
            tracing::warn!("heard");
            tracing::debug!(target: "noisy", "detail");
            tracing::trace!(target: "noisy", "too much");
        });
        let heard: Vec<_> = ["quiet", "heard", "detail", "too much"].map(|word| text.contains(word)).into();
        assert_eq!(heard, [false, true, true, false], "{text}");
    }

    #[test]
    fn colour_is_for_text_only_and_off_by_default() {
        let table = [
            (LogOptions::default(), false),
            (LogOptions::default().with_color(true), true),
            (LogOptions::default().with_color(true).with_format(LogFormat::Json), false),
        ];
        for (options, coloured) in table {
            let text = logged(&options, |_| tracing::error!("x"));
            assert_eq!(text.contains('\u{1b}'), coloured, "{text:?}");
        }
    }

    #[test]
    fn json_lines_parse() {
        let options = LogOptions::default().with_format(LogFormat::Json);
        let text = logged(&options, |_| tracing::info!(answer = 42, "say \"hi\"\nthere"));
        assert_eq!(text.lines().count(), 1);
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["fields"]["answer"], 42);
        assert_eq!(line["fields"]["message"], "say \"hi\"\nthere");
    }

    #[test]
    fn levels_can_be_replaced_and_a_bad_one_changes_nothing() {
        let text = logged(&LogOptions::default(), |handle| {
            tracing::debug!("before");
            handle.replace("debug").unwrap();
            tracing::debug!("between");
            let error = handle.replace("=loud=").unwrap_err();
            assert_eq!(error.to_string(), "invalid log levels \"=loud=\"");
            assert!(std::error::Error::source(&error).is_some());
            tracing::debug!("after");
        });
        let heard: Vec<_> = ["before", "between", "after"].map(|word| text.contains(word)).into();
        assert_eq!(heard, [false, true, true], "{text}");
    }

    #[test]
    fn a_handle_outlives_its_subscriber_with_an_error() {
        let (subscriber, handle) = build(&LogOptions::default()).unwrap();
        drop(subscriber);
        assert!(matches!(handle.replace("info"), Err(SubscriberError::Gone(_))));
        assert!(build(&LogOptions::default().with_levels("a=b=c")).is_err());
    }
}
