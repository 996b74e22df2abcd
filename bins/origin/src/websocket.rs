//! `/ws`: a WebSocket (RFC 6455) whose messages come back, frame by frame.

use std::io;

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use sha1::{Digest, Sha1};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::body::OriginBody;

/// The longest payload of a frame; a longer one ends the connection.
const MAX: usize = 64 * 1024;
/// RFC 6455 section 1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Agrees to a WebSocket and echoes on it, or answers 426.
pub(crate) fn upgrade(mut request: Request<Incoming>) -> Response<OriginBody> {
    let mut response = Response::new(OriginBody::full(""));
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    let (Some(upgrade), Some(accept)) = (upgrade, accept(request.headers())) else {
        *response.status_mut() = StatusCode::UPGRADE_REQUIRED;
        response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        return response;
    };
    tokio::task::spawn_local(async move {
        // a client that goes away is none of the origin's business
        if let Ok(stream) = upgrade.await {
            let _ = echo(TokioIo::new(stream)).await;
        }
    });
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    response
}

/// RFC 6455 section 4.2.2, point 5.4.
fn accept(headers: &HeaderMap) -> Option<HeaderValue> {
    let key = headers.get(header::SEC_WEBSOCKET_KEY)?;
    let digest = Sha1::new().chain_update(key.as_bytes()).chain_update(GUID).finalize();
    HeaderValue::from_str(&STANDARD.encode(digest)).ok()
}

/// Sends each frame back unmasked, until the end or one that closes.
async fn echo<S: AsyncRead + AsyncWrite + Unpin>(mut io: S) -> io::Result<()> {
    let mut buffer = vec![0; MAX + 16];
    let mut filled = 0;
    let mut out = Vec::new();
    loop {
        let mut start = 0;
        while let Some((frame, length)) = parse(&buffer[start..filled])? {
            let payload = &mut buffer[start + frame.header..start + length];
            payload.iter_mut().zip(frame.mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
            out.push(frame.first);
            match u8::try_from(payload.len()) {
                Ok(short) if short < 126 => out.push(short),
                _ => {
                    out.push(126);
                    out.extend_from_slice(&(payload.len() as u16).to_be_bytes());
                }
            }
            out.extend_from_slice(payload);
            start += length;
            if frame.first & 0x0f == 8 {
                return io.write_all(&out).await;
            }
        }
        if !out.is_empty() {
            io.write_all(&out).await?;
            out.clear();
        }
        buffer.copy_within(start..filled, 0);
        filled -= start;
        match io.read(&mut buffer[filled..]).await? {
            0 => return Ok(()),
            read => filled += read,
        }
    }
}

struct Frame {
    first: u8,
    mask: [u8; 4],
    header: usize,
}

/// RFC 6455 section 5.2: a whole masked frame at the beginning, and its length with its header.
fn parse(bytes: &[u8]) -> io::Result<Option<(Frame, usize)>> {
    let [first, second, rest @ ..] = bytes else { return Ok(None) };
    let (length, rest) = match (second & 0x7f, rest) {
        (126, [a, b, rest @ ..]) => (usize::from(u16::from_be_bytes([*a, *b])), rest),
        (126, _) => return Ok(None),
        (127, _) => return Err(io::Error::other("a frame of more than 64 KiB")),
        (short, rest) => (usize::from(short), rest),
    };
    if second & 0x80 == 0 {
        return Err(io::Error::other("a frame of a client that is not masked"));
    }
    let [a, b, c, d, payload @ ..] = rest else { return Ok(None) };
    let header = bytes.len() - payload.len();
    let frame = Frame { first: *first, mask: [*a, *b, *c, *d], header };
    Ok((payload.len() >= length).then_some((frame, header + length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc6455_1_3_the_example_of_a_key() {
        let mut headers = HeaderMap::new();
        assert!(accept(&headers).is_none());
        headers.insert(header::SEC_WEBSOCKET_KEY, HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
        assert_eq!(accept(&headers).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[tokio::test]
    async fn frames_come_back_unmasked_however_they_are_cut() {
        // "Hello" of section 5.7, a long frame, and a close
        let mut sent = vec![0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        sent.extend([0x82, 0xfe, 0x01, 0x00, 0, 0, 0, 0]);
        sent.extend([7; 256]);
        sent.extend([0x88, 0x80, 1, 2, 3, 4]);
        let mut expected = b"\x81\x05Hello\x82\x7e\x01\x00".to_vec();
        expected.extend([7; 256]);
        expected.extend([0x88, 0]);
        for step in [1, 3, 1000] {
            let (mut client, server) = tokio::io::duplex(4096);
            let talk = async {
                for piece in sent.chunks(step) {
                    client.write_all(piece).await.unwrap();
                    tokio::task::yield_now().await;
                }
                let mut got = Vec::new();
                client.read_to_end(&mut got).await.unwrap();
                got
            };
            let (ended, got) = tokio::join!(echo(server), talk);
            ended.unwrap();
            assert_eq!(got, expected, "{step}");
        }
        for bad in [&[0x81, 0x01, 0x41][..], &[0x81, 0xff, 0, 0, 0, 0, 0, 1, 0, 0]] {
            assert!(parse(bad).is_err());
        }
    }
}
