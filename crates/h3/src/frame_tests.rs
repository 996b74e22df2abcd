use proptest::prelude::*;

use super::*;

/// The shortest form of an integer.
fn int(value: u64) -> Vec<u8> {
    let mut out = BytesMut::new();
    put_varint(&mut out, value);
    out.to_vec()
}

fn frame(kind: u64, payload: usize) -> Vec<u8> {
    let mut bytes = [int(kind), int(payload as u64)].concat();
    bytes.resize(bytes.len() + payload, 0xaa);
    bytes
}

/// What a stream brought: heads whole, payload in a row.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    heads: Vec<Vec<u8>>,
    payload: usize,
    boundary: bool,
}

/// Feeds the stream in pieces, as a server that begins the body after the first head.
fn run(mut parser: Parser, pieces: &[&[u8]]) -> Result<Seen, u32> {
    let mut seen = Seen::default();
    for piece in pieces {
        let mut chunk = Bytes::copy_from_slice(piece);
        while !chunk.is_empty() {
            match parser.next(&mut chunk) {
                Ok(Some(Event::Headers(section))) => {
                    seen.heads.push(section.to_vec());
                    if seen.heads.len() == 1 {
                        parser.stage = Stage::Body;
                    }
                }
                Ok(Some(Event::Data(data))) => {
                    assert!(!data.is_empty());
                    seen.payload += data.len();
                }
                Ok(Some(Event::End)) => panic!("the parser does not know of ends"),
                Ok(None) => assert!(chunk.is_empty()),
                Err(StreamFault::Stream(code, _) | StreamFault::Connection(code, _)) => return Err(code),
                Err(other) => panic!("{other}"),
            }
        }
    }
    seen.boundary = parser.at_boundary();
    Ok(seen)
}

fn whole(stream: &[u8]) -> Result<Seen, u32> {
    run(Parser::new(100), &[stream])
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
        assert_eq!(varint(&int(value)), Some((value, int(value).len())));
    }
}

#[test]
fn a_long_frame_is_refused_by_its_header_alone() {
    for kind in [HEADERS, 0x21, 0x1f * 7 + 0x21, 0xf0_0700] {
        let header = [frame(HEADERS, 3), int(kind), int(101)].concat();
        assert_eq!(whole(&header), Err(codes::EXCESSIVE_LOAD), "{kind:#x}");
        let fits = [frame(HEADERS, 3), int(kind), int(100)].concat();
        assert!(!whole(&fits).unwrap().boundary, "{kind:#x}");
    }
}

#[test]
fn data_may_be_of_any_length() {
    let stream = [frame(HEADERS, 3), int(DATA), int((1 << 62) - 1), vec![0; 50]].concat();
    let seen = whole(&stream).unwrap();
    assert_eq!((seen.payload, seen.boundary), (50, false));
}

#[test]
fn order_of_frames_on_a_request_stream() {
    let (head, data, grease) = (frame(HEADERS, 3), frame(DATA, 2), frame(0x21, 4));
    let ok = [grease.clone(), head.clone(), data.clone(), grease.clone(), data.clone(), head.clone(), grease];
    let seen = whole(&ok.concat()).unwrap();
    assert_eq!((seen.heads.len(), seen.payload, seen.boundary), (2, 4, true));
    let unexpected = codes::FRAME_UNEXPECTED;
    for (bad, code) in [
        (vec![data.clone()], unexpected),
        (vec![head.clone(), head.clone(), data.clone()], unexpected),
        (vec![head.clone(), data, head.clone(), head.clone()], unexpected),
        (vec![head.clone(), frame(SETTINGS, 0)], unexpected),
        (vec![frame(0x06, 3), head.clone()], unexpected),
        (vec![head.clone(), frame(GOAWAY, 1)], unexpected),
        (vec![head.clone(), frame(PRIORITY_UPDATE_REQUEST, 1)], unexpected),
        (vec![head.clone(), frame(PUSH_PROMISE, 1)], codes::ID_ERROR),
        (vec![head, int(WEBTRANSPORT)], unexpected),
    ] {
        assert_eq!(whole(&bad.concat()), Err(code));
    }
}

#[test]
fn a_tunnel_has_nothing_but_payload() {
    let mut parser = Parser::new(100);
    parser.stage = Stage::Tunnel;
    assert_eq!(run(parser, &[&frame(DATA, 5), &frame(0x21, 3), &frame(DATA, 5)]).unwrap().payload, 10);
    let mut parser = Parser::new(100);
    parser.stage = Stage::Tunnel;
    assert_eq!(run(parser, &[&frame(HEADERS, 5)]), Err(codes::FRAME_UNEXPECTED));
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
        assert_eq!(whole(&more), Err(codes::EXCESSIVE_LOAD));
        // payload in between gives a new allowance
        stream.extend_from_slice(&frame(DATA, 1));
        stream.extend_from_slice(&idle);
        assert!(whole(&stream).is_ok());
    }
}

#[test]
fn an_incomplete_head_is_held_back_and_data_is_not() {
    let mut parser = Parser::new(100);
    let head = frame(HEADERS, 10);
    let feed = |parser: &mut Parser, bytes: &[u8]| {
        let mut chunk = Bytes::copy_from_slice(bytes);
        let event = parser.next(&mut chunk).unwrap();
        (event, chunk.len())
    };
    assert!(matches!(feed(&mut parser, &head[..5]), (None, 0)));
    assert!(!parser.at_boundary());
    let rest = [&head[5..], &frame(DATA, 8)[..6]].concat();
    let (event, left) = feed(&mut parser, &rest);
    assert!(matches!(event, Some(Event::Headers(section)) if section.len() == 10));
    parser.stage = Stage::Body;
    assert!(
        matches!(feed(&mut parser, &rest[rest.len() - left..]), (Some(Event::Data(data)), 0) if data.len() == 4)
    );
    assert!(!parser.at_boundary());
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
            bytes.truncate(bytes.len().saturating_sub(cut_off));
            (bytes, cuts)
        },
    )
}

proptest! {
    #[test]
    fn any_split_reads_like_the_whole((bytes, mut cuts) in streams()) {
        let whole = run(Parser::new(120), &[&bytes]);
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        prop_assert_eq!(&run(Parser::new(120), &single), &whole);

        cuts.retain(|cut| *cut <= bytes.len());
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
        prop_assert_eq!(&run(Parser::new(120), &pieces), &whole);
    }

    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        prop_assert_eq!(run(Parser::new(50), &single), run(Parser::new(50), &[&bytes]));
    }
}
