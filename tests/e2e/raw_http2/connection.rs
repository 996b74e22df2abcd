//! Frames that break the connection's own rules (RFC 9113 sections 4 to 6, RFC 7541).

use super::{Case, Want, case, check, headers, read};
use crate::support::frames::{
    self, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PADDED, PING, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, block, field, frame,
};

fn get() -> Vec<u8> {
    block("GET", "/x", &[])
}

fn well_formed() -> Vec<Case> {
    let block = get();
    let (first, rest) = block.split_at(7);
    let post = frames::block("POST", "/x", &[]);
    vec![
        read(
            "a block over two frames",
            [frame(HEADERS, END_STREAM, 1, first), frame(CONTINUATION, END_HEADERS, 1, rest)].concat(),
            "GET /x",
            "",
        ),
        read(
            "an empty CONTINUATION",
            [
                frame(HEADERS, END_STREAM, 1, first),
                frame(CONTINUATION, 0, 1, ""),
                frame(CONTINUATION, END_HEADERS, 1, rest),
            ]
            .concat(),
            "GET /x",
            "",
        ),
        read(
            "padding",
            [
                frame(HEADERS, END_HEADERS | PADDED, 1, [&[3][..], &post, &[0; 3]].concat()),
                frame(DATA, END_STREAM | PADDED, 1, b"\x05abc\0\0\0\0\0"),
            ]
            .concat(),
            "POST /x",
            "abc",
        ),
        read(
            "a frame of an unknown type",
            [frame(0xee, 0xff, 1, "what"), headers(get())].concat(),
            "GET /x",
            "",
        ),
        read(
            "priority in HEADERS",
            frame(HEADERS, END_HEADERS | END_STREAM | 0x20, 1, [&[0, 0, 0, 0, 15][..], &get()].concat()),
            "GET /x",
            "",
        ),
        read(
            "an unknown setting",
            [frame(SETTINGS, 0, 0, [0xff, 0xff, 0, 0, 0, 1]), headers(get())].concat(),
            "GET /x",
            "",
        ),
    ]
}

fn framing() -> Vec<Case> {
    let block = get();
    let (first, rest) = block.split_at(7);
    let open = frame(HEADERS, END_STREAM, 1, first);
    let end = frame(CONTINUATION, END_HEADERS, 1, rest);
    let goaway = |name: &str, frames: &[Vec<u8>]| case(name, frames.concat(), Want::GoAway);
    let big = vec![0; 16_386];
    vec![
        goaway("CONTINUATION without HEADERS", &[frame(CONTINUATION, END_HEADERS, 1, &block)]),
        goaway("CONTINUATION of another stream", &[open.clone(), frame(CONTINUATION, END_HEADERS, 3, rest)]),
        goaway("a PING within a block", &[open.clone(), frame(PING, 0, 0, [0; 8]), end.clone()]),
        goaway("DATA within a block", &[open.clone(), frame(DATA, 0, 1, "x"), end.clone()]),
        goaway("HEADERS within a block", &[open.clone(), headers(get()), end.clone()]),
        goaway("a frame of an unknown type within a block", &[open, frame(0xee, 0, 1, "x"), end]),
        goaway("HEADERS on stream 0", &[frame(HEADERS, END_HEADERS | END_STREAM, 0, &block)]),
        goaway("HEADERS on an even stream", &[frame(HEADERS, END_HEADERS | END_STREAM, 2, &block)]),
        goaway("DATA on stream 0", &[frame(DATA, END_STREAM, 0, "x")]),
        goaway("DATA on an idle stream", &[frame(DATA, END_STREAM, 1, "x")]),
        goaway("RST_STREAM on an idle stream", &[frame(RST_STREAM, 0, 1, [0; 4])]),
        goaway("RST_STREAM of three bytes", &[frame(RST_STREAM, 0, 1, [0; 3])]),
        goaway("WINDOW_UPDATE on an idle stream", &[frame(WINDOW_UPDATE, 0, 1, [0, 0, 0, 1])]),
        goaway("WINDOW_UPDATE of 0", &[frame(WINDOW_UPDATE, 0, 0, [0; 4])]),
        goaway("a window past 2^31", &[frame(WINDOW_UPDATE, 0, 0, [0x7f, 0xff, 0xff, 0xff])]),
        goaway("PUSH_PROMISE", &[frame(5, END_HEADERS, 1, [&[0, 0, 0, 2][..], &block].concat())]),
        goaway(
            "padding longer than the frame",
            &[frame(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, [&[255][..], &block].concat())],
        ),
        goaway("padding in an empty frame", &[frame(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, "")]),
        goaway("SETTINGS of five bytes", &[frame(SETTINGS, 0, 0, [0; 5])]),
        goaway("SETTINGS on a stream", &[frame(SETTINGS, 0, 1, "")]),
        goaway("SETTINGS with ACK and a payload", &[frame(SETTINGS, 1, 0, [0; 6])]),
        goaway("a window setting past 2^31", &[frame(SETTINGS, 0, 0, [0, 4, 0xff, 0xff, 0xff, 0xff])]),
        goaway("a frame size setting below 16,384", &[frame(SETTINGS, 0, 0, [0, 5, 0, 0, 0, 1])]),
        goaway("a push setting of 2", &[frame(SETTINGS, 0, 0, [0, 2, 0, 0, 0, 2])]),
        goaway("a PING of seven bytes", &[frame(PING, 0, 0, [0; 7])]),
        goaway("a PING on a stream", &[frame(PING, 0, 1, [0; 8])]),
        goaway("a frame past the maximum", &[frame(DATA, 0, 1, &big)]),
        goaway("a SETTINGS frame past the maximum", &[frame(SETTINGS, 0, 0, &big[..16_386 / 6 * 6])]),
        goaway("GOAWAY of seven bytes", &[frame(7, 0, 0, [0; 7])]),
    ]
}

/// RFC 7541.
fn compression() -> Vec<Case> {
    let bad = |name: &str, block: &[u8]| case(name, headers([&get()[..], block].concat()), Want::GoAway);
    vec![
        bad("index 0", &[0x80]),
        bad("an index past the tables", &[0xff, 0x80, 0x01]),
        bad("an index that never ends", &[&[0xff][..], &[0x80; 20], &[1]].concat()),
        bad("a name's index past the tables", &[0x7f, 0x80, 0x01, 1, b'x']),
        bad("a string past the block", &[0, 5, b'x']),
        bad("a length that never ends", &[&[0, 0x7f][..], &[0xff; 12]].concat()),
        bad("Huffman with EOS", &[0, 0x84, 0xff, 0xff, 0xff, 0xff, 1, b'x']),
        bad("Huffman with eight bits of padding", &[0, 0x82, 0x1f, 0xff, 1, b'x']),
        bad("Huffman padded with zeros", &[0, 0x81, 0x18, 1, b'x']),
        bad("a table size past the setting", &[0x3f, 0xff, 0xff, 0x03]),
        bad("a table size after a field", &[0x20]),
        case(
            "a table size before all",
            headers([&[0x20][..], &get()].concat()),
            Want::Read { line: "GET /x", host: "a.test", body: "", with: &[], without: &[] },
        ),
        case("a truncated block", headers(get()[..get().len() - 1].to_vec()), Want::GoAway),
        case("an empty block", headers(Vec::new()), Want::Refused),
        case(
            "a field never to be indexed",
            headers([&get()[..], &[&[0x10][..], &field("x", "y")[1..]].concat()].concat()),
            Want::Read { line: "GET /x", host: "a.test", body: "", with: &["x: y"], without: &[] },
        ),
    ]
}

#[test]
fn what_the_rules_allow() {
    check(well_formed());
}

#[test]
fn frames_that_end_the_connection() {
    check(framing());
}

#[test]
fn header_compression() {
    check(compression());
}
