//! SETTINGS (RFC 9114 section 7.2.4).

use bytes::BytesMut;

use crate::{
    codes,
    frame::{SETTINGS, StreamFault, put_varint, varint},
};

const QPACK_MAX_TABLE_CAPACITY: u64 = 0x01;
const MAX_FIELD_SECTION_SIZE: u64 = 0x06;
const QPACK_BLOCKED_STREAMS: u64 = 0x07;
/// RFC 9220 section 3.
const ENABLE_CONNECT_PROTOCOL: u64 = 0x08;
/// RFC 9297 section 2.1.1.
const H3_DATAGRAM: u64 = 0x33;

/// What one end says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    /// `None` is no bound.
    pub(crate) max_field_section_size: Option<u64>,
    pub(crate) connect_protocol: bool,
    pub(crate) datagrams: bool,
}

/// Settings that may be told apart; a peer that sends more is not looked at any further.
const SEEN_MAX: usize = 32;

impl Settings {
    /// Writes the frame.
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        let mut payload = BytesMut::with_capacity(32);
        let mut put = |id, value| {
            put_varint(&mut payload, id);
            put_varint(&mut payload, value);
        };
        // RFC 9204 section 5: both are the defaults, so they are left out: no dynamic table, no blocked stream
        if let Some(size) = self.max_field_section_size {
            put(MAX_FIELD_SECTION_SIZE, size);
        }
        if self.connect_protocol {
            put(ENABLE_CONNECT_PROTOCOL, 1);
        }
        if self.datagrams {
            put(H3_DATAGRAM, 1);
        }
        put_varint(out, SETTINGS);
        put_varint(out, payload.len() as u64);
        out.extend_from_slice(&payload);
    }

    /// Reads the payload of one.
    pub(crate) fn decode(mut payload: &[u8]) -> Result<Self, StreamFault> {
        let error = |what| StreamFault::Connection(codes::SETTINGS_ERROR, what);
        let mut settings = Self::default();
        let mut seen = [0; SEEN_MAX];
        let mut count = 0;
        while !payload.is_empty() {
            let cut = || StreamFault::Connection(codes::FRAME_ERROR, "settings that are cut off");
            let (id, used) = varint(payload).ok_or_else(cut)?;
            let (value, more) = varint(&payload[used..]).ok_or_else(cut)?;
            payload = &payload[used + more..];
            if seen[..count].contains(&id) {
                return Err(error("a setting that comes twice"));
            }
            if let Some(place) = seen.get_mut(count) {
                *place = id;
                count += 1;
            }
            match id {
                // section 7.2.4.1: they mean something in HTTP/2 alone
                0x00 | 0x02..=0x05 => return Err(error("a setting of HTTP/2")),
                MAX_FIELD_SECTION_SIZE => settings.max_field_section_size = Some(value),
                ENABLE_CONNECT_PROTOCOL => settings.connect_protocol = flag(value)?,
                H3_DATAGRAM => settings.datagrams = flag(value)?,
                // our encoder uses neither a dynamic table nor what would block
                QPACK_MAX_TABLE_CAPACITY | QPACK_BLOCKED_STREAMS => {}
                // section 7.2.4: unknown ones are ignored
                _ => {}
            }
        }
        Ok(settings)
    }
}

fn flag(value: u64) -> Result<bool, StreamFault> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(StreamFault::Connection(codes::SETTINGS_ERROR, "a flag that is neither 0 nor 1")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(result: Result<Settings, StreamFault>) -> Result<Settings, u32> {
        result.map_err(|fault| match fault {
            StreamFault::Connection(code, _) => code,
            other => panic!("{other}"),
        })
    }

    #[test]
    fn there_and_back() {
        for settings in [
            Settings::default(),
            Settings { max_field_section_size: Some(65_536), connect_protocol: true, datagrams: true },
        ] {
            let mut out = BytesMut::new();
            settings.encode(&mut out);
            assert_eq!((out[0], usize::from(out[1])), (0x04, out.len() - 2));
            assert_eq!(code(Settings::decode(&out[2..])), Ok(settings));
        }
    }

    #[test]
    fn what_a_peer_may_say() {
        let ok = |payload: &[u8]| code(Settings::decode(payload)).unwrap();
        assert_eq!(ok(&[]), Settings::default());
        // unknown ones, and a dynamic table of which nothing is used
        assert_eq!(ok(&[0x01, 0x50, 0x00, 0x07, 0x10, 0x40, 0x40, 0x05]), Settings::default());
        assert!(ok(&[0x33, 0x01]).datagrams);
        for (payload, expected) in [
            (&[0x02, 0x00][..], codes::SETTINGS_ERROR),
            (&[0x00, 0x00], codes::SETTINGS_ERROR),
            (&[0x05, 0x01], codes::SETTINGS_ERROR),
            (&[0x06, 0x01, 0x06, 0x01], codes::SETTINGS_ERROR),
            (&[0x08, 0x02], codes::SETTINGS_ERROR),
            (&[0x33, 0x02], codes::SETTINGS_ERROR),
            (&[0x06], codes::FRAME_ERROR),
            (&[0x06, 0x40], codes::FRAME_ERROR),
        ] {
            assert_eq!(code(Settings::decode(payload)), Err(expected), "{payload:x?}");
        }
    }
}
