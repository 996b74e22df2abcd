//! The PROXY protocol parser: never panics, never takes what is not there, asks for what it needs, and says the same
//! however the bytes arrive.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis_proxy_protocol::{DEFAULT_MAX_LEN, Header, Parse, Version, parse};

fuzz_target!(|bytes: &[u8]| {
    let whole = parse(bytes, DEFAULT_MAX_LEN);
    match &whole {
        Ok(Parse::Complete { header, len }) => {
            assert!(*len <= bytes.len() && *len <= DEFAULT_MAX_LEN);
            in_pieces(bytes, *len);
            comes_back(header);
        }
        Ok(Parse::Incomplete { need }) => assert!(*need > bytes.len()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});

/// Each proper beginning of a header is incomplete, and never asks for more than there is in the end.
fn in_pieces(bytes: &[u8], len: usize) {
    // long ones are looked at in steps
    let step = (len / 64).max(1);
    for part in (0..len).step_by(step) {
        match parse(&bytes[..part], DEFAULT_MAX_LEN) {
            Ok(Parse::Incomplete { need }) => {
                assert!(need > part && need <= len, "{need} of {len} at {part}")
            }
            other => panic!("{part} of {len}: {other:?}"),
        }
    }
    let alone = parse(&bytes[..len], DEFAULT_MAX_LEN);
    assert!(matches!(alone, Ok(Parse::Complete { len: same, .. }) if same == len));
}

/// What was read can be written, and is read the same again.
fn comes_back(header: &Header) {
    let _ = header.ssl();
    let mut bytes = Vec::new();
    header.encode_v2_with_checksum(&mut bytes).expect("it came in one header");
    let Ok(Parse::Complete { header: mut again, .. }) = parse(&bytes, usize::MAX) else {
        panic!("{header:?}")
    };
    again.version = header.version;
    // datagrams between unix sockets are told as streams
    assert_eq!(*header, again);
    if header.version == Version::V1 {
        bytes.clear();
        header.encode_v1(&mut bytes);
        let Ok(Parse::Complete { header: again, .. }) = parse(&bytes, 107) else { panic!("{header:?}") };
        assert_eq!(*header, again);
    }
}
