//! What all slots of one thread share: the plan, the clock, the counters.
//!
//! A slot is one request at a time: one per HTTP/1 connection, one per stream of the others. Closed loop: a slot
//! asks for the next ticket as soon as it is free. Open loop: a ticket exists when its time has come, whether a
//! slot is free or not, and its latency counts from that time.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Uri};
use tokio::sync::Semaphore;

use crate::{
    cli::Protocol,
    clock::{Clock, LATE, Schedule},
    io::TlsTarget,
    stats::{Failure, Outcome, Stats},
};

/// Between attempts to connect.
const RECONNECT_PAUSE: Duration = Duration::from_millis(20);

/// What to send, and where.
pub(crate) struct Plan {
    pub(crate) protocol: Protocol,
    pub(crate) addr: SocketAddr,
    pub(crate) tls: Option<TlsTarget>,
    pub(crate) method: Method,
    /// With scheme, authority, path and query.
    pub(crate) uri: Uri,
    pub(crate) host: HeaderValue,
    pub(crate) body: Body,
    pub(crate) streams: usize,
    pub(crate) per_connection: Option<u64>,
    /// How long what is in flight at the end may take.
    pub(crate) timeout: Duration,
}

/// A request body: zeros, piece by piece out of one shared buffer.
#[derive(Clone, Debug)]
pub(crate) struct Body {
    pub(crate) len: u64,
    piece: Bytes,
}

impl Body {
    const PIECE: usize = 64 * 1024;

    pub(crate) fn new(len: u64) -> Self {
        let piece = usize::try_from(len).map_or(Self::PIECE, |len| len.min(Self::PIECE));
        Self { len, piece: Bytes::from(vec![b'x'; piece]) }
    }

    /// The next piece when `left` bytes are still to be sent and at most `most` may be.
    pub(crate) fn piece(&self, left: u64, most: usize) -> Bytes {
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        self.piece.slice(..self.piece.len().min(left).min(most))
    }
}

/// The right to send one request.
#[derive(Debug)]
pub(crate) struct Ticket {
    /// Latency counts from here.
    from: Instant,
}

/// The open loop's part of a worker.
pub(crate) struct OpenLoop {
    pub(crate) schedule: Schedule,
    /// One permit for each request that is due.
    pub(crate) gate: Arc<Semaphore>,
    /// This worker takes the requests `first`, `first + stride`, ...
    pub(crate) first: u64,
    pub(crate) stride: u64,
}

/// One thread's share of the run.
pub(crate) struct Worker {
    pub(crate) plan: Arc<Plan>,
    clock: Clock,
    open: Option<OpenLoop>,
    taken: Cell<u64>,
    in_flight: Cell<u64>,
    stats: RefCell<Stats>,
}

impl Worker {
    pub(crate) fn new(plan: Arc<Plan>, clock: Clock, open: Option<OpenLoop>) -> Self {
        Self {
            plan,
            clock,
            open,
            taken: Cell::new(0),
            in_flight: Cell::new(0),
            stats: RefCell::new(Stats::new()),
        }
    }

    /// The next request, or `None` at the end.
    pub(crate) async fn next(&self) -> Option<Ticket> {
        let from = match &self.open {
            None => {
                let now = Instant::now();
                if now >= self.clock.until {
                    return None;
                }
                now
            }
            Some(open) => {
                open.gate.acquire().await.ok()?.forget();
                let index = open.first + self.taken.replace(self.taken.get() + 1) * open.stride;
                let due = open.schedule.due(index)?;
                if self.clock.measures(due) && due.elapsed() > LATE {
                    self.stats.borrow_mut().late_starts += 1;
                }
                due
            }
        };
        self.in_flight.set(self.in_flight.get() + 1);
        Some(Ticket { from })
    }

    /// Books how a request went.
    #[allow(clippy::needless_pass_by_value, reason = "a ticket is used once")]
    pub(crate) fn finish(&self, ticket: Ticket, result: Result<Outcome, Failure>) {
        let now = Instant::now();
        self.in_flight.set(self.in_flight.get() - 1);
        // closed loop: what completes in the window; open loop: what was due in the window, however late it ends
        if !self.clock.measures(if self.open.is_some() { ticket.from } else { now }) {
            return;
        }
        let mut stats = self.stats.borrow_mut();
        match result {
            Ok(outcome) => stats.success(outcome, now - ticket.from),
            Err(failure) => stats.failure(failure),
        }
    }

    /// Books a piece of a response's body, whether the rest of it comes in the window or not.
    pub(crate) fn received(&self, len: u64) {
        if self.clock.measures(Instant::now()) {
            self.stats.borrow_mut().received(len);
        }
    }

    /// Books a connection that had to be made anew.
    pub(crate) fn reconnected(&self) {
        self.stats.borrow_mut().reconnects += 1;
    }

    /// Waits before the next attempt to connect.
    pub(crate) async fn pause(&self) {
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }

    /// When whatever is still in flight is given up.
    pub(crate) fn give_up_at(&self) -> Instant {
        self.clock.until + self.plan.timeout
    }

    /// The counters, when all slots have ended or were given up.
    pub(crate) fn take_stats(&self) -> Stats {
        let mut stats = self.stats.replace(Stats::new());
        stats.failures("timeout", self.in_flight.get());
        if let Some(open) = &self.open {
            let mine = (0..)
                .map(|turn| open.first + turn * open.stride)
                .take_while(|index| open.schedule.due(*index).is_some());
            stats.unstarted = (mine.count() as u64).saturating_sub(self.taken.get());
        }
        stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Arc<Plan> {
        Arc::new(Plan {
            protocol: Protocol::H1,
            addr: SocketAddr::from(([127, 0, 0, 1], 1)),
            tls: None,
            method: Method::GET,
            uri: Uri::from_static("http://localhost/"),
            host: HeaderValue::from_static("localhost"),
            body: Body::new(0),
            streams: 1,
            per_connection: None,
            timeout: Duration::from_secs(1),
        })
    }

    const OK: Outcome = Outcome { status: 200, bytes: 1 };

    #[tokio::test]
    async fn warm_up_does_not_count() {
        let clock = Clock::new(Instant::now(), Duration::from_secs(60), Duration::from_secs(1));
        let worker = Worker::new(plan(), clock, None);
        let ticket = worker.next().await.unwrap();
        worker.received(1);
        worker.finish(ticket, Ok(OK));
        let stats = worker.take_stats();
        assert_eq!((stats.requests(), stats.window_bytes()), (0, None));
    }

    #[tokio::test]
    async fn open_loop_latency_counts_from_the_due_time() {
        // due half a second ago, as if all slots had been busy until now
        let begin = Instant::now() - Duration::from_millis(500);
        let clock = Clock::new(begin, Duration::ZERO, Duration::from_secs(60));
        let gate = Arc::new(Semaphore::new(1));
        let schedule = Schedule::new(&clock, 1.0);
        let open = OpenLoop { schedule, gate, first: 0, stride: 1 };
        let worker = Worker::new(plan(), clock, Some(open));
        let ticket = worker.next().await.unwrap();
        worker.finish(ticket, Ok(OK));
        let stats = worker.take_stats();
        assert_eq!(stats.late_starts, 1);
        assert_eq!(stats.unstarted, 59);
        assert!(stats.quantile_us(0.5) >= 500_000.0);
    }

    #[tokio::test]
    async fn what_never_ends_is_a_timeout() {
        let clock = Clock::new(Instant::now(), Duration::ZERO, Duration::from_secs(60));
        let worker = Worker::new(plan(), clock, None);
        let _in_flight = worker.next().await.unwrap();
        assert_eq!(worker.take_stats().errors()["timeout"], 1);
    }

    #[test]
    fn bodies_come_in_pieces() {
        let body = Body::new(100_000);
        assert_eq!(body.piece(100_000, usize::MAX).len(), 65_536);
        assert_eq!(body.piece(34_464, usize::MAX).len(), 34_464);
        assert_eq!(body.piece(34_464, 10).len(), 10);
        assert_eq!(Body::new(0).piece(0, 10).len(), 0);
    }
}
