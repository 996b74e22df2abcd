//! Fewer and larger sends.
//!
//! QUIC hands out at most 10 packets at a time, and the kernel takes up to 64 of one size in one call (generic segmentation
//! offload, `udp(7)`): for long answers the calls are a third of all cost. So what is the full 10 packets, and thus not the last of
//! what there is to send, waits for more to the same client until the tasks that are ready now have had their turn.

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, ready},
};

use futures_util::task::AtomicWaker;
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{EcnCodepoint, RecvMeta, Transmit},
};

/// Packets that QUIC hands out at a time: fewer are the last for now.
const HANDED: usize = 10;
/// Packets of one call: the kernel's `UDP_MAX_SEGMENTS`.
const SEGMENTS_MAX: usize = 64;
/// Bytes of one call: what a UDP datagram over IPv4 or IPv6 may hold, less some room for extension headers.
const BYTES_MAX: usize = 65_000;
/// Clients for whom something waits; each may hold `BYTES_MAX`.
const SLOTS: usize = 4;

/// Puts a batching socket around another; must be called in the runtime that drives it. Where packets can't be sent several at a
/// time it is the other itself.
pub(crate) fn batched(inner: Arc<dyn AsyncUdpSocket>) -> Arc<dyn AsyncUdpSocket> {
    if inner.max_transmit_segments() < SEGMENTS_MAX {
        return inner;
    }
    let waker = Arc::new(AtomicWaker::new());
    let batching =
        Arc::new(Batching { inner: Arc::clone(&inner), slots: Mutex::default(), waker: Arc::clone(&waker) });
    let flusher = Flusher { socket: Arc::downgrade(&batching), poller: inner.create_io_poller(), waker };
    tokio::spawn(flusher);
    batching
}

struct Batching {
    inner: Arc<dyn AsyncUdpSocket>,
    slots: Mutex<Vec<Slot>>,
    /// Of the flusher.
    waker: Arc<AtomicWaker>,
}

/// What waits for one client. All but the last packet have the same size.
struct Slot {
    destination: SocketAddr,
    ecn: Option<EcnCodepoint>,
    src_ip: Option<IpAddr>,
    segment: usize,
    bytes: Vec<u8>,
    /// Something was added since the flusher looked.
    grown: bool,
}

impl Slot {
    fn of(transmit: &Transmit<'_>, segment: usize) -> Self {
        let mut bytes = Vec::with_capacity((BYTES_MAX / segment).min(SEGMENTS_MAX) * segment);
        bytes.extend_from_slice(transmit.contents);
        Self {
            destination: transmit.destination,
            ecn: transmit.ecn,
            src_ip: transmit.src_ip,
            segment,
            bytes,
            grown: true,
        }
    }

    /// Whether this can go behind what is there.
    fn fits(&self, transmit: &Transmit<'_>) -> bool {
        let same_size = match transmit.segment_size {
            Some(segment) => segment == self.segment,
            None => transmit.contents.len() <= self.segment,
        };
        let bytes = self.bytes.len() + transmit.contents.len();
        // a short packet is the last: behind it all would be cut in the wrong places
        same_size
            && self.bytes.len().is_multiple_of(self.segment)
            && self.ecn == transmit.ecn
            && self.src_ip == transmit.src_ip
            && bytes <= BYTES_MAX
            && bytes.div_ceil(self.segment) <= SEGMENTS_MAX
    }

    /// Whether another full hand has no room.
    fn is_full(&self) -> bool {
        let bytes = self.bytes.len() + HANDED * self.segment;
        bytes > BYTES_MAX || bytes.div_ceil(self.segment) > SEGMENTS_MAX
    }
}

/// The size of its packets, if it is a full hand.
fn full_hand(transmit: &Transmit<'_>) -> Option<usize> {
    transmit.segment_size.filter(|segment| transmit.contents.len() == HANDED * segment)
}

impl Batching {
    fn slots(&self) -> MutexGuard<'_, Vec<Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a slot and forgets it; it stays where the kernel has no room.
    fn send(&self, slots: &mut Vec<Slot>, place: usize) -> io::Result<()> {
        let slot = &slots[place];
        let sent = self.inner.try_send(&Transmit {
            destination: slot.destination,
            ecn: slot.ecn,
            contents: &slot.bytes,
            segment_size: (slot.bytes.len() > slot.segment).then_some(slot.segment),
            src_ip: slot.src_ip,
        });
        match sent {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            // what can't be sent is lost, as packets are
            _ => {
                slots.swap_remove(place);
                Ok(())
            }
        }
    }
}

impl AsyncUdpSocket for Batching {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let full = full_hand(transmit);
        let mut slots = self.slots();
        if slots.is_empty() && full.is_none() {
            drop(slots);
            return self.inner.try_send(transmit);
        }
        if let Some(place) = slots.iter().position(|slot| slot.destination == transmit.destination) {
            let slot = &mut slots[place];
            if slot.fits(transmit) {
                slot.bytes.extend_from_slice(transmit.contents);
                slot.grown = true;
                if full.is_none() || slot.is_full() {
                    // it is taken, whether or not there is room now: the flusher goes on
                    if self.send(&mut slots, place).is_err() {
                        self.waker.wake();
                    }
                }
                return Ok(());
            }
            // packets stay in order
            self.send(&mut slots, place)?;
        }
        let Some(segment) = full else {
            drop(slots);
            return self.inner.try_send(transmit);
        };
        if slots.len() >= SLOTS {
            self.send(&mut slots, 0)?;
        }
        slots.push(Slot::of(transmit, segment));
        drop(slots);
        self.waker.wake();
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
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

impl fmt::Debug for Batching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batching").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl Drop for Batching {
    fn drop(&mut self) {
        self.waker.wake();
    }
}

/// Sends what no more is added to. Ends with the socket.
struct Flusher {
    socket: Weak<Batching>,
    poller: Pin<Box<dyn UdpPoller>>,
    waker: Arc<AtomicWaker>,
}

impl Future for Flusher {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker());
        let Some(socket) = self.socket.upgrade() else { return Poll::Ready(()) };
        let mut slots = socket.slots();
        let mut place = 0;
        while place < slots.len() {
            // added to since the last look: others may have more yet
            if std::mem::take(&mut slots[place].grown) {
                place += 1;
                continue;
            }
            while socket.send(&mut slots, place).is_err() {
                if ready!(self.poller.as_mut().poll_writable(cx)).is_err() {
                    // nothing can be sent on this socket any more
                    slots.clear();
                    return Poll::Ready(());
                }
            }
        }
        if !slots.is_empty() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

#[cfg(test)]
#[path = "batch_tests.rs"]
mod tests;
