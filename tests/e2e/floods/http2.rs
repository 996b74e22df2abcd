//! Floods of HTTP/2 frames.

use std::time::Duration;

use super::{Flood, Reads, withstands};
use crate::support::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, WINDOW_UPDATE,
    block, field, frame, indexed,
};

/// RFC 9113 section 7.
const CANCEL: [u8; 4] = [0, 0, 0, 8];

/// The preface if this is a connection's first turn, and these frames.
fn turn(turn: u32, frames: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut bytes = if turn == 0 { PREFACE.to_vec() } else { Vec::new() };
    bytes.extend(frames.into_iter().flatten());
    bytes
}

/// The streams that a client opens in a turn.
fn streams(turn: u32, each: u32) -> impl Iterator<Item = u32> {
    (turn * each..(turn + 1) * each).map(|index| index * 2 + 1)
}

fn get(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, block("GET", path, &[]))
}

fn flood(name: &'static str, sends: fn(u32, u32) -> Vec<u8>) -> Flood {
    let pace = Duration::from_millis(20);
    Flood { name, keys: "", connections: 8, sends, pace, reads: Reads::All, reason: "flood", closed: 100 }
}

/// CVE-2023-44487.
#[test]
fn rapid_resets() {
    withstands(flood("rapid resets", |_, n| {
        turn(n, streams(n, 25).flat_map(|stream| [get(stream, "/"), frame(RST_STREAM, 0, stream, CANCEL)]))
    }));
}

/// The same a moment later: each has got an endpoint's connection by then.
#[test]
fn resets_of_what_was_taken_up() {
    withstands(Flood {
        keys: "h2_max_resets = 100\n",
        connections: 4,
        closed: 10,
        ..flood("resets of what was taken up", |_, n| {
            let before = n.checked_sub(1).into_iter().flat_map(|before| streams(before, 5));
            let resets = before.map(|stream| frame(RST_STREAM, 0, stream, CANCEL));
            turn(n, resets.chain(streams(n, 5).map(|stream| get(stream, "/hang"))).collect::<Vec<_>>())
        })
    });
}

/// CVE-2024-27316 and its kind: full frames, empty ones, and such of one byte.
#[test]
fn continuations_without_end() {
    withstands(flood("CONTINUATION", |number, n| {
        let payload = match number % 3 {
            0 => field("x", "y".repeat(1000)).repeat(16),
            1 => Vec::new(),
            _ => vec![0],
        };
        let begin = (n == 0).then(|| frame(HEADERS, END_STREAM, 1, block("GET", "/", &[])));
        turn(n, begin.into_iter().chain((0..4).map(|_| frame(CONTINUATION, 0, 1, &payload))))
    }));
}

/// RFC 7541: a byte stands for a field of 4,000 bytes.
#[test]
fn heads_that_grow_when_they_are_decoded() {
    withstands(flood("HPACK", |_, n| {
        let mut head = block("GET", "/", &[]);
        head.extend(indexed("x-bomb", "y".repeat(3800)));
        // the newest entry of the dynamic table
        head.extend([0xbe; 12_000]);
        turn(n, [frame(HEADERS, END_HEADERS | END_STREAM, n * 2 + 1, head)])
    }));
}

/// RFC 9113 section 5.2: windows that stay shut, or open by a byte at a time.
#[test]
fn windows_that_stay_shut() {
    withstands(Flood {
        keys: "send_timeout = \"500ms\"\n",
        connections: 4,
        // opened bit by bit, and a tenth of the answers so long that they hold their endpoint's connection too: what is to be seen is that they are
        // held, not that hundreds of requests and connections at once are a load
        pace: Duration::from_millis(20),
        reason: "client_stopped_reading",
        closed: 8,
        ..flood("windows", |number, n| {
            let shut = (n == 0).then(|| frame(SETTINGS, 0, 0, [0, 4, 0, 0, 0, 0]));
            let held: Vec<_> = match (n, number % 2) {
                (0, _) => streams(n, 10).map(|stream| get(stream, "/bytes/60000")).collect(),
                (1..10, _) => streams(n, 10).map(|stream| get(stream, "/bytes/6000")).collect(),
                (_, _) if n % 5 != 0 => Vec::new(),
                (_, 0) => vec![frame(PING, 0, 0, [0; 8])],
                _ => streams(0, 100).map(|stream| frame(WINDOW_UPDATE, 0, stream, [0, 0, 0, 1])).collect(),
            };
            turn(n, shut.into_iter().chain(held))
        })
    });
}

/// The same with room for the first byte of each: the edge has the rest of the answer, and nobody is asked for more of it. A request now and
/// then is answered in full.
#[test]
fn windows_that_open_by_a_byte() {
    withstands(Flood {
        keys: "send_timeout = \"500ms\"\n",
        connections: 4,
        pace: Duration::from_millis(20),
        reason: "client_stopped_reading",
        closed: 4,
        ..flood("windows of a byte", |number, n| {
            let narrow = (n == 0).then(|| frame(SETTINGS, 0, 0, [0, 4, 0, 0, 0, 1]));
            let more = |stream, by| frame(WINDOW_UPDATE, 0, stream, [0, 0, 0, by]);
            let next = 199 + n * 2;
            // opened bit by bit here, too; half of the connections open the windows by another byte, again and again
            let then: Vec<_> = match (n, number % 2) {
                (0..9, _) => streams(n, 11).map(|stream| get(stream, "/bytes/4000")).collect(),
                (_, _) if n % 5 != 0 => Vec::new(),
                (_, 0) => streams(0, 99)
                    .map(|stream| more(stream, 1))
                    .chain([get(next, "/"), more(next, 9)])
                    .collect(),
                _ => vec![get(next, "/"), more(next, 9)],
            };
            turn(n, narrow.into_iter().chain(then))
        })
    });
}

#[test]
fn pings_and_settings() {
    for (name, sends) in [
        ("PING", (|_, n| turn(n, (0..100).map(|_| frame(PING, 0, 0, [7; 8])))) as fn(u32, u32) -> Vec<u8>),
        ("SETTINGS", |_, n| turn(n, (0..100).map(|_| frame(SETTINGS, 0, 0, [0, 4, 0, 0, 255, 255])))),
        ("PRIORITY", |_, n| turn(n, (0..100).map(|n| frame(2, 0, n * 2 + 1, [0, 0, 0, 0, 1])))),
    ] {
        withstands(Flood { keys: "h2_max_control_frames = 1000\n", closed: 30, ..flood(name, sends) });
    }
}

/// RUSTSEC-2026-0258: frames that end nothing and carry nothing.
#[test]
fn empty_data() {
    withstands(flood("empty DATA", |_, n| {
        let begin = (n == 0).then(|| frame(HEADERS, END_HEADERS, 1, block("POST", "/", &[])));
        turn(n, begin.into_iter().chain((0..50).map(|_| frame(DATA, 0, 1, ""))))
    }));
}

/// CVE-2025-8671: a client that makes the server reset its streams. Some of what it may do for that ends the connection at once.
#[test]
fn resets_that_a_client_provokes() {
    fn streams_with(n: u32, each: u32, wrong: fn(u32) -> Vec<u8>) -> Vec<u8> {
        let begin = |stream| frame(HEADERS, END_HEADERS, stream, block("POST", "/hang", &[]));
        turn(n, streams(n, each).flat_map(|stream| [begin(stream), wrong(stream)]))
    }
    let overflow = flood("MadeYouReset: a window too large", |_, n| {
        streams_with(n, 10, |stream| frame(WINDOW_UPDATE, 0, stream, [0x7f, 0xff, 0xff, 0xff]))
    });
    let zero = flood("MadeYouReset: a window grows by 0", |_, n| {
        streams_with(n, 10, |stream| frame(WINDOW_UPDATE, 0, stream, [0; 4]))
    });
    let behind = flood("MadeYouReset: DATA behind the end", |_, n| {
        streams_with(n, 10, |stream| {
            [frame(DATA, END_STREAM, stream, "x"), frame(DATA, 0, stream, "y")].concat()
        })
    });
    // each reset costs an endpoint's connection: fewer of them, for making hundreds in a second is a load by itself
    withstands(Flood { connections: 4, closed: 30, ..overflow });
    // a breach of the connection's own rules
    withstands(Flood { reason: "protocol_error", ..zero });
    withstands(Flood { reason: "protocol_error", ..behind });
}
