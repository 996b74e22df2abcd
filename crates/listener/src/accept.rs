//! The accept loop.

use std::{
    fmt, io,
    net::SocketAddr,
    num::NonZeroUsize,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use portcullis_conn::{Conn, ConnInfo, Transport};
use tokio::net::TcpListener;

use crate::{
    bind::{BindError, BindPlan, Protocol},
    limits::{
        Enter, HeadroomReached, ListenerLimits, OverClient, OverLimit, Permit, Permitted, Reservation,
        Reserve, Seat, descriptor_limit,
    },
    socket::{ListenAddr, TcpOptions},
};

mod adapters;
mod any;
#[cfg(feature = "axum")]
mod axum;
mod delayed;
mod error;
mod listen;
mod options;
mod recovery;

#[cfg(feature = "axum")]
pub use self::axum::ClientAddr;
#[cfg(unix)]
pub use self::listen::UnixAcceptor;
pub use self::{
    adapters::{Backpressure, HandleErrors, IncomingExt, LogWarnings},
    any::{AnyAcceptor, AnyStream},
    error::{ErrorClass, classify, error_hint},
    listen::{Listen, TcpAcceptor},
    options::AcceptOptions,
};
use self::{delayed::Delayed, recovery::Recovery};

/// Accepted connections, as a stream that no passing error ends.
///
/// - A permit of the [`crate::Limits`] is taken before `accept` is called, and lives inside the connection. At the limit
///   nothing is accepted, and clients wait in the kernel's queue, or they are refused ([`OverLimit`]).
/// - A client that has its share of connections gets no more ([`crate::ClientLimit`]).
/// - An error of one connection is counted and skipped ([`crate::classify`] has the table).
/// - A shortage pauses accepting for [`AcceptOptions::pause`], or until a connection closes; the listener stays
///   open. Each episode is logged once when it begins (a warning with a hint for a person) and once when it is over.
///   Listeners that share one [`crate::Limits`] share the episode.
/// - Some descriptors are left for the work on open connections ([`AcceptOptions::headroom`]).
/// - After [`crate::Limits::close`] the stream ends. It ends too, with an error in the log, when the descriptor is no
///   listening socket any more ([`ErrorClass::Fatal`]).
///
/// Several of them, polled by tasks of their own or merged into one stream, are served in turn: who waits for a
/// permit stands in one queue, and none takes more than [`AcceptOptions::batch`] connections at a time.
///
/// Dropping it closes the listening socket. It needs a tokio runtime with time enabled.
pub struct Incoming<L: Listen = TcpAcceptor> {
    listen: L,
    seat: Seat,
    recovery: Recovery,
    delayed: Delayed<L::Io>,
    options: AcceptOptions,
    headroom: Headroom,
    /// Connections accepted without giving way.
    in_a_row: u32,
}

impl Incoming {
    /// Accepts TCP connections from `listener`, under `limits`: a [`crate::Limits`], or the part of one listener in it.
    ///
    /// `tcp` gives what is set on accepted connections.
    pub fn new(
        listener: TcpListener,
        limits: impl Into<ListenerLimits>,
        options: AcceptOptions,
        tcp: &TcpOptions,
    ) -> Self {
        Self::listen(TcpAcceptor::new(listener, tcp), limits, options)
    }

    /// Binds an address, for this process alone, and accepts from it, all with default options.
    ///
    /// # Errors
    /// The system refuses the address; the error says why, who has it, and what to do. Panics outside of a tokio
    /// runtime.
    pub fn bind(address: SocketAddr, limits: impl Into<ListenerLimits>) -> Result<Self, BindError> {
        let tcp = TcpOptions::default();
        let bound = BindPlan::new().tcp(address, tcp.clone()).bind(NonZeroUsize::MIN)?;
        let refused = |source| BindError::new("epoll", Protocol::Tcp, address, source);
        let listener = bound.into_iter().flat_map(|bound| bound.tcp).next();
        let listener = listener.ok_or_else(|| refused(io::ErrorKind::NotFound.into()))?;
        Self::from_std(listener, limits, AcceptOptions::default(), &tcp).map_err(refused)
    }

    /// The same from a listener of the standard library, as [`crate::BindPlan`] makes them. It becomes non-blocking.
    ///
    /// # Errors
    /// The socket can't be registered with the runtime. Panics outside of a tokio runtime.
    pub fn from_std(
        listener: std::net::TcpListener,
        limits: impl Into<ListenerLimits>,
        options: AcceptOptions,
        tcp: &TcpOptions,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self::new(TcpListener::from_std(listener)?, limits, options, tcp))
    }
}

#[cfg(unix)]
impl Incoming<UnixAcceptor> {
    /// Accepts connections over a unix socket.
    pub fn unix(
        listener: tokio::net::UnixListener,
        limits: impl Into<ListenerLimits>,
        options: AcceptOptions,
    ) -> Self {
        Self::listen(UnixAcceptor::new(listener), limits, options)
    }
}

impl<L: Listen> Incoming<L> {
    /// Accepts connections from any source of them.
    pub fn listen(listen: L, limits: impl Into<ListenerLimits>, options: AcceptOptions) -> Self {
        let seat = Seat::new(&limits.into());
        let own = seat.own();
        let name = own.name.clone().unwrap_or_else(|| listen.local_addr().to_string());
        Self {
            recovery: Recovery::new(own.clone(), name, options.pause),
            delayed: Delayed::new(own.clone()),
            headroom: Headroom::new(options.headroom),
            seat,
            listen,
            options,
            in_a_row: 0,
        }
    }

    /// The address listened on.
    pub fn local_addr(&self) -> ListenAddr {
        self.listen.local_addr()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<(L::Io, ConnInfo, Permit)>> {
        let accepted = ready!(self.poll_one(cx));
        if accepted.is_some() {
            self.seat.own().counters.accepted();
        }
        Poll::Ready(accepted)
    }

    fn poll_one(&mut self, cx: &mut Context<'_>) -> Poll<Option<(L::Io, ConnInfo, Permit)>> {
        self.seat.watch(cx);
        if let Poll::Ready(accepted) = self.delayed.poll(cx) {
            return Poll::Ready(Some(accepted));
        }
        loop {
            ready!(self.poll_rest(cx));
            if self.in_a_row >= self.options.batch.max(1) {
                // others of this task have their turn
                self.in_a_row = 0;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let reserved = match self.seat.reserve() {
                Reserve::Got(reservation) => Ok(reservation),
                Reserve::Refuse(over) => Err(over),
                Reserve::Wait => return Poll::Pending,
                Reserve::Closed => return Poll::Ready(None),
            };
            let accepted = match self.listen.poll_accept(cx) {
                Poll::Ready(accepted) => accepted,
                Poll::Pending => {
                    self.in_a_row = 0;
                    return Poll::Pending;
                }
            };
            self.in_a_row += u32::from(accepted.is_ok());
            let (io, info) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    drop(reserved);
                    if !self.recovery.failed(&error, &mut self.seat) {
                        return Poll::Ready(None);
                    }
                    continue;
                }
            };
            match reserved.map(Reservation::open) {
                Ok(permit) => {
                    self.recovery.worked();
                    if let Some(accepted) = self.admit(cx, io, info, permit) {
                        return Poll::Ready(Some(accepted));
                    }
                }
                Err(over) => {
                    self.seat.own().counters.refused_over_limit();
                    refuse::<L>(io, over == OverLimit::Reset);
                }
            }
        }
    }

    /// Pending while accepting rests, and while the descriptors held in reserve are all that is left.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.recovery.poll(cx, &mut self.seat));
            if !self.headroom.is_reached || self.seat.own().group.is_closed() {
                return Poll::Ready(());
            }
            match self.headroom.look(self.listen.lowest_free_descriptor()) {
                Ok(()) => return Poll::Ready(()),
                Err(reached) => {
                    self.recovery.failed(&reached.into(), &mut self.seat);
                }
            }
        }
    }

    /// A connection with its permit: counts its client.
    fn admit(
        &mut self,
        cx: &mut Context<'_>,
        io: L::Io,
        info: ConnInfo,
        mut permit: Permit,
    ) -> Option<(L::Io, ConnInfo, Permit)> {
        let own = self.seat.own();
        own.is_not_full();
        if let Some(number) = L::descriptor(&io)
            && let Err(reached) = self.headroom.taken(number)
        {
            self.recovery.failed(&reached.into(), &mut self.seat);
        }
        let own = self.seat.own();
        if info.transport == Transport::Tcp {
            match own.group.clients.enter(info.client_ip()) {
                Enter::In(key) => permit.rekey(key),
                Enter::Full(limit) => {
                    let reset = match limit.over {
                        OverClient::Close => false,
                        OverClient::Reset => true,
                        OverClient::Delay { up_to } => {
                            let Some((io, ..)) = self.delayed.keep((io, info, permit), up_to) else {
                                // looked at once, for the clock, and for a connection that ended just now
                                return match self.delayed.poll(cx) {
                                    Poll::Ready(accepted) => Some(accepted),
                                    Poll::Pending => None,
                                };
                            };
                            own.counters.refused_over_client();
                            refuse::<L>(io, true);
                            return None;
                        }
                    };
                    own.counters.refused_over_client();
                    refuse::<L>(io, reset);
                    return None;
                }
            }
        }
        Some((io, info, permit))
    }
}

fn refuse<L: Listen>(io: L::Io, reset: bool) {
    if reset {
        L::reset(io);
    } else {
        drop(io);
    }
}

impl<L: Listen + Unpin> Stream for Incoming<L>
where
    L::Io: Unpin,
{
    type Item = Conn<Permitted<L::Io>>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let accepted = ready!(self.get_mut().poll(cx));
        Poll::Ready(accepted.map(|(io, info, permit)| Conn::new(Permitted::new(io, permit), info)))
    }
}

impl<L: Listen> fmt::Debug for Incoming<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").field("local_addr", &self.local_addr()).finish_non_exhaustive()
    }
}

/// Watches how many descriptors are left.
struct Headroom {
    wanted: u32,
    /// The lowest number that belongs to the reserve; `None` is no reserve.
    line: Option<u64>,
    /// The soft limit at that time.
    soft: u64,
    is_reached: bool,
}

impl Headroom {
    fn new(wanted: u32) -> Self {
        let mut headroom = Self { wanted, line: None, soft: 0, is_reached: false };
        headroom.measure();
        headroom
    }

    /// The limit may have been raised since it was looked at last.
    fn measure(&mut self) {
        self.line = descriptor_limit().ok().and_then(|(soft, _)| {
            self.soft = soft;
            let kept = u64::from(self.wanted).min(soft / 4);
            (kept > 0).then(|| soft - kept)
        });
    }

    /// A connection got the descriptor of this number.
    fn taken(&mut self, number: u64) -> Result<(), HeadroomReached> {
        if self.line.is_none_or(|line| number < line) {
            return Ok(());
        }
        self.look(Some(number))
    }

    /// Whether a descriptor of this number would be one of the reserve; none at all is one.
    fn look(&mut self, number: Option<u64>) -> Result<(), HeadroomReached> {
        self.measure();
        let number = number.unwrap_or(self.soft);
        self.is_reached = self.line.is_some_and(|line| number >= line);
        if self.is_reached { Err(HeadroomReached { left: self.soft.saturating_sub(number) }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
