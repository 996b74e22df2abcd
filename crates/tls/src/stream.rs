//! The encrypted stream.

use std::{
    io::{self, BufRead as _, IoSlice, Read, Write},
    pin::Pin,
    task::{Context, Poll, ready},
};

use portcullis_conn::Confirm;
use rustls::ServerConnection;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

/// A stream whose bytes are encrypted on the `Io` below. Writes are gathered into records; flush when the other
/// end is waited for.
///
/// Where early data was accepted the stream is handed out before its handshake is complete. It gives the early bytes
/// first; reading, writing and flushing all drive the handshake on, so a connection whose handler waits for
/// [`portcullis_conn::EarlyData::confirmed`] has only to be polled, which HTTP drivers do. Until then one task has to poll both directions, for each
/// may wait for the other; past the handshake's deadline all of them fail.
///
/// Memory: up to 64 KiB of records that are not written yet, one record being read (18 KiB), and up to
/// the early data that the configuration allows.
#[derive(Debug)]
pub struct TlsStream<Io> {
    io: Io,
    conn: ServerConnection,
    /// Where early data was accepted and the handshake is not complete.
    unconfirmed: Option<Unconfirmed>,
    /// Whether early bytes may be left to be read.
    early: bool,
    eof: bool,
    close_notified: bool,
}

#[derive(Debug)]
struct Unconfirmed {
    confirm: Confirm,
    /// When the client must have completed it.
    deadline: Pin<Box<Sleep>>,
}

impl<Io> TlsStream<Io> {
    /// A connection that has seen the client's hello.
    pub(crate) fn new(io: Io, conn: ServerConnection) -> Self {
        Self { io, conn, unconfirmed: None, early: false, eof: false, close_notified: false }
    }

    /// Says later, when the handshake is complete, that what was read early is no replay.
    pub(crate) fn begin_early(&mut self, confirm: Confirm, deadline: Instant) {
        self.early = true;
        let deadline = Box::pin(tokio::time::sleep_until(deadline));
        self.unconfirmed = Some(Unconfirmed { confirm, deadline });
    }

    /// Nobody is served for ever on a handshake that he does not complete.
    fn check_deadline(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let deadline = self.unconfirmed.as_mut().map(|unconfirmed| unconfirmed.deadline.as_mut());
        if deadline.is_some_and(|deadline| deadline.poll(cx).is_ready()) {
            let late = "the TLS handshake was not completed in time";
            return Err(io::Error::new(io::ErrorKind::TimedOut, late));
        }
        Ok(())
    }

    /// The stream below.
    pub fn get_ref(&self) -> &Io {
        &self.io
    }

    /// The stream below. Reading from it or writing to it breaks the encryption; setting socket options does not.
    pub fn get_mut(&mut self) -> &mut Io {
        &mut self.io
    }

    /// The state of the protocol.
    pub fn connection(&self) -> &ServerConnection {
        &self.conn
    }

    pub(crate) fn connection_mut(&mut self) -> &mut ServerConnection {
        &mut self.conn
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> TlsStream<Io> {
    /// Ready when the handshake is complete, with `false`, or early data was accepted, with `true`.
    pub(crate) fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        // early data may have come with the hello, and was read with it
        self.process(cx)?;
        loop {
            // what can't be written yet goes out with the first write or flush
            if self.poll_send(cx)?.is_ready() {
                let _ = Pin::new(&mut self.io).poll_flush(cx)?;
            }
            if !self.conn.is_handshaking() {
                return Poll::Ready(Ok(false));
            }
            if self.conn.early_data().is_some() {
                return Poll::Ready(Ok(true));
            }
            if ready!(self.poll_receive(cx))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Writes records until there are none left.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.conn.wants_write() {
            match self.conn.write_tls(&mut Blocking { io: &mut self.io, cx }) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once and takes in what came: the number of bytes, 0 at the end.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let read = match self.conn.read_tls(&mut Blocking { io: &mut self.io, cx }) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
            Err(error) => return Poll::Ready(Err(error)),
        };
        self.eof |= read == 0;
        self.process(cx)?;
        Poll::Ready(Ok(read))
    }

    /// Takes in what was read.
    fn process(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if let Err(error) = self.conn.process_new_packets() {
            // there may be an alert to send; the first error is the one to tell
            let _ = self.poll_send(cx);
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        if !self.conn.is_handshaking()
            && let Some(unconfirmed) = self.unconfirmed.take()
        {
            unconfirmed.confirm.confirm();
        }
        Ok(())
    }

    /// Takes the handshake on while nobody reads. What is read meanwhile is kept within the bound of early data, for
    /// nothing else comes before the handshake is complete.
    fn drive(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while self.unconfirmed.is_some() && !self.eof && self.conn.wants_read() {
            match self.poll_receive(cx)? {
                Poll::Ready(_) => {}
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    /// Early bytes, as long as there are some; 0 when there are none now.
    fn read_early(&mut self, buf: &mut ReadBuf<'_>) -> io::Result<usize> {
        let read = match self.conn.early_data() {
            Some(mut early) => early.read(buf.initialize_unfilled())?,
            None => 0,
        };
        buf.advance(read);
        // complete and drained: no more will come
        self.early = read > 0 || self.unconfirmed.is_some();
        Ok(read)
    }

    /// Encrypts with `write`, and sends; what does not fit waits for the next call.
    fn poll_write_with(
        &mut self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&mut rustls::Writer<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        self.check_deadline(cx)?;
        loop {
            // what was full may be empty after the first time
            for _ in 0..2 {
                let written = write(&mut self.conn.writer())?;
                let sent = self.poll_send(cx)?;
                if written > 0 {
                    return Poll::Ready(Ok(written));
                }
                ready!(sent);
            }
            if self.conn.is_handshaking() {
                // without half-RTT data what is written waits for the client
                self.drive(cx)?;
                if self.conn.is_handshaking() {
                    return if self.eof {
                        Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()))
                    } else {
                        Poll::Pending
                    };
                }
            }
        }
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<Io> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        this.check_deadline(cx)?;
        loop {
            if this.early && this.read_early(buf)? > 0 {
                return Poll::Ready(Ok(()));
            }
            match this.conn.reader().into_first_chunk() {
                Ok(chunk) => {
                    let taken = chunk.len().min(buf.remaining());
                    buf.put_slice(&chunk[..taken]);
                    this.conn.reader().consume(taken);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !this.eof => {}
                // rustls tells an end without close_notify by this kind, and so do we
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
            // what a writer waits to send is the writer's, who would not be woken if it were sent from here
            let is_writing = this.conn.wants_write();
            ready!(this.poll_receive(cx))?;
            if !is_writing && this.conn.wants_write() {
                // an answer of the protocol itself; a client that no longer listens may still have sent something
                let _ = this.poll_send(cx);
            }
        }
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<Io> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.get_mut().poll_write_with(cx, |writer| writer.write(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if bufs.iter().all(|buf| buf.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        self.get_mut().poll_write_with(cx, |writer| writer.write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.unconfirmed.is_some() {
            this.check_deadline(cx)?;
            // only with our own part sent the client's can be waited for
            ready!(this.poll_send(cx))?;
            this.drive(cx)?;
        }
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.unconfirmed.is_some() && !this.close_notified {
            // what was written may still wait for the client's part, and closing before it came would cut off what was sent
            this.check_deadline(cx)?;
            ready!(this.poll_send(cx))?;
            this.drive(cx)?;
            if this.unconfirmed.is_some() && !this.eof {
                return Poll::Pending;
            }
        }
        if !this.close_notified {
            this.close_notified = true;
            this.conn.send_close_notify();
        }
        ready!(this.poll_send(cx))?;
        Poll::Ready(match ready!(Pin::new(&mut this.io).poll_shutdown(cx)) {
            // the client was faster
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            result => result,
        })
    }
}

/// What rustls reads from and writes to: `Pending` is `WouldBlock`.
pub(crate) struct Blocking<'a, 'b, Io> {
    pub(crate) io: &'a mut Io,
    pub(crate) cx: &'a mut Context<'b>,
}

fn would_block<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

impl<Io: AsyncRead + Unpin> Read for Blocking<'_, '_, Io> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut buf = ReadBuf::new(buf);
        would_block(Pin::new(&mut *self.io).poll_read(self.cx, &mut buf))?;
        Ok(buf.filled().len())
    }
}

impl<Io: AsyncWrite + Unpin> Write for Blocking<'_, '_, Io> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        would_block(Pin::new(&mut *self.io).poll_write(self.cx, buf))
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        would_block(Pin::new(&mut *self.io).poll_write_vectored(self.cx, bufs))
    }

    fn flush(&mut self) -> io::Result<()> {
        would_block(Pin::new(&mut *self.io).poll_flush(self.cx))
    }
}
