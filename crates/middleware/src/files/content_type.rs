//! Content types by the ending of a name.

/// The type of a file of this name; without one that is known it is a download.
pub(super) fn of(name: &str) -> &'static str {
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending).to_ascii_lowercase();
    let known = TYPES.iter().find(|(endings, _)| endings.contains(&&*ending));
    known.map_or("application/octet-stream", |(_, kind)| kind)
}

const TYPES: [(&[&str], &str); 45] = [
    (&["html", "htm"], "text/html; charset=utf-8"),
    (&["css"], "text/css; charset=utf-8"),
    (&["js", "mjs", "cjs"], "text/javascript; charset=utf-8"),
    (&["json", "map"], "application/json"),
    (&["webmanifest"], "application/manifest+json"),
    (&["wasm"], "application/wasm"),
    (&["txt", "log"], "text/plain; charset=utf-8"),
    (&["md", "markdown"], "text/markdown; charset=utf-8"),
    (&["csv"], "text/csv; charset=utf-8"),
    (&["xml"], "application/xml"),
    (&["xhtml"], "application/xhtml+xml"),
    (&["rss"], "application/rss+xml"),
    (&["atom"], "application/atom+xml"),
    (&["svg"], "image/svg+xml"),
    (&["png"], "image/png"),
    (&["jpg", "jpeg"], "image/jpeg"),
    (&["gif"], "image/gif"),
    (&["webp"], "image/webp"),
    (&["avif"], "image/avif"),
    (&["jxl"], "image/jxl"),
    (&["bmp"], "image/bmp"),
    (&["ico"], "image/x-icon"),
    (&["woff"], "font/woff"),
    (&["woff2"], "font/woff2"),
    (&["ttf"], "font/ttf"),
    (&["otf"], "font/otf"),
    (&["mp4", "m4v"], "video/mp4"),
    (&["webm"], "video/webm"),
    (&["ogv"], "video/ogg"),
    (&["mov"], "video/quicktime"),
    (&["mp3"], "audio/mpeg"),
    (&["m4a"], "audio/mp4"),
    (&["ogg", "oga", "opus"], "audio/ogg"),
    (&["wav"], "audio/wav"),
    (&["flac"], "audio/flac"),
    (&["m3u8"], "application/vnd.apple.mpegurl"),
    (&["vtt"], "text/vtt; charset=utf-8"),
    (&["pdf"], "application/pdf"),
    (&["zip"], "application/zip"),
    (&["gz", "tgz"], "application/gzip"),
    (&["zst"], "application/zstd"),
    (&["tar"], "application/x-tar"),
    (&["7z"], "application/x-7z-compressed"),
    (&["ics"], "text/calendar; charset=utf-8"),
    (&["yaml", "yml"], "application/yaml"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings() {
        for (name, kind) in [
            ("a/index.HTML", "text/html; charset=utf-8"),
            ("x.tar.gz", "application/gzip"),
            ("logo.svg", "image/svg+xml"),
            ("noending", "application/octet-stream"),
            ("x.exe", "application/octet-stream"),
            (".png", "image/png"),
        ] {
            assert_eq!(of(name), kind, "{name}");
        }
    }
}
