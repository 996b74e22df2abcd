//! One process takes over from another: its sockets, and the packets of its QUIC connections.
//!
//! ```text
//! before -> after   head: generation, number of descriptors; then the descriptors by name: sockets, channels to processes before
//! after -> before   PREPARED: the plan is sound, every socket is there
//! before            reads its UDP sockets no longer
//! before -> after   head and descriptors again: the channels to `before` itself
//! after -> before   READY: it serves. `before` drains
//! ```
//!
//! Whatever fails up to there leaves `before` as it was: it reads its sockets again. No socket is ever closed while somebody waits in its queue, and no
//! socket of a group is closed alone, which would renumber the others.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream as StdStream,
    },
    sync::{PoisonError, atomic::Ordering},
    time::Duration,
};

use portcullis_h3::{HandOver, MAX_PREDECESSORS, Predecessor};
use portcullis_listener::{
    InheritError, InheritedSocket, MOST_HANDED_OVER, receive_descriptors, send_descriptors,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};
use tracing::{debug, info};

use crate::{EdgeHandle, edge::Shared};

const MAGIC: [u8; 4] = *b"PCUP";
const VERSION: u8 = 1;
const PREPARED: u8 = b'P';
const READY: u8 = b'R';

/// Why one process could not take over from another.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpgradeError {
    /// It was not made to hand its sockets over, runs not yet, or drains.
    #[error("this edge has no sockets to hand over: it is not running, drains, or was made without")]
    NothingToGive,
    /// One at a time.
    #[error("another upgrade is under way")]
    Busy,
    /// Too many processes still drain.
    #[error("{MAX_PREDECESSORS} processes before this one still have connections: wait until one has ended")]
    TooMany,
    /// Descriptors did not get through.
    #[error("the sockets did not get through")]
    Descriptors(#[from] InheritError),
    /// The other process closed the connection, as it does when it ends.
    #[error("the other process ended before it was ready")]
    Ended(#[source] io::Error),
    /// It says something else.
    #[error("the other process does not speak as this one does")]
    Protocol,
    /// It took too long.
    #[error("the other process was not ready within {0:?}")]
    Timeout(Duration),
    /// The system refused something.
    #[error("the system refused a part of it")]
    System(#[source] io::Error),
}

/// What is passed on, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    /// Of a listener, by its key.
    Socket(String),
    /// To a process before: the generation of its connections, the place of the socket in its group, the listener's key.
    Channel(u8, u8, String),
}

impl Name {
    fn text(&self) -> String {
        match self {
            Self::Socket(key) => format!("s {key}"),
            Self::Channel(generation, index, key) => format!("c {generation} {index} {key}"),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        if let Some(key) = text.strip_prefix("s ") {
            return Some(Self::Socket(key.to_owned()));
        }
        let mut parts = text.strip_prefix("c ")?.splitn(3, ' ');
        let (generation, index) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        Some(Self::Channel(generation, index, parts.next()?.to_owned()))
    }
}

/// What a listener's sockets are called: its address as the plan has it, and how many before it have the same.
pub(crate) fn key(address: &str, occurrence: usize) -> String {
    // a name has 255 bytes at most
    let end = (0..=200.min(address.len())).rev().find(|end| address.is_char_boundary(*end)).unwrap_or(0);
    format!("{occurrence} {}", &address[..end])
}

/// The key of the admin service's.
pub(crate) fn admin_key(address: std::net::SocketAddr) -> String {
    key(&format!("admin {address}"), 0)
}

/// An endpoint whose socket can be handed over.
#[derive(Debug)]
pub(crate) struct QuicPlace {
    pub(crate) key: String,
    /// The place of the socket in its group.
    pub(crate) index: u8,
    pub(crate) hand_over: HandOver,
}

/// A process before this one, on one socket.
#[derive(Debug)]
pub(crate) struct Before {
    key: String,
    index: u8,
    predecessor: Predecessor,
}

/// What a process got from the one before it, which waits for word that it is ready.
#[derive(Debug)]
pub struct TakeOver {
    stream: StdStream,
    deadline: Duration,
    generation: u8,
    sockets: Vec<(String, InheritedSocket)>,
    before: Vec<Before>,
}

impl TakeOver {
    /// Takes the sockets of the process at the other end, which calls [`EdgeHandle::hand_over`]. `deadline` is for each step. Must be called on a runtime.
    ///
    /// # Errors
    /// Something else came, or nothing in time.
    pub async fn receive(stream: StdStream, deadline: Duration) -> Result<Self, UpgradeError> {
        let mut stream = open(stream)?;
        let (generation, named) = receive(&mut stream, deadline).await?;
        let (mut sockets, mut before) = (Vec::new(), Vec::new());
        for (name, fd) in named {
            match Name::parse(&name).ok_or(UpgradeError::Protocol)? {
                Name::Socket(key) => sockets.push((key, InheritedSocket::from_fd(name, fd)?)),
                channel => before.extend(Before::new(channel, fd)),
            }
        }
        let stream = stream.into_std().map_err(UpgradeError::System)?;
        Ok(Self { stream, deadline, generation, sockets, before })
    }

    pub(crate) fn generation(&self) -> u8 {
        self.generation
    }

    /// The sockets of a listener; none, if the process before had no such.
    pub(crate) fn take(&mut self, key: &str) -> Vec<InheritedSocket> {
        self.sockets.extract_if(.., |(of, _)| of == key).map(|(_, socket)| socket).collect()
    }

    /// Whether the process before had such a listener.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.sockets.iter().any(|(of, _)| of == key)
    }

    /// Whether there is a UDP socket among them.
    pub(crate) fn has_udp(&self, key: &str) -> bool {
        let is_udp =
            |socket: &InheritedSocket| matches!(socket.socket, portcullis_listener::InheritedKind::Udp(_));
        self.sockets.iter().any(|(of, socket)| of == key && is_udp(socket))
    }

    /// Lets go of what nobody wanted. The process before reads such UDP sockets itself until it ends.
    pub(crate) fn close_rest(&mut self) {
        for (key, _) in self.sockets.drain(..) {
            info!(listener = key, "no listener has this socket of the process before: it is closed here");
        }
    }

    /// Says that everything is prepared, and learns of the process before as of one that reads no more.
    pub(crate) async fn prepared(self) -> Result<(UnixStream, Vec<Before>), UpgradeError> {
        let Self { stream, deadline, mut before, .. } = self;
        let mut stream = open(stream)?;
        stream.write_all(&[PREPARED]).await.map_err(UpgradeError::Ended)?;
        let (_, named) = receive(&mut stream, deadline).await?;
        for (name, fd) in named {
            before.extend(Before::new(Name::parse(&name).ok_or(UpgradeError::Protocol)?, fd));
        }
        Ok((stream, before))
    }
}

impl Before {
    fn new(name: Name, channel: OwnedFd) -> Option<Self> {
        let Name::Channel(generation, index, key) = name else { return None };
        Some(Self { key, index, predecessor: Predecessor::new(generation, channel) })
    }

    /// Those on this socket.
    pub(crate) fn take(all: &mut Vec<Self>, key: &str, index: u8) -> Vec<Predecessor> {
        let mine = all.extract_if(.., |before| before.index == index && before.key == key);
        mine.map(|before| before.predecessor).collect()
    }
}

/// Says that it serves from now on. The process before ends then.
pub(crate) async fn ready(mut stream: UnixStream) -> Result<(), UpgradeError> {
    stream.write_all(&[READY]).await.map_err(UpgradeError::Ended)
}

impl EdgeHandle {
    /// Hands all sockets over to the process at the other end, which calls [`TakeOver::receive`], and waits until it says that it serves. Then let this one drain,
    /// by the future that [`crate::Edge::run`] was given: it accepts no more, what is open runs to its end, and packets of its QUIC
    /// connections, which the other process reads, go on to it meanwhile. The edge must have been made with [`crate::EdgeBuilder::hand_over`].
    ///
    /// What is kept in memory is not handed over: tickets' keys of this process alone, sessions, the cache, rates, health of endpoints.
    ///
    /// # Errors
    /// The other process did not get ready within `deadline`, or ended, or there are [`MAX_PREDECESSORS`] processes that drain already. This one goes on then
    /// as if nothing had happened. Dropping the future is the same.
    pub async fn hand_over(&self, stream: StdStream, deadline: Duration) -> Result<(), UpgradeError> {
        let shared = &*self.shared;
        if shared.upgrading.swap(true, Ordering::SeqCst) {
            return Err(UpgradeError::Busy);
        }
        let mut undo = Undo { shared, done: false };
        let handing = hand_over(shared, stream, deadline);
        tokio::time::timeout(deadline, handing).await.map_err(|_| UpgradeError::Timeout(deadline))??;
        undo.done = true;
        shared.handed_over.store(true, Ordering::SeqCst);
        // whoever comes from now on is the other's
        shared.limits.pause();
        shared.admin_limits.pause();
        Ok(())
    }
}

/// Makes as if nothing had happened.
struct Undo<'a> {
    shared: &'a Shared,
    done: bool,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        for place in self.shared.quic_places.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            place.hand_over.take_back();
        }
        self.shared.upgrading.store(false, Ordering::SeqCst);
    }
}

async fn hand_over(shared: &Shared, stream: StdStream, deadline: Duration) -> Result<(), UpgradeError> {
    let mut stream = open(stream)?;
    let generation = shared.plan.quic.generation.wrapping_add(1);
    let (sockets, before) = (shared.spare()?, before(shared)?);
    let named: Vec<_> = sockets.iter().chain(&before).map(|(name, fd)| (name.as_str(), fd.as_fd())).collect();
    send(&mut stream, generation, &named, deadline).await?;
    expect(&mut stream, PREPARED).await?;
    let own = give(shared)?;
    let named: Vec<_> = own.iter().map(|(name, fd)| (name.as_str(), fd.as_fd())).collect();
    send(&mut stream, generation, &named, deadline).await?;
    // only the other process may have them, so that they close when it ends
    drop(own);
    expect(&mut stream, READY).await?;
    debug!(generation, "handed over");
    Ok(())
}

type Named = Vec<(String, OwnedFd)>;

impl Shared {
    /// Duplicates of all sockets.
    fn spare(&self) -> Result<Named, UpgradeError> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let spare = spare.as_ref().filter(|_| !self.stop.is_cancelled() && self.serving.is_cancelled());
        let copy = |(key, socket): &(String, InheritedSocket)| {
            let fd = socket.as_fd().try_clone_to_owned().map_err(UpgradeError::System)?;
            Ok((Name::Socket(key.clone()).text(), fd))
        };
        spare.ok_or(UpgradeError::NothingToGive)?.iter().map(copy).collect()
    }
}

/// Channels to the processes before this one that are still there.
fn before(shared: &Shared) -> Result<Named, UpgradeError> {
    let mut named = Vec::new();
    for place in shared.quic_places.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        let predecessors = place.hand_over.predecessors().map_err(UpgradeError::System)?;
        // this one becomes another
        if predecessors.len() >= MAX_PREDECESSORS {
            return Err(UpgradeError::TooMany);
        }
        let name = |generation| Name::Channel(generation, place.index, place.key.clone()).text();
        named.extend(predecessors.into_iter().map(|before| (name(before.generation), before.channel)));
    }
    Ok(named)
}

/// Stops reading, and makes the channels by which packets come from then on.
fn give(shared: &Shared) -> Result<Named, UpgradeError> {
    let places = shared.quic_places.lock().unwrap_or_else(PoisonError::into_inner);
    let give = |place: &QuicPlace| {
        let name = Name::Channel(shared.plan.quic.generation, place.index, place.key.clone()).text();
        Ok((name, place.hand_over.give().map_err(UpgradeError::System)?))
    };
    places.iter().map(give).collect()
}

fn open(stream: StdStream) -> Result<UnixStream, UpgradeError> {
    stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream)).map_err(UpgradeError::System)
}

async fn send(
    stream: &mut UnixStream,
    generation: u8,
    named: &[(&str, BorrowedFd<'_>)],
    deadline: Duration,
) -> Result<(), UpgradeError> {
    let count = u16::try_from(named.len()).map_err(|_| InheritError::TooMany)?.to_be_bytes();
    let mut head = [0; 8];
    head[..4].copy_from_slice(&MAGIC);
    head[4..].copy_from_slice(&[VERSION, generation, count[0], count[1]]);
    stream.write_all(&head).await.map_err(UpgradeError::Ended)?;
    for some in named.chunks(MOST_HANDED_OVER) {
        send_descriptors(stream, some, deadline).await?;
    }
    Ok(())
}

async fn receive(stream: &mut UnixStream, deadline: Duration) -> Result<(u8, Named), UpgradeError> {
    let mut head = [0; 8];
    let read = tokio::time::timeout(deadline, stream.read_exact(&mut head)).await;
    read.map_err(|_| UpgradeError::Timeout(deadline))?.map_err(UpgradeError::Ended)?;
    if head[..4] != MAGIC || head[4] != VERSION {
        return Err(UpgradeError::Protocol);
    }
    let count = usize::from(u16::from_be_bytes([head[6], head[7]]));
    let mut named = Vec::new();
    while named.len() < count {
        named.extend(receive_descriptors(stream, deadline).await?);
    }
    Ok((head[5], named))
}

async fn expect(stream: &mut UnixStream, wanted: u8) -> Result<(), UpgradeError> {
    match stream.read_u8().await.map_err(UpgradeError::Ended)? {
        got if got == wanted => Ok(()),
        _ => Err(UpgradeError::Protocol),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_whatever_is_in_them() {
        let key = key("unix:/run/with space and ü", 3);
        for name in [Name::Socket(key.clone()), Name::Channel(255, 7, key)] {
            assert_eq!(Name::parse(&name.text()), Some(name));
        }
        for none in ["", "x", "c 1", "c 1 2", "c 256 1 k", "c a 1 k"] {
            assert_eq!(Name::parse(none), None, "{none}");
        }
        assert!(super::key(&"ü".repeat(300), 0).len() < 220);
    }
}
