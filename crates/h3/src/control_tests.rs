use proptest::prelude::*;

use super::*;
use crate::frame::put_varint;

fn frame(kind: u64, payload: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    put_varint(&mut out, kind);
    put_varint(&mut out, payload.len() as u64);
    [&out[..], payload].concat()
}

fn read(kind: Kind, role: Role, pieces: &[&[u8]]) -> Result<Vec<Command>, u32> {
    let mut reader = Reader::new(kind, role);
    let mut commands = Vec::new();
    for piece in pieces {
        let heed = &mut |command| {
            commands.push(command);
            Ok(())
        };
        match reader.feed(piece, heed) {
            Ok(()) => {}
            Err(StreamFault::Connection(code, _)) => return Err(code),
            Err(other) => panic!("{other}"),
        }
    }
    Ok(commands)
}

fn control(frames: &[Vec<u8>]) -> Result<Vec<Command>, u32> {
    read(Kind::Control, Role::Server, &[&frames.concat()])
}

fn settled(frames: &[Vec<u8>]) -> Result<Vec<Command>, u32> {
    let mut all = vec![frame(SETTINGS, &[])];
    all.extend_from_slice(frames);
    control(&all)
}

#[test]
fn what_a_client_may_say() {
    let commands = settled(&[
        frame(0x21, &[1; 200]),
        frame(MAX_PUSH_ID, &[4]),
        frame(MAX_PUSH_ID, &[4]),
        frame(PRIORITY_UPDATE_REQUEST, b"\x08u=1"),
        frame(GOAWAY, &[9]),
        frame(GOAWAY, &[3]),
    ]);
    let expected = vec![
        Command::Settings(Settings::default()),
        Command::Priority(8, Bytes::from_static(b"u=1")),
        Command::GoAway(9),
        Command::GoAway(3),
    ];
    assert_eq!(commands, Ok(expected));
}

#[test]
fn what_it_may_not() {
    assert_eq!(control(&[frame(GOAWAY, &[0])]), Err(codes::MISSING_SETTINGS));
    assert_eq!(control(&[frame(0x21, &[])]), Err(codes::MISSING_SETTINGS));
    for (frames, code) in [
        (vec![frame(SETTINGS, &[])], codes::FRAME_UNEXPECTED),
        (vec![frame(DATA, &[1])], codes::FRAME_UNEXPECTED),
        (vec![frame(HEADERS, &[0, 0])], codes::FRAME_UNEXPECTED),
        (vec![frame(PUSH_PROMISE, &[0])], codes::FRAME_UNEXPECTED),
        (vec![frame(0x02, &[])], codes::FRAME_UNEXPECTED),
        (vec![frame(0x08, &[])], codes::FRAME_UNEXPECTED),
        (vec![frame(GOAWAY, &[])], codes::FRAME_ERROR),
        (vec![frame(GOAWAY, &[0, 0])], codes::FRAME_ERROR),
        (vec![frame(GOAWAY, &[0]), frame(GOAWAY, &[4])], codes::ID_ERROR),
        (vec![frame(MAX_PUSH_ID, &[4]), frame(MAX_PUSH_ID, &[3])], codes::ID_ERROR),
        (vec![frame(MAX_PUSH_ID, &[0x40])], codes::FRAME_ERROR),
        (vec![frame(CANCEL_PUSH, &[0])], codes::ID_ERROR),
        (vec![frame(PRIORITY_UPDATE_REQUEST, b"\x09u=1")], codes::ID_ERROR),
        (vec![frame(PRIORITY_UPDATE_REQUEST, b"")], codes::FRAME_ERROR),
        (vec![frame(PRIORITY_UPDATE_PUSH, b"\x00u=1")], codes::ID_ERROR),
        (vec![frame(0x21, &[0; 20_000])], codes::EXCESSIVE_LOAD),
    ] {
        assert_eq!(settled(&frames), Err(code), "{frames:x?}");
    }
}

#[cfg(feature = "client")]
#[test]
fn what_a_server_may_not() {
    let from_server = |frames: &[u8]| read(Kind::Control, Role::Client, &[&[4, 0], frames]);
    assert_eq!(from_server(&frame(MAX_PUSH_ID, &[0])), Err(codes::FRAME_UNEXPECTED));
    assert_eq!(from_server(&frame(PRIORITY_UPDATE_REQUEST, b"\x00u=1")), Err(codes::FRAME_UNEXPECTED));
    assert_eq!(from_server(&frame(GOAWAY, &[3])), Err(codes::ID_ERROR));
    assert!(from_server(&frame(GOAWAY, &[4])).is_ok());
}

#[test]
fn streams_of_qpack() {
    let read = |kind, bytes: &[u8]| read(kind, Role::Server, &[bytes]).map(|commands| commands.len());
    assert_eq!(read(Kind::Encoder, &[0x20, 0x20]), Ok(0));
    for instruction in [&[0x21][..], &[0xc0, 0x00], &[0x41, b'a', 0], &[0x00]] {
        assert_eq!(
            read(Kind::Encoder, instruction),
            Err(codes::QPACK_ENCODER_STREAM_ERROR),
            "{instruction:x?}"
        );
    }
    // cancellations of streams 4 and 1000
    assert_eq!(read(Kind::Decoder, &[0x44, 0x7f, 0xa9, 0x07]), Ok(0));
    // an acknowledgement, and an increment
    for instruction in [&[0x84][..], &[0x01], &[0x00]] {
        assert_eq!(
            read(Kind::Decoder, instruction),
            Err(codes::QPACK_DECODER_STREAM_ERROR),
            "{instruction:x?}"
        );
    }
    assert_eq!(
        read(Kind::Decoder, &[[0x7f].as_slice(), &[0xff; 20]].concat()),
        Err(codes::QPACK_DECODER_STREAM_ERROR)
    );
}

proptest! {
    #[test]
    fn any_split_reads_like_the_whole(cuts in prop::collection::vec(0usize..120, 0..20)) {
        let stream = [
            frame(SETTINGS, &[0x33, 0x01]),
            frame(0x21, &[7; 60]),
            frame(PRIORITY_UPDATE_REQUEST, b"\x04u=2, i"),
            frame(GOAWAY, &[0x40, 0x64]),
        ]
        .concat();
        let mut cuts: Vec<_> = cuts.into_iter().filter(|cut| *cut < stream.len()).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &stream[w[0]..w[1]]).collect();
        prop_assert_eq!(
            read(Kind::Control, Role::Server, &pieces),
            read(Kind::Control, Role::Server, &[&stream])
        );
    }

    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for kind in [Kind::Control, Kind::Encoder, Kind::Decoder] {
            let _ = read(kind, Role::Server, &[&bytes]);
        }
    }
}
