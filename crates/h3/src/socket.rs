//! The UDP socket of an endpoint, where some packets that arrive on it are another's.
//!
//! Whose a packet is stands in its destination connection id. Those of another worker of this process, where no packet filter steers them, go to
//! that one's queue ([`Siblings`]). Those of a process before this one, which still has connections, go to it over a channel ([`Predecessor`]). And an
//! endpoint whose process is that one reads no socket any more: it takes what comes over the channel and goes on sending by itself ([`HandOver`]).
//!
//! While there are neither siblings nor predecessors nothing is looked at: a batch costs the look whether there are.

#[cfg(unix)]
mod channel;
mod message;
mod owner;
mod siblings;

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use quinn::{
    AsyncUdpSocket, Runtime as _, TokioRuntime, UdpPoller,
    udp::{RecvMeta, Transmit},
};

#[cfg(unix)]
pub use self::channel::{HandOver, MAX_PREDECESSORS, Predecessor};
pub use self::siblings::Siblings;

#[cfg(unix)]
use self::channel::Hand;
use self::{owner::Whose, siblings::Sibling};
use crate::{ConnectionIds, WorkerId, batch::batched};

/// How long after the start ids that a client may have chosen itself are taken for those of a process before: in handshakes that began
/// there. One in 256 of a client's own ids looks like them, so that process should go on with new connections for as long.
const HANDSHAKES: Duration = Duration::from_secs(1);

/// A bound UDP socket, and who else has packets for or from it.
#[derive(Debug)]
pub struct QuicSocket {
    socket: UdpSocket,
    siblings: Option<Siblings>,
    #[cfg(unix)]
    hand: Option<Arc<Hand>>,
}

impl From<UdpSocket> for QuicSocket {
    fn from(socket: UdpSocket) -> Self {
        Self {
            socket,
            siblings: None,
            #[cfg(unix)]
            hand: None,
        }
    }
}

impl QuicSocket {
    /// Packets that name another worker go to that one, and theirs come here: for sockets that share a port without a packet filter which
    /// steers. All of them have clones of the same.
    #[must_use]
    pub fn with_siblings(mut self, siblings: Siblings) -> Self {
        self.siblings = Some(siblings);
        self
    }

    /// Packets of these generations go to the processes before this one. The endpoint's own is in its connection ids.
    #[cfg(unix)]
    #[must_use]
    pub fn with_predecessors(mut self, predecessors: Vec<Predecessor>) -> Self {
        self.hand.get_or_insert_default().follow(predecessors);
        self
    }

    /// What hands the socket over to another process while the endpoint runs.
    #[cfg(unix)]
    pub fn hand_over(&mut self) -> HandOver {
        HandOver(Arc::clone(self.hand.get_or_insert_default()))
    }

    /// The same, if somebody asked for it.
    #[cfg(unix)]
    pub(crate) fn known_hand_over(&self) -> Option<HandOver> {
        self.hand.clone().map(HandOver)
    }

    /// Inside the runtime that is to drive it.
    pub(crate) fn open(self, worker: WorkerId, ids: &ConnectionIds) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let inner = batched(TokioRuntime.wrap_udp_socket(self.socket)?);
        let siblings = self.siblings.and_then(|siblings| siblings.join(worker));
        #[cfg(unix)]
        let alone = siblings.is_none() && self.hand.is_none();
        #[cfg(not(unix))]
        let alone = siblings.is_none();
        if alone {
            return Ok(inner);
        }
        Ok(Arc::new(Socket {
            inner,
            worker,
            ids: ids.clone(),
            siblings,
            began: Instant::now(),
            #[cfg(unix)]
            hand: self.hand,
        }))
    }
}

struct Socket {
    inner: Arc<dyn AsyncUdpSocket>,
    worker: WorkerId,
    ids: ConnectionIds,
    siblings: Option<Sibling>,
    began: Instant,
    #[cfg(unix)]
    hand: Option<Arc<Hand>>,
}

impl Socket {
    /// Whether anything may have to go elsewhere.
    fn has_others(&self) -> bool {
        #[cfg(unix)]
        if self.hand.as_ref().is_some_and(|hand| hand.has_predecessors()) {
            return true;
        }
        self.siblings.is_some()
    }

    /// Sends what is another's there and leaves what is the endpoint's own, in its order.
    fn sort(&self, buf: &mut [u8], meta: &mut RecvMeta) {
        let (len, stride) = (meta.len.min(buf.len()), meta.stride.max(1));
        let initials = self.began.elapsed() < HANDSHAKES;
        let (mut kept, mut at) = (0, 0);
        let mut run: Option<(Whose, usize)> = None;
        while at < len {
            let end = (at + stride).min(len);
            let whose = owner::of(&buf[at..end], &self.ids, self.worker, initials);
            // before anything is moved over it
            if let Some((before, begin)) = run
                && before != whose
            {
                self.pass(before, &buf[begin..at], meta);
                run = None;
            }
            if whose == Whose::Own || !self.is_there(whose) {
                buf.copy_within(at..end, kept);
                kept += end - at;
            } else if run.is_none() {
                run = Some((whose, at));
            }
            at = end;
        }
        if let Some((whose, begin)) = run {
            self.pass(whose, &buf[begin..len], meta);
        }
        meta.len = kept;
    }

    fn is_there(&self, whose: Whose) -> bool {
        match whose {
            Whose::Own => true,
            Whose::Worker(worker) => self.siblings.as_ref().is_some_and(|siblings| siblings.has(worker)),
            #[cfg(unix)]
            Whose::Generation(generation) => {
                self.hand.as_ref().is_some_and(|hand| hand.has_predecessor(generation))
            }
            #[cfg(not(unix))]
            Whose::Generation(_) => false,
        }
    }

    /// What can't be passed on at once is lost, as in a queue of the system's that is full.
    fn pass(&self, whose: Whose, datagrams: &[u8], meta: &RecvMeta) {
        match whose {
            Whose::Own => {}
            Whose::Worker(worker) => {
                if let Some(siblings) = &self.siblings {
                    siblings.send(worker, datagrams, meta);
                }
            }
            #[cfg(unix)]
            Whose::Generation(generation) => {
                if let Some(hand) = &self.hand {
                    hand.send(generation, datagrams, meta);
                }
            }
            #[cfg(not(unix))]
            Whose::Generation(_) => {}
        }
    }

    fn sort_all(&self, count: usize, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) {
        for (buf, meta) in bufs.iter_mut().zip(meta).take(count) {
            self.sort(buf, meta);
        }
    }

    /// From the system's socket, or from who reads it now.
    fn poll_source(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        #[cfg(unix)]
        if let Some(hand) = &self.hand {
            if hand.is_given()
                && let Some(polled) = hand.poll_recv(cx, bufs, meta)
            {
                return polled;
            }
            let polled = self.inner.poll_recv(cx, bufs, meta);
            if polled.is_pending() && hand.is_given_after(cx) {
                return hand.poll_recv(cx, bufs, meta).unwrap_or(Poll::Pending);
            }
            return polled;
        }
        self.inner.poll_recv(cx, bufs, meta)
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        if let Some(siblings) = &self.siblings
            && let Some(count) = siblings.poll_recv(cx, bufs, meta)
        {
            return Poll::Ready(Ok(count));
        }
        let count = ready!(self.poll_source(cx, bufs, meta))?;
        if self.has_others() {
            self.sort_all(count, bufs, meta);
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket")
            .field("inner", &self.inner)
            .field("worker", &self.worker)
            .finish_non_exhaustive()
    }
}
