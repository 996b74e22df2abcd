//! The byte stream under HTTP: its peer must keep taking what is written, and is heard out before it is closed.

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep, sleep_until},
};

use crate::{CloseReason, HttpOptions, connection::FOREVER, frames::FrameGuard, state::ConnState};

/// Bytes that are thrown away at most before a close.
const MAX_LINGER: usize = 16 << 20;

pin_project_lite::pin_project! {
    /// Three things beyond the stream inside:
    ///
    /// A write that has waited for the peer for too long fails, and so does one whose peer takes less than a minimum over
    /// the time that writes had to wait. The timer is made when a write first has to wait and touched again only when it
    /// fires: a connection whose peer keeps up never pays for it.
    ///
    /// A close is no reset: what the peer still sends is read and thrown away for a moment, since a socket that is closed
    /// with bytes unread resets the connection, and the reset takes with it the last answer (RFC 9112 section 9.6).
    ///
    /// The frames of HTTP/2 are counted.
    ///
    /// Interim responses over HTTP/1 are written at a flush, which is when all that hyper wrote before is gone.
    pub(crate) struct Wire<Io> {
        #[pin]
        io: Io,
        state: Arc<ConnState>,
        frames: Option<FrameGuard>,
        // what was read while nobody was there to take it
        ahead: Bytes,
        failed: Option<io::Error>,
        pace: Pace,
        linger: Duration,
        closing: Closing,
        // an interim response that is being written
        interim: Bytes,
    }
}

enum Closing {
    Not,
    Lingering { sleep: Pin<Box<Sleep>>, left: usize },
    Closed,
}

impl<Io> Wire<Io> {
    pub(crate) fn new(
        io: Io,
        options: &HttpOptions,
        state: Arc<ConnState>,
        frames: Option<FrameGuard>,
    ) -> Self {
        Self {
            io,
            state,
            frames,
            ahead: Bytes::new(),
            failed: None,
            pace: Pace::new(options.send_timeout, options.min_send_rate),
            linger: options.linger.min(FOREVER),
            closing: Closing::Not,
            interim: Bytes::new(),
        }
    }
}

impl<Io: AsyncRead + Unpin> Wire<Io> {
    /// These were read, and are to be read again before all others.
    pub(crate) fn put_back(&mut self, bytes: Bytes) {
        self.ahead = bytes;
    }

    /// Whether there is something to read: bytes, the end, or an error. It is kept for the next read.
    pub(crate) fn poll_begins(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.ahead.is_empty() {
            // a small request's head; of a larger one the rest comes with the next read
            let mut scratch = [MaybeUninit::<u8>::uninit(); 512];
            let mut buf = ReadBuf::uninit(&mut scratch);
            match ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf)) {
                Ok(()) => self.ahead = Bytes::copy_from_slice(buf.filled()),
                Err(error) => self.failed = Some(error),
            }
        }
        Poll::Ready(())
    }
}

/// How a peer takes what is written.
struct Pace {
    timeout: Duration,
    min_rate: u32,
    waiting_since: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
    /// Time that writes waited, and bytes that were taken, since the last look.
    waited: Duration,
    taken: u64,
}

impl Pace {
    fn new(timeout: Duration, min_rate: u32) -> Self {
        Self {
            timeout: timeout.min(FOREVER),
            min_rate,
            waiting_since: None,
            sleep: None,
            waited: Duration::ZERO,
            taken: 0,
        }
    }

    /// What a write came to, and whether its wait is over.
    fn watch<T>(
        &mut self,
        result: Poll<io::Result<T>>,
        taken: impl Fn(&T) -> usize,
        state: &ConnState,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(Ok(value)) = &result {
            self.taken += taken(value) as u64;
            if let Some(since) = self.waiting_since.take() {
                self.waited += since.elapsed();
                if self.waited >= self.timeout {
                    let least = self.waited.as_millis().saturating_mul(self.min_rate.into()) / 1000;
                    if u128::from(self.taken) < least {
                        return Poll::Ready(Err(stopped(state)));
                    }
                    (self.waited, self.taken) = (Duration::ZERO, 0);
                }
            }
            return result;
        }
        if result.is_ready() {
            return result;
        }
        let deadline = *self.waiting_since.get_or_insert_with(Instant::now) + self.timeout;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        while sleep.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(Err(stopped(state)));
            }
            sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

fn stopped(state: &ConnState) -> io::Error {
    if !state.is_upgraded() {
        state.close_for(CloseReason::ClientStoppedReading);
    }
    io::Error::new(io::ErrorKind::TimedOut, "the client stopped reading")
}

impl<Io: AsyncRead> AsyncRead for Wire<Io> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.project();
        let before = buf.filled().len();
        if !this.ahead.is_empty() {
            buf.put_slice(&this.ahead.split_to(this.ahead.len().min(buf.remaining())));
            this.state.on_read();
            return Poll::Ready(Ok(()));
        }
        if let Some(error) = this.failed.take() {
            return Poll::Ready(Err(error));
        }
        ready!(this.io.poll_read(cx, buf))?;
        let Some(frames) = this.frames else {
            if buf.filled().len() > before {
                this.state.on_read();
            }
            return Poll::Ready(Ok(()));
        };
        if !frames.allows(&buf.filled()[before..]) {
            this.state.close_for(CloseReason::Flood);
            let kind = io::ErrorKind::InvalidData;
            return Poll::Ready(Err(io::Error::new(kind, "too many frames of a kind that costs")));
        }
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncRead + AsyncWrite> Wire<Io> {
    /// What closing comes to once the peer knows of it: at once, or after a while of reading.
    fn poll_linger(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut this = self.project();
        let mut scratch = [MaybeUninit::<u8>::uninit(); 8 << 10];
        loop {
            let Closing::Lingering { sleep, left } = this.closing else { return Poll::Ready(Ok(())) };
            let mut buf = ReadBuf::uninit(&mut scratch);
            let over = match this.io.as_mut().poll_read(cx, &mut buf) {
                Poll::Pending => {
                    ready!(sleep.as_mut().poll(cx));
                    true
                }
                Poll::Ready(Ok(())) if buf.filled().len() < *left => {
                    *left -= buf.filled().len();
                    buf.filled().is_empty()
                }
                Poll::Ready(_) => true,
            };
            if over {
                *this.closing = Closing::Closed;
            }
        }
    }

    /// Whether the peer is likely to be sending: it was not read to the end of what it had begun, or there is
    /// something to read right now.
    fn should_linger(self: Pin<&mut Self>, cx: &mut Context<'_>) -> bool {
        let this = self.project();
        if this.linger.is_zero() || this.state.is_upgraded() {
            return false;
        }
        if this.state.may_send_more() {
            return true;
        }
        let mut byte = [0];
        let mut buf = ReadBuf::new(&mut byte);
        matches!(this.io.poll_read(cx, &mut buf), Poll::Ready(Ok(())) if !buf.filled().is_empty())
    }
}

impl<Io: AsyncWrite> Wire<Io> {
    /// Writes the rest of what was begun of interim responses.
    fn poll_interim(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut this = self.project();
        while !this.interim.is_empty() {
            let result = this.io.as_mut().poll_write(cx, this.interim);
            match ready!(this.pace.watch(result, |written| *written, this.state, cx))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => this.interim.advance(written),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Writes all interim responses that wait. The response that waits for it goes on with the next turn.
    #[cold]
    fn poll_all_interim(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.as_mut().poll_interim(cx))?;
            let this = self.as_mut().project();
            *this.interim = Bytes::from(this.state.interim.take());
            if this.interim.is_empty() && this.state.interim.written() {
                cx.waker().wake_by_ref();
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<Io: AsyncRead + AsyncWrite> AsyncWrite for Wire<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if !self.interim.is_empty() {
            ready!(self.as_mut().poll_interim(cx))?;
        }
        let this = self.project();
        let result = this.io.poll_write(cx, buf);
        match this.frames {
            Some(frames) => frames.on_write(&result, &[io::IoSlice::new(buf)]),
            None => this.state.on_write(),
        }
        this.pace.watch(result, |written| *written, this.state, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.state.interim.any() {
            ready!(self.as_mut().poll_all_interim(cx))?;
        }
        let this = self.project();
        let result = this.io.poll_flush(cx);
        if matches!(result, Poll::Ready(Ok(()))) {
            this.state.on_flushed();
        }
        this.pace.watch(result, |()| 0, this.state, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Closing::Not = self.closing {
            let this = self.as_mut().project();
            let result = this.io.poll_shutdown(cx);
            ready!(this.pace.watch(result, |()| 0, this.state, cx))?;
            let linger = self.as_mut().should_linger(cx);
            let this = self.as_mut().project();
            *this.closing = match linger {
                true => Closing::Lingering { sleep: Box::pin(sleep(*this.linger)), left: MAX_LINGER },
                false => Closing::Closed,
            };
        }
        self.poll_linger(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if !self.interim.is_empty() {
            ready!(self.as_mut().poll_interim(cx))?;
        }
        let this = self.project();
        let result = this.io.poll_write_vectored(cx, bufs);
        match this.frames {
            Some(frames) => frames.on_write(&result, bufs),
            None => this.state.on_write(),
        }
        this.pace.watch(result, |written| *written, this.state, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use portcullis_conn::InterimSink as _;

    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    fn wire(io: DuplexStream) -> Wire<DuplexStream> {
        let options = HttpOptions::default().with_send_timeout(Duration::from_secs(5)).with_min_send_rate(2);
        let state = Arc::new(ConnState::new(&options));
        Wire::new(io, &options, state, None)
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_stops_reading_is_given_up() {
        let (near, _far) = tokio::io::duplex(10);
        let mut near = wire(near);
        let start = Instant::now();
        let error = near.write_all(&[0; 100]).await.unwrap_err();
        assert_eq!((error.kind(), start.elapsed().as_secs()), (io::ErrorKind::TimedOut, 5));
        assert_eq!(near.state.reason(), Some(CloseReason::ClientStoppedReading));
    }

    #[tokio::test]
    async fn interim_responses_stand_between_writes_and_are_never_torn() {
        let (near, mut far) = tokio::io::duplex(7);
        let near = wire(near);
        let state = Arc::clone(&near.state);
        let write = async move {
            let mut near = near;
            for request in 1..=3 {
                state.interim.open(request);
                let said = |status| state.send(request, status, &mut [("a", &b"b"[..])].into_iter());
                assert!(said(103));
                near.flush().await.unwrap();
                assert!(said(102) && said(103));
                // hyper's buffer is not empty until it flushes
                near.write_all(b"before ").await.unwrap();
                near.flush().await.unwrap();
                state.interim.close();
                assert!(!said(103) && !state.interim.any());
                near.write_all(b"response ").await.unwrap();
                near.flush().await.unwrap();
            }
        };
        let mut text = String::new();
        let (_, read) = tokio::join!(write, far.read_to_string(&mut text));
        read.unwrap();
        let hints = "HTTP/1.1 103 Early Hints\r\na: b\r\n\r\n";
        let one = format!("{hints}before HTTP/1.1 102 Processing\r\na: b\r\n\r\n{hints}response ");
        assert_eq!(text, one.repeat(3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_peer_is_not() {
        let (near, mut far) = tokio::io::duplex(10);
        let mut near = wire(near);
        let read = async {
            let mut buf = [0; 10];
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_secs(4)).await;
                far.read_exact(&mut buf).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(near.write_all(&[0; 100]), read);
        written.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_takes_a_byte_now_and_then_is_given_up_too() {
        let (near, mut far) = tokio::io::duplex(10);
        let mut near = wire(near);
        let start = Instant::now();
        let write = async { near.write_all(&[0; 100]).await.unwrap_err() };
        let read = async {
            loop {
                tokio::time::sleep(Duration::from_secs(4)).await;
                far.read_u8().await.unwrap();
            }
        };
        let error = tokio::select! { error = write => error, () = read => unreachable!("it reads for ever") };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_close_hears_out_who_still_sends_and_keeps_nobody_waiting_else() {
        let start = Instant::now();
        let (near, far) = tokio::io::duplex(10);
        wire(near).shutdown().await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO, "nothing to hear");
        drop(far);
        let (near, mut far) = tokio::io::duplex(10);
        far.write_all(b"more").await.unwrap();
        let (closed, sent) = tokio::join!(
            async {
                let mut near = wire(near);
                let closed = near.shutdown().await;
                drop(near);
                closed
            },
            async {
                far.write_all(&[0; 1000]).await.unwrap();
                far.read_to_end(&mut Vec::new()).await
            }
        );
        assert!(closed.is_ok() && sent.is_ok());
        assert_eq!(start.elapsed(), HttpOptions::default().linger, "no longer than that");
    }
}
