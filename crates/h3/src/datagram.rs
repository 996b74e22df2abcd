//! HTTP datagrams (RFC 9297): messages that belong to a request, may be lost and are not resent.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::sync::Notify;

use crate::{
    BoxError, codes,
    frame::{StreamFault, put_varint, varint},
    quic::Quic,
};

/// Datagrams of one request that wait to be read; the oldest are dropped.
const WAITING: usize = 32;
/// RFC 9297 section 2.1: a quarter of the id of a stream.
const QUARTER_MAX: u64 = (1 << 60) - 1;

/// The datagrams of a request, both ways. Among the extensions of every request where `QuicOptions::datagrams` is on.
///
/// 32 that were not read wait for each request; past that the oldest are dropped. One that comes before its request is
/// dropped (RFC 9297 section 2.1 allows it), and so is what comes when the last clone of this is gone.
#[derive(Clone)]
pub struct HttpDatagrams(Arc<Queue>);

/// Why a datagram was not sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatagramError {
    /// The client did not say that it takes any (RFC 9297 section 2.1.1), or its settings are not here yet.
    #[error("the client takes no datagrams")]
    NotOffered,
    /// It is larger than a packet to the client can be now: see [`HttpDatagrams::max_size`].
    #[error("a datagram of {size} bytes is too large")]
    TooLarge {
        /// Its bytes.
        size: usize,
    },
    /// QUIC did not take it: the connection is gone.
    #[error("the datagram can not be sent")]
    Connection(#[source] BoxError),
}

impl HttpDatagrams {
    /// Waits for the next; `None` once the connection is gone. Cancelling loses nothing.
    pub async fn recv(&self) -> Option<Bytes> {
        loop {
            let told = self.0.told.notified();
            if let Some(next) = self.0.waiting().pop_front() {
                return Some(next);
            }
            if self.0.over.load(Ordering::Acquire) {
                return None;
            }
            told.await;
        }
    }

    /// Sends one. Where the way is full the oldest that waits is dropped.
    pub fn send(&self, payload: &[u8]) -> Result<(), DatagramError> {
        let Some(all) = self.0.all.upgrade() else {
            return Err(DatagramError::Connection("the connection is over".into()));
        };
        if !all.offered.load(Ordering::Acquire) {
            return Err(DatagramError::NotOffered);
        }
        if self.max_size().is_none_or(|most| payload.len() > most) {
            return Err(DatagramError::TooLarge { size: payload.len() });
        }
        let mut bytes = BytesMut::with_capacity(8 + payload.len());
        put_varint(&mut bytes, self.0.quarter);
        bytes.extend_from_slice(payload);
        all.way.send(bytes.freeze()).map_err(DatagramError::Connection)
    }

    /// Bytes of the largest that can be sent now; it changes with the path. `None` where none can.
    pub fn max_size(&self) -> Option<usize> {
        let mut id = BytesMut::new();
        put_varint(&mut id, self.0.quarter);
        self.0.all.upgrade()?.way.max_size()?.checked_sub(id.len())
    }
}

impl fmt::Debug for HttpDatagrams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpDatagrams").field("quarter", &self.0.quarter).finish_non_exhaustive()
    }
}

struct Queue {
    quarter: u64,
    waiting: Mutex<VecDeque<Bytes>>,
    told: Notify,
    over: AtomicBool,
    all: Weak<Datagrams>,
}

impl Queue {
    fn waiting(&self) -> MutexGuard<'_, VecDeque<Bytes>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if let Some(all) = self.all.upgrade() {
            all.open().remove(&self.quarter);
        }
    }
}

/// A connection that datagrams are sent on.
trait Way: Send + Sync {
    fn send(&self, datagram: Bytes) -> Result<(), BoxError>;
    fn max_size(&self) -> Option<usize>;
}

struct Through<Q>(Q);

impl<Q: Quic> Way for Through<Q> {
    fn send(&self, datagram: Bytes) -> Result<(), BoxError> {
        self.0.send_datagram(datagram)
    }

    fn max_size(&self) -> Option<usize> {
        self.0.max_datagram()
    }
}

/// The datagrams of a connection.
pub(crate) struct Datagrams {
    way: Box<dyn Way>,
    /// By a quarter of the ids of their streams: as many as there are requests whose services kept theirs.
    open: Mutex<HashMap<u64, Weak<Queue>>>,
    /// The client takes some.
    offered: AtomicBool,
    /// The connection is over.
    ended: AtomicBool,
}

impl Datagrams {
    pub(crate) fn new<Q: Quic>(quic: Q) -> Arc<Self> {
        let offered = AtomicBool::new(false);
        let ended = AtomicBool::new(false);
        Arc::new(Self { way: Box::new(Through(quic)), open: Mutex::default(), offered, ended })
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, Weak<Queue>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_offered(&self, offered: bool) {
        self.offered.store(offered, Ordering::Release);
    }

    /// Those of the request on this stream.
    pub(crate) fn of_stream(self: &Arc<Self>, id: u64) -> HttpDatagrams {
        let queue = Arc::new(Queue {
            quarter: id / 4,
            waiting: Mutex::default(),
            told: Notify::new(),
            over: AtomicBool::new(false),
            all: Arc::downgrade(self),
        });
        self.open().insert(id / 4, Arc::downgrade(&queue));
        // looked at behind the insertion: an end either sees the queue or is seen here
        if self.ended.load(Ordering::SeqCst) {
            queue.over.store(true, Ordering::Release);
        }
        HttpDatagrams(queue)
    }

    /// Deals out what comes until the connection is lost (`Ok`) or has to be closed.
    pub(crate) async fn read<Q: Quic>(&self, quic: &Q) -> Result<(), StreamFault> {
        while let Ok(mut datagram) = quic.read_datagram().await {
            // RFC 9297 section 2.1
            let quarter = varint(&datagram).filter(|(quarter, _)| *quarter <= QUARTER_MAX);
            let Some((quarter, used)) = quarter else {
                return Err(StreamFault::Connection(codes::DATAGRAM_ERROR, "a datagram of no stream"));
            };
            let queue = self.open().get(&quarter).and_then(Weak::upgrade);
            if let Some(queue) = queue {
                datagram.advance(used);
                let mut waiting = queue.waiting();
                if waiting.len() >= WAITING {
                    waiting.pop_front();
                }
                waiting.push_back(datagram);
                drop(waiting);
                queue.told.notify_one();
            }
        }
        Ok(())
    }

    /// Nothing more will come.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        let open: Vec<_> = self.open().values().filter_map(Weak::upgrade).collect();
        for queue in open {
            queue.over.store(true, Ordering::Release);
            // all that wait, and one that is about to
            queue.told.notify_waiters();
            queue.told.notify_one();
        }
    }
}
