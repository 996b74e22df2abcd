//! The three things that an accept loop needs, each alone, for any stream of accepted sockets.

use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_core::Stream;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{
    error::{ErrorClass, advice, classify},
    recovery::Recovery,
};
use crate::limits::{Limits, ListenerLimits, Permitted, Reserve, Seat};

/// Adds what an accept loop needs to a stream of accepted sockets, as `tokio_stream`'s `TcpListenerStream` and its like
/// are: for a program that has its own listener and wants one part or the other. [`crate::Incoming`] has all of it, and
/// limits each client besides.
///
/// In the order that works: warnings see every error, errors are handled behind them, and the permit is taken before
/// any of it is asked for a connection.
///
/// ```
/// use std::time::Duration;
/// use portcullis_listener::{IncomingExt, Limits};
/// # fn listen() -> impl futures_core::Stream<Item = std::io::Result<tokio::net::TcpStream>> + Unpin {
/// #     futures_util::stream::pending()
/// # }
/// use futures_util::StreamExt;
///
/// # async fn run() {
/// let limits = Limits::new(1000);
/// let mut incoming = listen()
///     .log_warnings("web")
///     .handle_errors(Duration::from_millis(500))
///     .backpressure(&limits);
/// while let Some(io) = incoming.next().await {
///     // the permit is inside of `io`: dropping it lets the next connection in
///     tokio::spawn(async move { drop(io) });
/// }
/// # }
/// ```
pub trait IncomingExt: Stream + Sized {
    /// Logs a shortage once when it begins, as a warning with a hint for a person, and once when a connection has come
    /// again; passes everything on. `name` is that of the listener in the log. A shortage that shows again within a second
    /// is the same one.
    fn log_warnings<S>(self, name: impl Into<String>) -> LogWarnings<Self>
    where
        Self: Stream<Item = io::Result<S>>,
    {
        LogWarnings { stream: self, name: name.into(), episode: None }
    }

    /// Turns a stream of results into one of sockets: an error of one connection is skipped at once, a shortage is
    /// followed by a pause, and only an error that says that there is nothing to accept from ends the stream
    /// ([`crate::classify`]). 500 ms is a good pause; at least 1 ms.
    fn handle_errors<S>(self, pause: Duration) -> HandleErrors<Self>
    where
        Self: Stream<Item = io::Result<S>>,
    {
        // nobody else holds these: they never wake it early, and never hold it back
        self.handle_errors_with(pause, Limits::new(usize::MAX))
    }

    /// The same, with a pause that ends early when a connection under these limits closes. They count the errors.
    fn handle_errors_with<S>(self, pause: Duration, limits: impl Into<ListenerLimits>) -> HandleErrors<Self>
    where
        Self: Stream<Item = io::Result<S>>,
    {
        let seat = Seat::new(&limits.into());
        let recovery = Recovery::silent(seat.own().clone(), pause);
        HandleErrors { stream: self, seat, recovery, ended: false }
    }

    /// Asks for the next socket only while the limits have a permit, and ties it to the socket. The stream ends after
    /// [`Limits::close`]. At a limit sockets wait in the kernel's queue, whatever [`crate::OverLimit`] says, and clients
    /// are not counted: nothing is known of them here.
    fn backpressure(self, limits: impl Into<ListenerLimits>) -> Backpressure<Self> {
        Backpressure { stream: self, seat: Seat::new(&limits.into()) }
    }
}

impl<T: Stream> IncomingExt for T {}

/// A shortage that was told.
#[derive(Clone, Copy, Debug)]
struct Told {
    since: Instant,
    last: Instant,
    errors: u64,
    /// A connection came since the last error: it may be over.
    works: bool,
}

/// How long it must work again for a shortage to be over.
const CALM: Duration = Duration::from_secs(1);

pin_project! {
    /// The stream of [`IncomingExt::log_warnings`].
    pub struct LogWarnings<St> {
        #[pin]
        stream: St,
        name: String,
        episode: Option<Told>,
    }
}

impl<S, St: Stream<Item = io::Result<S>>> Stream for LogWarnings<St> {
    type Item = io::Result<S>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.project();
        let item = ready!(this.stream.poll_next(cx));
        match &item {
            Some(Ok(_)) => {
                if let Some(told) = this.episode {
                    if told.works && told.last.elapsed() >= CALM {
                        let lasted = told.last - told.since;
                        info!(errors = told.errors, ?lasted, listener = %this.name, "accepting connections again");
                        *this.episode = None;
                    } else {
                        told.works = true;
                    }
                }
            }
            Some(Err(error)) if classify(error) != ErrorClass::Connection => {
                let now = Instant::now();
                match this.episode {
                    Some(told) => {
                        told.last = now;
                        told.errors += 1;
                        told.works = false;
                    }
                    None => {
                        let hint = advice(error, None);
                        warn!(%error, listener = %this.name, %hint, "accepting connections fails");
                        *this.episode = Some(Told { since: now, last: now, errors: 1, works: false });
                    }
                }
            }
            _ => {}
        }
        Poll::Ready(item)
    }
}

pin_project! {
    /// The stream of [`IncomingExt::handle_errors`].
    pub struct HandleErrors<St> {
        #[pin]
        stream: St,
        seat: Seat,
        recovery: Recovery,
        ended: bool,
    }
}

impl<S, St: Stream<Item = io::Result<S>>> Stream for HandleErrors<St> {
    type Item = S;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S>> {
        let mut this = self.project();
        this.seat.watch(cx);
        loop {
            if *this.ended {
                return Poll::Ready(None);
            }
            ready!(this.recovery.poll(cx, this.seat));
            match ready!(this.stream.as_mut().poll_next(cx)) {
                Some(Ok(socket)) => {
                    this.recovery.worked();
                    return Poll::Ready(Some(socket));
                }
                Some(Err(error)) => *this.ended = !this.recovery.failed(&error, this.seat),
                None => *this.ended = true,
            }
        }
    }
}

pin_project! {
    /// The stream of [`IncomingExt::backpressure`].
    pub struct Backpressure<St> {
        #[pin]
        stream: St,
        seat: Seat,
    }
}

impl<St: Stream> Stream for Backpressure<St> {
    type Item = Permitted<St::Item>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.project();
        this.seat.watch(cx);
        let reservation = match this.seat.reserve_or_wait() {
            Reserve::Got(reservation) => reservation,
            Reserve::Wait | Reserve::Refuse(_) => return Poll::Pending,
            Reserve::Closed => return Poll::Ready(None),
        };
        let Some(socket) = ready!(this.stream.poll_next(cx)) else { return Poll::Ready(None) };
        let permit = reservation.open();
        this.seat.own().is_not_full();
        this.seat.own().counters.accepted();
        Poll::Ready(Some(Permitted::new(socket, permit)))
    }
}

impl<St: fmt::Debug> fmt::Debug for LogWarnings<St> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogWarnings").field(&self.stream).finish()
    }
}

impl<St: fmt::Debug> fmt::Debug for HandleErrors<St> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HandleErrors").field(&self.stream).finish()
    }
}

impl<St: fmt::Debug> fmt::Debug for Backpressure<St> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Backpressure").field(&self.stream).finish()
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests;
