//! WebSocket load over plain HTTP/1.1 (RFC 6455): a slot is a connection, a request is a message of which the echo is waited for.

use std::rc::Rc;

use http::Method;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{
    h1::wire,
    io::Io,
    stats::{Failure, Outcome},
    worker::{Plan, Worker},
};

/// Of a message, when none is given.
const DEFAULT_LEN: u64 = 64;
/// The longest message: what the 16-bit length of a frame can say (RFC 6455 section 5.2).
pub(crate) const MAX_LEN: u64 = u16::MAX as u64;

/// Sends messages on one connection, and on the next when it ends, until the run is over.
pub(crate) async fn slot(worker: Rc<Worker>) {
    let frame = frame(match worker.plan.body.len {
        0 => DEFAULT_LEN,
        len => len,
    });
    let mut connection = None;
    while let Some(ticket) = worker.next().await {
        let result = message(&worker.plan, &frame, &mut connection).await;
        let failed = result.is_err();
        worker.finish(ticket, result);
        if failed {
            connection = None;
            worker.pause().await;
            worker.reconnected();
        }
    }
}

async fn message(
    plan: &Plan,
    frame: &[u8],
    connection: &mut Option<(Io, Vec<u8>)>,
) -> Result<Outcome, Failure> {
    let (io, buffer) = match connection {
        Some(connection) => connection,
        None => connection.insert(open(plan).await?),
    };
    io.write_all(frame).await.map_err(|error| Failure::new("send", error))?;
    // the echo is the frame without its mask: four bytes less
    let length = frame.len() - 4;
    while buffer.len() < length {
        let read = io.read_buf(buffer).await.map_err(|error| Failure::new("receive", error))?;
        if read == 0 {
            return Err(Failure::new("receive", "the tunnel ended in the middle"));
        }
    }
    if buffer.len() > length || buffer[0] != frame[0] || buffer[length - 1] != frame[frame.len() - 1] {
        return Err(Failure::new("protocol", "what came back is not what was sent"));
    }
    buffer.clear();
    Ok(Outcome { status: 101, bytes: length as u64 })
}

/// A binary message of `x`, in one frame, under a mask of zeros.
fn frame(len: u64) -> Vec<u8> {
    let len = usize::try_from(len.min(MAX_LEN)).unwrap_or_default();
    let mut frame = vec![0x82];
    match u8::try_from(len) {
        Ok(short) if short < 126 => frame.push(0x80 | short),
        _ => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.resize(frame.len() + len, b'x');
    frame
}

async fn open(plan: &Plan) -> Result<(Io, Vec<u8>), Failure> {
    let io = Io::connect(plan.addr, plan.tls.as_ref()).await;
    let mut io = io.map_err(|error| Failure::new("connect", error))?;
    shake_hands(plan, &mut io).await?;
    Ok((io, Vec::new()))
}

/// RFC 6455 section 4.1. The answer's key is not looked at: that is what the proxy's tests are for.
async fn shake_hands<S: AsyncRead + AsyncWrite + Unpin>(plan: &Plan, io: &mut S) -> Result<(), Failure> {
    let target = plan.uri.path_and_query().map_or("/", |target| target.as_str());
    let host = plan.host.to_str().unwrap_or("localhost");
    let request = format!(
        "GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    io.write_all(request.as_bytes()).await.map_err(|error| Failure::new("connect", error))?;
    let mut answer = Vec::new();
    loop {
        if let Some(head) = wire::head(&answer, &Method::GET)? {
            if head.status != 101 || head.len != answer.len() {
                let text = format!("status {} in place of a WebSocket", head.status);
                return Err(Failure::new("connect", text));
            }
            return Ok(());
        }
        let read = io.read_buf(&mut answer).await.map_err(|error| Failure::new("connect", error))?;
        if read == 0 || answer.len() > 64 * 1024 {
            return Err(Failure::new("connect", "no answer to the handshake"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_both_lengths() {
        assert_eq!(frame(3), b"\x82\x83\0\0\0\0xxx");
        assert_eq!(frame(125).len(), 2 + 4 + 125);
        let long = frame(126);
        assert_eq!((&long[..4], long.len()), (&b"\x82\xfe\0\x7e"[..], 4 + 4 + 126));
        assert_eq!(frame(1 << 20).len(), 4 + 4 + 65_535);
    }
}
