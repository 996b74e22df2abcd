//! Which path gives what: a pure function from path to [`Route`].

use std::time::Duration;

/// The body of `/` and of `/slow`.
pub(crate) const DEFAULT_LEN: u64 = 1024;
/// Longest `/slow`.
const MAX_SLOW: Duration = Duration::from_secs(600);

/// What a path asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// That many bytes, the length announced.
    Bytes(u64),
    /// That many bytes, the length not announced.
    Chunked(u64),
    /// That many bytes, the length announced, which caches may keep.
    Fresh(u64),
    /// The default body, later.
    Slow(Duration),
    /// The request as it arrived.
    Headers,
    /// The request's body.
    Echo,
    /// The length of the request's body.
    Sink,
    /// A WebSocket.
    WebSocket,
    /// 404.
    Unknown,
}

impl Route {
    /// Reads a path; an argument that is no number, or too large a one, is an unknown path.
    pub(crate) fn of(path: &str) -> Self {
        match path {
            "/" => return Self::Bytes(DEFAULT_LEN),
            "/headers" => return Self::Headers,
            "/echo" => return Self::Echo,
            "/sink" => return Self::Sink,
            "/ws" => return Self::WebSocket,
            _ => {}
        }
        let Some((name, argument)) = path.strip_prefix('/').and_then(|rest| rest.split_once('/')) else {
            return Self::Unknown;
        };
        let Ok(number) = argument.parse::<u64>() else { return Self::Unknown };
        match name {
            "bytes" => Self::Bytes(number),
            "fresh" => Self::Fresh(number),
            "chunked" => Self::Chunked(number),
            "slow" if Duration::from_millis(number) <= MAX_SLOW => Self::Slow(Duration::from_millis(number)),
            _ => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_their_routes() {
        for (path, route) in [
            ("/", Route::Bytes(1024)),
            ("/bytes/0", Route::Bytes(0)),
            ("/fresh/16384", Route::Fresh(16384)),
            ("/bytes/10485760", Route::Bytes(10 << 20)),
            ("/chunked/5", Route::Chunked(5)),
            ("/slow/250", Route::Slow(Duration::from_millis(250))),
            ("/slow/600001", Route::Unknown),
            ("/headers", Route::Headers),
            ("/echo", Route::Echo),
            ("/sink", Route::Sink),
            ("/ws", Route::WebSocket),
            ("/sink/1", Route::Unknown),
            ("/bytes/", Route::Unknown),
            ("/bytes/-1", Route::Unknown),
            ("/bytes/99999999999999999999", Route::Unknown),
            ("/nothing", Route::Unknown),
            ("", Route::Unknown),
            ("*", Route::Unknown),
        ] {
            assert_eq!(Route::of(path), route, "{path}");
        }
    }
}
