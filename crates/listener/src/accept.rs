//! The accept loop.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_core::Stream;
use portcullis_conn::{Conn, ConnInfo, Transport};
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, Sleep},
};
use tracing::{debug, info, warn};

use crate::{
    limits::{Inner, Limits, Permit, Permitted, Reason, Seat},
    socket::TcpOptions,
};

mod error;
mod options;

pub use self::{
    error::{ErrorClass, classify, error_hint},
    options::AcceptOptions,
};

/// Errors of single connections in a row, without one that succeeds, after which the loop draws breath: enough for
/// any real burst, and a firewall that forbids everything can't make it spin.
const MOST_IN_A_ROW: u32 = 128;
const BREATH: Duration = Duration::from_millis(10);
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);

/// Where connections come from. Private: the tests put errors in its place.
pub(crate) trait Source {
    type Io;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Self::Io, SocketAddr)>>;

    /// Names the listener in logs.
    fn name(&self) -> SocketAddr;
}

/// Accepted connections, as a stream that no accept error ends.
///
/// - A permit of the [`Limits`] is taken before `accept` is called, and lives inside the connection. At the limit
///   nothing is accepted, and clients wait in the kernel's queue.
/// - An error of one connection is counted and skipped ([`crate::classify`] has the table).
/// - A shortage pauses accepting for [`AcceptOptions::pause`], or until a connection closes; the listener stays
///   open. Each episode is logged once when it begins (a warning with a hint for a person) and once when it is over.
///   Listeners that share one [`Limits`] share the episode.
/// - After [`Limits::close`] the stream ends.
///
/// Dropping it closes the listening socket. It needs a tokio runtime with time enabled.
pub struct Incoming {
    accepting: AcceptLoop<TcpSource>,
}

impl Incoming {
    /// Accepts from `listener`, under `limits`.
    ///
    /// `tcp` gives what is set on accepted connections: `nodelay` and `keepalive`. On Linux they are set once, on
    /// the listener, whose connections inherit them.
    pub fn new(listener: TcpListener, limits: Limits, options: AcceptOptions, tcp: &TcpOptions) -> Self {
        let source = TcpSource::new(listener, tcp);
        Self { accepting: AcceptLoop::new(source, limits, options) }
    }

    /// The address listened on.
    pub fn local_addr(&self) -> SocketAddr {
        self.accepting.source.local
    }
}

impl Stream for Incoming {
    type Item = Conn<Permitted<TcpStream>>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let Some((io, peer, permit)) = ready!(this.accepting.poll(cx)) else { return Poll::Ready(None) };
        let local = this.accepting.source.local_of(&io);
        let info = ConnInfo::new(Transport::Tcp, peer, local);
        Poll::Ready(Some(Conn::new(Permitted::new(io, permit), info)))
    }
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming").field("local_addr", &self.local_addr()).finish_non_exhaustive()
    }
}

struct TcpSource {
    listener: TcpListener,
    local: SocketAddr,
    /// What has to be set on each connection, where the listener could not pass it on.
    each: Option<TcpOptions>,
}

impl TcpSource {
    fn new(listener: TcpListener, tcp: &TcpOptions) -> Self {
        // an address is only missing where the socket is no longer one
        let local = listener.local_addr().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)));
        let inherited = cfg!(any(target_os = "linux", target_os = "android"))
            && apply(&SockRef::from(&listener), tcp).is_ok();
        Self { listener, local, each: (!inherited).then(|| tcp.clone()) }
    }

    /// Our address on a connection. Only a listener on every address has to ask.
    fn local_of(&self, io: &TcpStream) -> SocketAddr {
        if self.local.ip().is_unspecified() { io.local_addr().unwrap_or(self.local) } else { self.local }
    }
}

impl Source for TcpSource {
    type Io = TcpStream;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        let (io, peer) = ready!(self.listener.poll_accept(cx))?;
        if let Some(tcp) = &self.each
            && let Err(error) = apply(&SockRef::from(&io), tcp)
        {
            // the connection works without: it may also be gone already
            debug!(%error, %peer, "could not set the options of an accepted connection");
        }
        Poll::Ready(Ok((io, peer)))
    }

    fn name(&self) -> SocketAddr {
        self.local
    }
}

fn apply(socket: &SockRef<'_>, tcp: &TcpOptions) -> io::Result<()> {
    socket.set_tcp_nodelay(tcp.nodelay)?;
    if let Some(idle) = tcp.keepalive {
        socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(idle))?;
    }
    Ok(())
}

/// What the loop does beside accepting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    No,
    /// Not accepting since then, because of an error.
    Paused(Instant),
    /// Accepting again; the timer ends the episode if no further shortage shows.
    Watching,
}

struct AcceptLoop<S> {
    source: S,
    options: AcceptOptions,
    rest: Rest,
    /// Made at the first error and reused.
    timer: Option<Pin<Box<Sleep>>>,
    errors_in_a_row: u32,
    episode: Membership,
    seat: Seat,
}

impl<S: Source> AcceptLoop<S> {
    fn new(source: S, limits: Limits, mut options: AcceptOptions) -> Self {
        options.pause = options.pause.max(SHORTEST_PAUSE);
        let episode = Membership { inner: Arc::clone(&limits.inner), joined: false, name: source.name() };
        Self {
            source,
            options,
            rest: Rest::No,
            timer: None,
            errors_in_a_row: 0,
            episode,
            seat: Seat::new(limits),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<(S::Io, SocketAddr, Permit)>> {
        self.seat.watch(cx);
        loop {
            if self.rest != Rest::No {
                ready!(self.poll_rest(cx));
            }
            let Some(reservation) = self.seat.reserve() else {
                return if self.seat.inner().is_closed() { Poll::Ready(None) } else { Poll::Pending };
            };
            match self.source.poll_accept(cx) {
                Poll::Ready(Ok((io, peer))) => {
                    let permit = reservation.open();
                    self.seat.inner().count_accepted();
                    self.errors_in_a_row = 0;
                    return Poll::Ready(Some((io, peer, permit)));
                }
                Poll::Ready(Err(error)) => {
                    drop(reservation);
                    self.failed(&error);
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Pending while paused.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.seat.inner().is_closed() {
            return Poll::Ready(());
        }
        let elapsed = self.timer.as_mut().is_none_or(|timer| timer.as_mut().poll(cx).is_ready());
        match self.rest {
            Rest::No => {}
            Rest::Paused(since) => {
                if !elapsed && !self.seat.called() {
                    return Poll::Pending;
                }
                self.seat.leave();
                let now = Instant::now();
                self.seat.inner().count_pause(now - since);
                self.rest = Rest::No;
                if self.episode.joined {
                    self.seat.inner().shortage_lasted_until(now);
                    self.rest = Rest::Watching;
                    self.set_timer(self.options.pause);
                    // polled once more, so that the new time is registered with this task
                    return self.poll_rest(cx);
                }
            }
            Rest::Watching => {
                if elapsed {
                    self.rest = Rest::No;
                    self.episode.leave();
                }
            }
        }
        Poll::Ready(())
    }

    fn failed(&mut self, error: &io::Error) {
        let class = classify(error);
        self.seat.inner().count_error(class);
        match class {
            ErrorClass::Connection => {
                debug!(%error, listener = %self.episode.name, "a connection was gone before it was accepted");
                self.errors_in_a_row += 1;
                if self.errors_in_a_row < MOST_IN_A_ROW {
                    return;
                }
                self.errors_in_a_row = 0;
                self.pause(BREATH);
            }
            ErrorClass::Shortage => {
                self.episode.error(error, self.options.pause);
                self.pause(self.options.pause);
                self.seat.wait(Reason::Room);
            }
        }
    }

    fn pause(&mut self, pause: Duration) {
        self.rest = Rest::Paused(Instant::now());
        self.set_timer(pause);
    }

    fn set_timer(&mut self, after: Duration) {
        match &mut self.timer {
            Some(timer) => {
                let now = Instant::now();
                timer.as_mut().reset(now.checked_add(after).unwrap_or(now + Duration::from_secs(86_400)));
            }
            None => self.timer = Some(Box::pin(tokio::time::sleep(after))),
        }
    }
}

/// This listener's part in the shortage that all listeners of one [`Limits`] share.
struct Membership {
    inner: Arc<Inner>,
    joined: bool,
    name: SocketAddr,
}

impl Membership {
    fn error(&mut self, error: &io::Error, pause: Duration) {
        let begins = self.inner.shortage_error(!self.joined);
        self.joined = true;
        if begins {
            warn!(
                %error,
                listener = %self.name,
                ?pause,
                hint = error_hint(error).unwrap_or("not a known accept error; the listener stays and tries again"),
                "accepting connections is paused"
            );
        }
    }

    fn leave(&mut self) {
        if !std::mem::take(&mut self.joined) {
            return;
        }
        if let Some(over) = self.inner.leave_shortage() {
            info!(errors = over.errors, lasted = ?over.lasted, listener = %self.name, "accepting connections again");
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests;
