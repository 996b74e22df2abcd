use proptest::prelude::*;

use super::*;

/// The shortest form of an integer.
fn int(value: u64) -> Vec<u8> {
    match value {
        0..0x40 => vec![value as u8],
        0x40..0x4000 => (value as u16 | 0x4000).to_be_bytes().to_vec(),
        0x4000..0x4000_0000 => (value as u32 | 0x8000_0000).to_be_bytes().to_vec(),
        _ => (value | 0xc000_0000_0000_0000).to_be_bytes().to_vec(),
    }
}

fn frame(kind: u64, payload: usize) -> Vec<u8> {
    let mut bytes = [int(kind), int(payload as u64)].concat();
    bytes.resize(bytes.len() + payload, 0xaa);
    bytes
}

/// Feeds the stream in pieces and returns what may be handed on after each, put together, and the guard.
fn run(mut guard: FrameGuard, pieces: &[&[u8]]) -> Result<(Vec<u8>, FrameGuard), Refusal> {
    let (mut out, mut held) = (Vec::new(), Vec::new());
    for piece in pieces {
        let keep = guard.feed(piece)?;
        if keep > 0 {
            out.append(&mut held);
            out.extend_from_slice(&piece[..keep]);
        }
        held.extend_from_slice(&piece[keep..]);
        // a piece that completes a frame lets everything before it go as well
        if guard.at_boundary() {
            assert!(held.is_empty(), "held back {} bytes at a frame boundary", held.len());
        }
    }
    Ok((out, guard))
}

#[test]
fn varints_of_every_length() {
    for (bytes, value) in [
        (&[0x25u8][..], 37),
        (&[0x40, 0x25], 37),
        (&[0x7b, 0xbd], 15_293),
        (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
        (&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c], 151_288_809_941_952_652),
    ] {
        assert_eq!(varint(bytes), Some((value, bytes.len())));
        assert_eq!(varint(&bytes[..bytes.len() - 1]), None);
    }
}

#[test]
fn a_long_frame_is_refused_by_its_header_alone() {
    for kind in [HEADERS, 0x21, 0x1f * 7 + 0x21, 0xf0700] {
        let header = [frame(HEADERS, 3), int(kind), int(101)].concat();
        assert_eq!(run(FrameGuard::request(100), &[&header]).unwrap_err(), Refusal::Excessive, "{kind:#x}");
        let fits = [frame(HEADERS, 3), int(kind), int(100)].concat();
        assert!(run(FrameGuard::request(100), &[&fits]).is_ok(), "{kind:#x}");
    }
}

#[test]
fn data_may_be_of_any_length() {
    let stream = [frame(HEADERS, 3), int(DATA), int((1 << 62) - 1), vec![0; 50]].concat();
    let (out, guard) = run(FrameGuard::request(100), &[&stream]).unwrap();
    assert_eq!((out.len(), guard.payload), (stream.len(), 50));
    assert!(!guard.at_boundary());
}

#[test]
fn order_of_frames_on_a_request_stream() {
    let (head, data, grease) = (frame(HEADERS, 3), frame(DATA, 2), frame(0x21, 4));
    let ok = [grease.clone(), head.clone(), data.clone(), grease.clone(), data.clone(), head.clone(), grease];
    assert!(run(FrameGuard::request(100), &[&ok.concat()]).is_ok());
    for bad in [
        vec![data.clone()],
        vec![head.clone(), head.clone(), data.clone()],
        vec![head.clone(), data, head.clone(), head.clone()],
        vec![head.clone(), frame(0x04, 0)],
        vec![frame(0x06, 3), head.clone()],
        vec![head, int(WEBTRANSPORT)],
    ] {
        assert_eq!(run(FrameGuard::request(100), &[&bad.concat()]).unwrap_err(), Refusal::Unexpected);
    }
}

#[test]
fn frames_without_payload_are_bounded() {
    for idle in [frame(DATA, 0), frame(0x21, 0), frame(0x21, 9)] {
        let mut stream = frame(HEADERS, 1);
        for _ in 0..IDLE_FRAMES_MAX {
            stream.extend_from_slice(&idle);
        }
        let mut more = stream.clone();
        more.extend_from_slice(&idle);
        assert_eq!(run(FrameGuard::request(100), &[&more]).unwrap_err(), Refusal::Excessive);
        // payload in between gives a new allowance
        stream.extend_from_slice(&frame(DATA, 1));
        stream.extend_from_slice(&idle);
        assert!(run(FrameGuard::request(100), &[&stream]).is_ok());
    }
}

#[test]
fn only_the_control_stream_has_frames_to_check() {
    let long = [int(0x04), int(1 << 30)].concat();
    let control = [int(CONTROL_STREAM), long.clone()].concat();
    assert_eq!(run(FrameGuard::unidirectional(100), &[&control]).unwrap_err(), Refusal::Excessive);
    for kind in [0x01, 0x02, 0x03, 0x54, 0x21] {
        let other = [int(kind), long.clone()].concat();
        let (out, guard) = run(FrameGuard::unidirectional(100), &[&other]).unwrap();
        assert_eq!(out, other);
        assert!(guard.at_boundary());
    }
}

#[test]
fn an_incomplete_frame_is_held_back_and_data_is_not() {
    let mut guard = FrameGuard::request(100);
    let head = frame(HEADERS, 10);
    assert_eq!(guard.feed(&head[..5]), Ok(0));
    assert!(!guard.at_boundary());
    let rest = [&head[5..], &frame(DATA, 8)[..6], &[]].concat();
    assert_eq!(guard.feed(&rest), Ok(rest.len()));
    assert_eq!((guard.heads, guard.payload), (1, 4));
    // the end of the DATA frame, and the first byte of a two-byte length
    assert_eq!(guard.feed(&[0xaa, 0xaa, 0xaa, 0xaa, HEADERS as u8, 0x40]), Ok(4));
    assert!(!guard.at_boundary());
}

/// A stream of frames that a server may read, and where to cut it.
fn streams() -> impl Strategy<Value = (Vec<u8>, Vec<usize>)> {
    let body = prop::collection::vec(
        prop_oneof![(0usize..300).prop_map(|n| frame(DATA, n)), (0usize..150).prop_map(|n| frame(0x21, n))],
        0..12,
    );
    (0usize..150, body, any::<bool>(), 0usize..4, prop::collection::vec(0usize..4000, 0..40)).prop_map(
        |(head, body, trailers, cut_off, cuts)| {
            let mut bytes = [frame(HEADERS, head), body.concat()].concat();
            if trailers {
                bytes.extend(frame(HEADERS, 20));
            }
            bytes.truncate(bytes.len() - cut_off);
            (bytes, cuts)
        },
    )
}

fn facts(result: Result<(Vec<u8>, FrameGuard), Refusal>) -> Result<(Vec<u8>, bool, u32, u64, u32), Refusal> {
    result.map(|(out, g)| (out, g.at_boundary(), g.heads, g.payload, g.empties))
}

proptest! {
    #[test]
    fn any_split_reads_like_the_whole((bytes, mut cuts) in streams()) {
        let whole = facts(run(FrameGuard::request(120), &[&bytes]));
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        prop_assert_eq!(&facts(run(FrameGuard::request(120), &single)), &whole);

        cuts.retain(|cut| *cut <= bytes.len());
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
        prop_assert_eq!(&facts(run(FrameGuard::request(120), &pieces)), &whole);
    }

    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        let whole = facts(run(FrameGuard::unidirectional(50), &[&bytes]));
        prop_assert_eq!(facts(run(FrameGuard::unidirectional(50), &single)).is_ok(), whole.is_ok());
        let whole = facts(run(FrameGuard::request(50), &[&bytes]));
        prop_assert_eq!(facts(run(FrameGuard::request(50), &single)), whole);
    }
}
