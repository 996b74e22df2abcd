//! Between the processes of an upgrade: a packet that the new one reads and the old one is to have.

use std::{
    io::{self, IoSlice, IoSliceMut, Read as _, Write as _},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;
use quinn::udp::RecvMeta;
use socket2::{Domain, Socket, Type};
use tracing::{debug, warn};

use super::message::{HEAD, decode, encode};

/// Processes before this one that may still have connections. Each costs a look at every packet.
pub const MAX_PREDECESSORS: usize = 4;
/// What a channel may hold, if the system lets it; past it packets are lost, as in a socket's own queue.
const CHANNEL_BUFFER: usize = 4 * 1024 * 1024;

/// A process before this one that has connections of its own on the socket.
#[derive(Debug)]
#[non_exhaustive]
pub struct Predecessor {
    /// The generation in the ids of its connections.
    pub generation: u8,
    /// From its [`HandOver::give`], or from [`HandOver::predecessors`] of one in between.
    pub channel: OwnedFd,
}

impl Predecessor {
    /// With its channel.
    pub fn new(generation: u8, channel: OwnedFd) -> Self {
        Self { generation, channel }
    }
}

/// Hands the socket of an endpoint over to another process, which has a duplicate of it. Clones are the same.
#[derive(Clone, Debug)]
pub struct HandOver(pub(super) Arc<Hand>);

impl HandOver {
    /// From now on the endpoint does not read its socket: it takes what comes over the channel that is given back, whose other end the process that reads
    /// then has ([`Predecessor`]). It goes on sending by itself. When the last duplicate of that end is closed, it reads again.
    ///
    /// # Errors
    /// The system makes no channel. Nothing has changed then.
    pub fn give(&self) -> io::Result<OwnedFd> {
        let (own, other) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None)?;
        for end in [&own, &other] {
            end.set_nonblocking(true)?;
            // as much as there may be
            let _ = end.set_send_buffer_size(CHANNEL_BUFFER);
        }
        *self.0.inlet() = Inlet::New(own.into());
        self.0.given.store(true, Ordering::SeqCst);
        self.0.waker.wake();
        Ok(other.into())
    }

    /// Reads again: nobody else does.
    pub fn take_back(&self) {
        *self.0.inlet() = Inlet::None;
        self.0.given.store(false, Ordering::SeqCst);
        self.0.waker.wake();
    }

    /// Duplicates of the channels to the processes before this one that are still there, for the one after it.
    ///
    /// # Errors
    /// The system gives no descriptors.
    pub fn predecessors(&self) -> io::Result<Vec<Predecessor>> {
        let predecessors = self.0.predecessors();
        let copy = |known: &Channel| {
            let channel = known.stream.as_fd().try_clone_to_owned()?;
            Ok(Predecessor { generation: known.generation, channel })
        };
        predecessors.iter().filter(|known| known.is_open()).map(copy).collect()
    }

    /// Whether another process reads the socket.
    pub(crate) fn is_given(&self) -> bool {
        self.0.is_given()
    }
}

#[derive(Debug, Default)]
pub(super) struct Hand {
    given: AtomicBool,
    inlet: Mutex<Inlet>,
    /// Of the endpoint, which waits for packets.
    waker: AtomicWaker,
    /// How many there are; looked at for every batch.
    count: AtomicUsize,
    predecessors: Mutex<Vec<Channel>>,
}

/// Where packets come from that another process reads.
#[derive(Debug, Default)]
enum Inlet {
    #[default]
    None,
    /// Not known to a runtime yet.
    New(OwnedFd),
    Open(tokio::net::UnixStream),
}

#[derive(Debug)]
struct Channel {
    generation: u8,
    /// Of messages (`SOCK_SEQPACKET`), whatever its type says.
    stream: UnixStream,
}

impl Channel {
    /// Whether the process at the other end has not closed it: nothing is ever sent from there.
    fn is_open(&self) -> bool {
        let read = (&self.stream).read(&mut [0]);
        matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

impl Hand {
    fn inlet(&self) -> std::sync::MutexGuard<'_, Inlet> {
        // nothing panics while it is held
        self.inlet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn predecessors(&self) -> std::sync::MutexGuard<'_, Vec<Channel>> {
        self.predecessors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn follow(&self, predecessors: Vec<Predecessor>) {
        let channel = |from: Predecessor| {
            let stream = UnixStream::from(from.channel);
            // else a full channel would hold up every connection
            stream.set_nonblocking(true).ok()?;
            Some(Channel { generation: from.generation, stream })
        };
        let mut known = self.predecessors();
        *known = predecessors.into_iter().filter_map(channel).take(MAX_PREDECESSORS).collect();
        self.count.store(known.len(), Ordering::SeqCst);
    }

    pub(super) fn has_predecessors(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    pub(super) fn has_predecessor(&self, generation: u8) -> bool {
        self.has_predecessors() && self.predecessors().iter().any(|known| known.generation == generation)
    }

    pub(super) fn send(&self, generation: u8, datagrams: &[u8], meta: &RecvMeta) {
        let mut predecessors = self.predecessors();
        let Some(place) = predecessors.iter().position(|known| known.generation == generation) else {
            return;
        };
        let head = encode(meta);
        let mut stream = &predecessors[place].stream;
        match stream.write_vectored(&[IoSlice::new(&head), IoSlice::new(datagrams)]) {
            Ok(_) => {}
            // full: they are lost, as they would be in a socket's own queue
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => {
                debug!(generation, %error, "a process before this one has ended");
                predecessors.swap_remove(place);
                self.count.store(predecessors.len(), Ordering::SeqCst);
            }
        }
    }

    pub(super) fn is_given(&self) -> bool {
        self.given.load(Ordering::SeqCst)
    }

    /// Asks to be woken when it is, and says whether it is already.
    pub(super) fn is_given_after(&self, cx: &Context<'_>) -> bool {
        self.waker.register(cx.waker());
        self.is_given()
    }

    /// What came over, as much as there is room for; `None` when the socket is the endpoint's own again.
    pub(super) fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Option<Poll<io::Result<usize>>> {
        self.waker.register(cx.waker());
        let mut inlet = self.inlet();
        *inlet = match std::mem::take(&mut *inlet) {
            Inlet::New(fd) => match tokio::net::UnixStream::from_std(UnixStream::from(fd)) {
                Ok(open) => Inlet::Open(open),
                Err(error) => {
                    warn!(%error, "packets can't be taken from another process: the socket is read again");
                    self.given.store(false, Ordering::SeqCst);
                    return None;
                }
            },
            known => known,
        };
        let Inlet::Open(open) = &*inlet else { return None };
        let mut count = 0;
        while count < bufs.len().min(meta.len()) {
            match open.poll_read_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Some(Poll::Ready(Err(error))),
                Poll::Pending => break,
            }
            match receive(open, &mut bufs[count]) {
                Ok(Some(received)) => {
                    meta[count] = received;
                    count += 1;
                }
                // of another version; the next one
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    debug!("who read the socket is gone: it is read again");
                    *inlet = Inlet::None;
                    self.given.store(false, Ordering::SeqCst);
                    return (count > 0).then_some(Poll::Ready(Ok(count)));
                }
                Err(error) => return Some(Poll::Ready(Err(error))),
            }
        }
        Some(if count > 0 { Poll::Ready(Ok(count)) } else { Poll::Pending })
    }
}

/// One message. An error of [`io::ErrorKind::UnexpectedEof`] is the channel's end.
fn receive(stream: &tokio::net::UnixStream, buf: &mut [u8]) -> io::Result<Option<RecvMeta>> {
    let mut head = [0; HEAD];
    let read = stream.try_read_vectored(&mut [IoSliceMut::new(&mut head), IoSliceMut::new(buf)])?;
    if read == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(read.checked_sub(HEAD).and_then(|len| decode(&head, len)))
}

impl AsFd for Predecessor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}
