//! Queues between the endpoints of one process that share a port.

use std::{
    fmt,
    io::IoSliceMut,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use quinn::udp::RecvMeta;
use tokio::sync::mpsc;

use crate::WorkerId;

/// Batches that may wait for one endpoint; more are lost, as in a queue of the system's that is full. Worst-case memory of each is what one read
/// of the socket brings, 64 KiB.
const WAITING: usize = 128;

/// Ways between the endpoints that share a port, one for each worker. Clones are the same.
#[derive(Clone)]
pub struct Siblings(Arc<[Queue]>);

struct Queue {
    send: mpsc::Sender<Packet>,
    /// Taken by the endpoint.
    receive: Mutex<Option<mpsc::Receiver<Packet>>>,
}

struct Packet {
    meta: RecvMeta,
    bytes: Box<[u8]>,
}

impl Siblings {
    /// For this many workers, counted from 0.
    pub fn new(workers: u8) -> Self {
        let queue = |_| {
            let (send, receive) = mpsc::channel(WAITING);
            Queue { send, receive: Mutex::new(Some(receive)) }
        };
        Self((0..workers).map(queue).collect())
    }

    /// `None` for a worker that is not among them, or has joined already.
    pub(super) fn join(self, worker: WorkerId) -> Option<Sibling> {
        let queue = self.0.get(usize::from(worker.get()))?;
        let receive = queue.receive.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(Sibling { queues: self.0, receive: Mutex::new(receive) })
    }
}

impl fmt::Debug for Siblings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Siblings").field("workers", &self.0.len()).finish()
    }
}

/// One of them.
pub(super) struct Sibling {
    queues: Arc<[Queue]>,
    receive: Mutex<mpsc::Receiver<Packet>>,
}

impl Sibling {
    /// Where there are fewer sockets than the byte has values, the rest belong to nobody.
    pub(super) fn has(&self, worker: WorkerId) -> bool {
        usize::from(worker.get()) < self.queues.len()
    }

    pub(super) fn send(&self, worker: WorkerId, datagrams: &[u8], meta: &RecvMeta) {
        if let Some(queue) = self.queues.get(usize::from(worker.get())) {
            // lost, if it is full
            let _ = queue.send.try_send(Packet { meta: *meta, bytes: datagrams.into() });
        }
    }

    /// What came over, as much as there is room for; `None` where nothing did.
    pub(super) fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Option<usize> {
        let mut receive = self.receive.lock().unwrap_or_else(PoisonError::into_inner);
        let mut count = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta) {
            let Poll::Ready(Some(packet)) = receive.poll_recv(cx) else { break };
            // all of them read with buffers of one size
            let len = packet.bytes.len().min(buf.len());
            buf[..len].copy_from_slice(&packet.bytes[..len]);
            *meta = packet.meta;
            meta.len = len;
            count += 1;
        }
        (count > 0).then_some(count)
    }
}
