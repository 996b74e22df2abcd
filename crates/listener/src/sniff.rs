//! Telling protocols apart by the first bytes, without taking them.

use std::{future::Future, io, time::Duration};

use portcullis_conn::{Conn, FirstBytes};
use tokio::net::TcpStream;

use crate::limits::Permitted;

/// The client connection preface of HTTP/2 (RFC 9113 section 3.4).
const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The signatures of the PROXY protocol, sections 2.1 and 2.2 of its specification.
const PROXY_V1: &[u8; 6] = b"PROXY ";
const PROXY_V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest of them: more is never looked at.
const LONGEST: usize = HTTP2_PREFACE.len();
/// ContentType `handshake` (RFC 8446 section 5.1).
const TLS_HANDSHAKE: u8 = 0x16;

/// What a look at a stream found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peeked {
    /// How many bytes are there, at most the length of the buffer.
    pub len: usize,
    /// Whether no more will come: the other end closed its side.
    pub ended: bool,
}

/// A stream whose first bytes can be looked at without taking them.
pub trait Peek {
    /// Copies what has arrived into the beginning of `buf` and leaves it in the stream, as soon as that is more
    /// than the `seen` bytes already known, or no more will come. `seen` is less than the length of `buf`.
    ///
    /// Waiting must cost nothing while no new bytes come, however many old ones lie there. A stream whose
    /// look was abandoned half-way (the future dropped, or an error) may not be read any more.
    fn peek(&self, buf: &mut [u8], seen: usize) -> impl Future<Output = io::Result<Peeked>> + Send;
}

impl<Io: Peek> Peek for Permitted<Io> {
    fn peek(&self, buf: &mut [u8], seen: usize) -> impl Future<Output = io::Result<Peeked>> + Send {
        self.get_ref().peek(buf, seen)
    }
}

/// On Unix the wait is for an edge: bytes that were seen already count as "not ready", so that tokio forgets the
/// readiness they stand for, and the next segment (or the end of the stream) raises it anew.
#[cfg(unix)]
macro_rules! peek_until_more {
    ($self:ident, $buf:ident, $seen:ident) => {
        loop {
            let ended = $self.ready(tokio::io::Interest::READABLE).await?.is_read_closed();
            let peeked = $self.try_io(tokio::io::Interest::READABLE, || {
                let len = crate::sys::peek(std::os::fd::AsFd::as_fd($self), $buf)?;
                if len == 0 || len > $seen || ended {
                    Ok(Peeked { len, ended: ended || len == 0 })
                } else {
                    Err(io::ErrorKind::WouldBlock.into())
                }
            });
            match peeked {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                answered => return answered,
            }
        }
    };
}

#[cfg(unix)]
impl Peek for tokio::net::UnixStream {
    async fn peek(&self, buf: &mut [u8], seen: usize) -> io::Result<Peeked> {
        peek_until_more!(self, buf, seen)
    }
}

impl Peek for TcpStream {
    #[cfg(unix)]
    async fn peek(&self, buf: &mut [u8], seen: usize) -> io::Result<Peeked> {
        peek_until_more!(self, buf, seen)
    }

    /// Where readiness is not an edge, the look is repeated with growing rests. The end of the stream behind bytes
    /// that were seen is not noticed; the caller's deadline is.
    #[cfg(not(unix))]
    async fn peek(&self, buf: &mut [u8], seen: usize) -> io::Result<Peeked> {
        let mut rest = Duration::from_millis(1);
        loop {
            let len = TcpStream::peek(self, buf).await?;
            if len == 0 || len > seen {
                return Ok(Peeked { len, ended: len == 0 });
            }
            tokio::time::sleep(rest).await;
            rest = (rest * 2).min(Duration::from_millis(100));
        }
    }
}

/// Why a connection was not told. It is to be closed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SniffError {
    /// Too few bytes came before the deadline.
    #[error("the client did not send enough to tell its protocol within {0:?}")]
    Timeout(Duration),
    /// The other end closed without a byte.
    #[error("the client closed the connection without sending anything")]
    Closed,
    /// The stream failed.
    #[error("the connection failed while its first bytes were awaited")]
    Io(#[from] io::Error),
}

impl SniffError {
    /// Whether it was the deadline.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout(_))
    }
}

/// Looks at the first bytes of a connection, leaves them for whoever reads next, and notes in its facts what they
/// look like.
///
/// It waits for more only while what is there can still become something else: one byte tells TLS and most of
/// HTTP/1, at most 24 are looked at. It belongs into the connection's own task, and `deadline` bounds it: a client
/// that sends nothing, or less than it takes, is an error. So is one that closes without a byte; one that closes
/// after a few is told by those.
///
/// # Errors
/// See [`SniffError`]; the connection is to be dropped then.
pub async fn sniff<Io: Peek>(conn: &mut Conn<Io>, deadline: Duration) -> Result<FirstBytes, SniffError> {
    let found = tokio::time::timeout(deadline, decide(&conn.io))
        .await
        .map_err(|_| SniffError::Timeout(deadline))??;
    conn.info.first_bytes = Some(found);
    Ok(found)
}

async fn decide<Io: Peek>(io: &Io) -> Result<FirstBytes, SniffError> {
    let mut buf = [0; LONGEST];
    let mut seen = 0;
    loop {
        let peeked = io.peek(&mut buf, seen).await?;
        let bytes = &buf[..peeked.len];
        match look(bytes) {
            Look::Is(found) => return Ok(found),
            Look::More if !peeked.ended => seen = peeked.len,
            Look::More if bytes.is_empty() => return Err(SniffError::Closed),
            // the beginning of a signature that will not be finished is a token character or a line break
            Look::More => {
                return Ok(if is_token(bytes[0]) { FirstBytes::Http1 } else { FirstBytes::Unknown });
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Is(FirstBytes),
    More,
}

/// What these first bytes are, or whether more are needed. With [`LONGEST`] bytes it always decides.
fn look(bytes: &[u8]) -> Look {
    let Some(&first) = bytes.first() else { return Look::More };
    if first == TLS_HANDSHAKE {
        return Look::Is(FirstBytes::Tls);
    }
    let signatures = [
        (HTTP2_PREFACE.as_slice(), FirstBytes::Http2Preface),
        (PROXY_V1.as_slice(), FirstBytes::ProxyHeader),
        (PROXY_V2.as_slice(), FirstBytes::ProxyHeader),
    ];
    for (signature, found) in signatures {
        if bytes.starts_with(signature) {
            return Look::Is(found);
        }
        if signature.starts_with(bytes) {
            return Look::More;
        }
    }
    // a server ignores an empty line before the request line (RFC 9112 section 2.2); two at most, since that is
    // as far as the bytes are still a PROXY signature and no decision is made
    let line = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
    let line = line.strip_prefix(b"\r\n").unwrap_or(line);
    // a method is a token (RFC 9112 section 3.1)
    Look::Is(if line.first().is_some_and(|&byte| is_token(byte)) {
        FirstBytes::Http1
    } else {
        FirstBytes::Unknown
    })
}

/// `tchar` of RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests;
