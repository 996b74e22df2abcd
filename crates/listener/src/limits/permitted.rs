//! A stream and the permit it was accepted under.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Permit;

pin_project! {
    /// A stream that holds its [`Permit`]: however it is wrapped, moved, upgraded or dropped, the permit returns
    /// when the stream is closed, and not before.
    #[derive(Debug)]
    pub struct Permitted<Io> {
        // dropped in this order: the descriptor is free before the permit returns and wakes an acceptor
        #[pin]
        io: Io,
        permit: Permit,
    }
}

impl<Io> Permitted<Io> {
    /// Ties a permit to a stream.
    pub fn new(io: Io, permit: Permit) -> Self {
        Self { io, permit }
    }

    /// The stream.
    pub fn get_ref(&self) -> &Io {
        &self.io
    }

    /// The stream.
    pub fn get_mut(&mut self) -> &mut Io {
        &mut self.io
    }

    /// The stream, pinned.
    pub fn get_pin_mut(self: Pin<&mut Self>) -> Pin<&mut Io> {
        self.project().io
    }

    /// [`Permit::count_client`] for the permit inside.
    ///
    /// # Errors
    /// The client has its share.
    pub async fn count_client(&mut self, ip: std::net::IpAddr) -> Result<(), super::ClientRefused> {
        self.permit.count_client(ip).await
    }

    /// Takes the two apart. The caller sees to it that the permit lives as long as the stream.
    pub fn into_parts(self) -> (Io, Permit) {
        (self.io, self.permit)
    }
}

impl<Io: AsyncRead> AsyncRead for Permitted<Io> {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_read(cx, buf)
    }
}

impl<Io: AsyncWrite> AsyncWrite for Permitted<Io> {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.project().io.poll_write(cx, buf)
    }

    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_flush(cx)
    }

    #[inline]
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_shutdown(cx)
    }

    #[inline]
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.project().io.poll_write_vectored(cx, bufs)
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(unix)]
impl<Io: std::os::fd::AsFd> std::os::fd::AsFd for Permitted<Io> {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.io.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::Limits;

    /// Counts the ways it was written to.
    #[derive(Default)]
    struct Vectored {
        plain: usize,
        vectored: usize,
    }

    impl AsyncWrite for Vectored {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.plain += 1;
            Poll::Ready(Ok(buf.len()))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            self.vectored += 1;
            Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()))
        }
        fn is_write_vectored(&self) -> bool {
            true
        }
    }

    #[tokio::test]
    async fn vectored_writes_stay_vectored() {
        let mut io = Permitted::new(Vectored::default(), Limits::new(1).try_acquire().unwrap());
        assert!(io.is_write_vectored());
        let bufs = [IoSlice::new(b"one"), IoSlice::new(b"two")];
        assert_eq!(io.write_vectored(&bufs).await.unwrap(), 6);
        assert_eq!((io.get_ref().plain, io.get_ref().vectored), (0, 1));
    }

    #[tokio::test]
    async fn the_permit_moves_with_the_stream_and_returns_once() {
        let limits = Limits::new(1);
        let (mut far, near) = tokio::io::duplex(16);
        let io = Permitted::new(near, limits.try_acquire().unwrap());
        // as an upgrade does: boxed, moved into a task, split, joined
        let boxed: Box<dyn AsyncReadWrite> = Box::new(io);
        let limits_inside = limits.clone();
        let task = tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(boxed);
            tokio::io::copy(&mut read, &mut write).await.unwrap();
            assert_eq!(limits_inside.open(), 1, "one half was dropped, the stream was not");
            drop(read.unsplit(write));
            assert_eq!(limits_inside.open(), 0);
        });
        far.write_all(b"ping").await.unwrap();
        let mut back = [0; 4];
        far.read_exact(&mut back).await.unwrap();
        assert_eq!((&back, limits.open()), (b"ping", 1));
        drop(far);
        task.await.unwrap();
        assert!(limits.try_acquire().is_some());
    }

    trait AsyncReadWrite: AsyncRead + AsyncWrite + Send + Unpin {}
    impl<T: AsyncRead + AsyncWrite + Send + Unpin> AsyncReadWrite for T {}

    #[test]
    fn the_stream_closes_before_the_permit_returns() {
        struct Closing(Limits, std::sync::Arc<std::sync::atomic::AtomicUsize>);
        impl Drop for Closing {
            fn drop(&mut self) {
                self.1.store(self.0.open(), std::sync::atomic::Ordering::SeqCst);
            }
        }
        let (limits, seen) = (Limits::new(1), std::sync::Arc::default());
        drop(Permitted::new(
            Closing(limits.clone(), std::sync::Arc::clone(&seen)),
            limits.try_acquire().unwrap(),
        ));
        assert_eq!(seen.load(std::sync::atomic::Ordering::SeqCst), 1);
        assert_eq!(limits.open(), 0);
    }
}
