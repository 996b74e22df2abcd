//! A byte stream whose peer must keep taking what is written.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use crate::connection::FOREVER;

pin_project_lite::pin_project! {
    /// Fails a write that has waited for the peer for too long. The timer is made when a write first has to wait and
    /// touched again only when it fires: a connection whose peer keeps up never pays for it.
    #[derive(Debug)]
    pub(crate) struct Stall<Io> {
        #[pin]
        io: Io,
        timeout: Duration,
        waiting_since: Option<Instant>,
        sleep: Option<Pin<Box<Sleep>>>,
    }
}

impl<Io> Stall<Io> {
    pub(crate) fn new(io: Io, timeout: Duration) -> Self {
        Self { io, timeout: timeout.min(FOREVER), waiting_since: None, sleep: None }
    }
}

/// What a write came to, and whether its wait is over.
fn watch<T>(
    result: Poll<io::Result<T>>,
    timeout: Duration,
    waiting_since: &mut Option<Instant>,
    sleep: &mut Option<Pin<Box<Sleep>>>,
    cx: &mut Context<'_>,
) -> Poll<io::Result<T>> {
    if result.is_ready() {
        *waiting_since = None;
        return result;
    }
    let deadline = *waiting_since.get_or_insert_with(Instant::now) + timeout;
    let sleep = sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
    while sleep.as_mut().poll(cx).is_ready() {
        if Instant::now() >= deadline {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client stopped reading")));
        }
        sleep.as_mut().reset(deadline);
    }
    Poll::Pending
}

impl<Io: AsyncRead> AsyncRead for Stall<Io> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_read(cx, buf)
    }
}

impl<Io: AsyncWrite> AsyncWrite for Stall<Io> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.project();
        let result = this.io.poll_write(cx, buf);
        watch(result, *this.timeout, this.waiting_since, this.sleep, cx)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.project();
        let result = this.io.poll_flush(cx);
        watch(result, *this.timeout, this.waiting_since, this.sleep, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.project();
        let result = this.io.poll_shutdown(cx);
        watch(result, *this.timeout, this.waiting_since, this.sleep, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.project();
        let result = this.io.poll_write_vectored(cx, bufs);
        watch(result, *this.timeout, this.waiting_since, this.sleep, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_stops_reading_is_given_up() {
        let (near, _far) = tokio::io::duplex(10);
        let mut near = Stall::new(near, Duration::from_secs(5));
        let start = Instant::now();
        let error = near.write_all(&[0; 100]).await.unwrap_err();
        assert_eq!((error.kind(), start.elapsed().as_secs()), (io::ErrorKind::TimedOut, 5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_peer_is_not() {
        let (near, mut far) = tokio::io::duplex(10);
        let mut near = Stall::new(near, Duration::from_secs(5));
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
}
