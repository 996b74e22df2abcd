//! What is compressed, and how.

use std::sync::Arc;

use http::HeaderValue;
use tokio::sync::Semaphore;

use super::Coding;

/// What is compressed, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CompressionOptions {
    /// The codings; between those that a client likes equally the first is taken. Default Zstandard, Brotli, gzip.
    pub codings: Vec<Coding>,
    /// What is known to be shorter stays as it is, in bytes. Default 1 KiB: less fits into a packet anyway.
    pub min_size: u64,
    /// The types that are compressed: `text/html`, all of `text/*`, or by suffix `*+json`; without regard to case and parameters. Default:
    /// text, scripts, JSON, XML, SVG, WebAssembly and fonts that are not compressed by themselves. `text/event-stream` and gRPC never
    /// are, whatever stands here: they come piece by piece, and have compression of their own.
    pub types: Vec<String>,
    /// The level of gzip, 0 to 9. Default 5.
    pub gzip_level: u8,
    /// The level of Brotli, 0 to 11. Default 4. From 10 on it takes so long that it is for files that are compressed once.
    pub brotli_level: u8,
    /// The level of Zstandard, 1 to 19. Default 3.
    pub zstd_level: u8,
    /// How many responses are compressed at once, by all clones of a layer; past it a response goes out as it is. A client that takes nothing of what
    /// it asked for holds its encoder, so this bounds the memory of all: with the default levels up to 3.5 MiB for each, 0.9 GiB for the default of 256. That is
    /// more than cores keep busy, with room for clients that read slowly. 0 compresses nothing.
    pub max_at_once: usize,
}

impl Default for CompressionOptions {
    fn default() -> Self {
        let types = [
            "text/*",
            "application/javascript",
            "application/json",
            "application/manifest+json",
            "application/wasm",
            "application/x-javascript",
            "application/xml",
            "application/x-ndjson",
            "*+json",
            "*+xml",
            "application/vnd.ms-fontobject",
            "font/otf",
            "font/ttf",
        ];
        Self {
            codings: vec![Coding::Zstd, Coding::Brotli, Coding::Gzip],
            min_size: 1 << 10,
            types: types.into_iter().map(str::to_owned).collect(),
            gzip_level: 5,
            brotli_level: 4,
            zstd_level: 3,
            max_at_once: 256,
        }
    }
}

impl CompressionOptions {
    /// Sets [`CompressionOptions::codings`].
    #[must_use]
    pub fn with_codings(mut self, codings: impl Into<Vec<Coding>>) -> Self {
        self.codings = codings.into();
        self
    }

    /// Sets [`CompressionOptions::min_size`].
    #[must_use]
    pub fn with_min_size(mut self, min_size: u64) -> Self {
        self.min_size = min_size;
        self
    }

    /// Sets [`CompressionOptions::types`].
    #[must_use]
    pub fn with_types<T: Into<String>>(mut self, types: impl IntoIterator<Item = T>) -> Self {
        self.types = types.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the level of one coding: [`CompressionOptions::gzip_level`] and its neighbours.
    #[must_use]
    pub fn with_level(mut self, coding: Coding, level: u8) -> Self {
        match coding {
            Coding::Gzip => self.gzip_level = level,
            Coding::Brotli => self.brotli_level = level,
            Coding::Zstd => self.zstd_level = level,
        }
        self
    }

    /// Sets [`CompressionOptions::max_at_once`].
    #[must_use]
    pub fn with_max_at_once(mut self, max_at_once: usize) -> Self {
        self.max_at_once = max_at_once;
        self
    }

    pub(super) fn level(&self, coding: Coding) -> i32 {
        match coding {
            Coding::Gzip => self.gzip_level.min(9).into(),
            Coding::Brotli => self.brotli_level.min(11).into(),
            Coding::Zstd => self.zstd_level.clamp(1, 19).into(),
        }
    }
}

/// Options in the form in which they are looked at for every response.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) options: CompressionOptions,
    pub(super) types: Types,
    /// For encoders.
    pub(super) places: Arc<Semaphore>,
}

impl Compiled {
    pub(super) fn new(options: CompressionOptions) -> Self {
        let types = Types(options.types.iter().map(|pattern| Pattern::new(pattern)).collect());
        let places = crate::places(options.max_at_once);
        Self { options, types, places }
    }
}

/// [`CompressionOptions::types`].
#[derive(Debug)]
pub(super) struct Types(Box<[Pattern]>);

#[derive(Debug)]
enum Pattern {
    Exact(Box<[u8]>),
    /// A star between two parts, either of which may be empty: what begins and ends so.
    Around(Box<[u8]>, Box<[u8]>),
}

impl Pattern {
    fn new(pattern: &str) -> Self {
        match pattern.split_once('*') {
            None => Self::Exact(pattern.as_bytes().into()),
            Some((start, end)) => Self::Around(start.as_bytes().into(), end.as_bytes().into()),
        }
    }

    fn is(&self, essence: &[u8]) -> bool {
        match self {
            Self::Exact(pattern) => essence.eq_ignore_ascii_case(pattern),
            Self::Around(start, end) => {
                essence.len() >= start.len() + end.len() && starts(essence, start) && ends(essence, end)
            }
        }
    }
}

impl Types {
    pub(super) fn have(&self, content_type: &HeaderValue) -> bool {
        let Ok(content_type) = content_type.to_str() else { return false };
        let essence = content_type.split(';').next().unwrap_or_default().trim().as_bytes();
        if starts(essence, b"text/event-stream") || starts(essence, b"application/grpc") {
            return false;
        }
        self.0.iter().any(|pattern| pattern.is(essence))
    }
}

fn starts(text: &[u8], with: &[u8]) -> bool {
    text.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with))
}

fn ends(text: &[u8], with: &[u8]) -> bool {
    let from = text.len().checked_sub(with.len());
    from.is_some_and(|from| text[from..].eq_ignore_ascii_case(with))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types() {
        let types = |options| Compiled::new(options).types;
        let usual = types(CompressionOptions::default());
        for (kind, expected) in [
            ("text/html", true),
            ("Text/HTML; charset=utf-8", true),
            ("application/json", true),
            ("application/problem+json;x=y", true),
            ("image/svg+xml", true),
            ("text/event-stream", false),
            ("text/event-stream; charset=utf-8", false),
            ("application/grpc", false),
            ("application/grpc+json", false),
            ("application/grpc-web+proto", false),
            ("image/png", false),
            ("application/octet-stream", false),
            ("application/jsonx", false),
            ("+json", true),
            ("json", false),
            ("", false),
        ] {
            assert_eq!(usual.have(&HeaderValue::from_static(kind)), expected, "{kind}");
        }
        let all = types(CompressionOptions::default().with_types(["*"]));
        assert!(all.have(&HeaderValue::from_static("image/png")));
        assert!(!all.have(&HeaderValue::from_static("text/event-stream")));
        let around = types(CompressionOptions::default().with_types(["a*a"]));
        assert!(
            !around.have(&HeaderValue::from_static("a")) && around.have(&HeaderValue::from_static("AxA"))
        );
    }

    #[test]
    fn levels_are_held_to_what_there_is() {
        let options = [Coding::Gzip, Coding::Brotli, Coding::Zstd]
            .into_iter()
            .fold(CompressionOptions::default(), |options, coding| options.with_level(coding, 200));
        let levels = [Coding::Gzip, Coding::Brotli, Coding::Zstd].map(|coding| options.level(coding));
        assert_eq!(levels, [9, 11, 19]);
    }
}
