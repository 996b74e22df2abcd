//! What the parts of one connection tell each other, and the timer that hyper gets.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::rt;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{CloseReason, HttpOptions, body::Watch, connection::FOREVER, interim::Waiting};

/// One per connection. Everything here is written by the connection's own tasks; what is written for each request is
/// an atomic store.
pub(crate) struct ConnState {
    first_request: Instant,
    header_timeout: Duration,
    idle_timeout: Duration,
    pub(crate) min_body_rate: u32,
    /// Request bodies that are not over.
    bodies: AtomicUsize,
    /// As long as there are no more of them than this, none can keep another from its window.
    max_watched: usize,
    pub(crate) body_grace: Duration,
    /// The first [`CloseReason`], by its code; 0 is none yet.
    reason: AtomicU8,
    /// Whether the connection is to finish what it does and end.
    finish: AtomicBool,
    /// HTTP/1: a head is awaited.
    awaiting: AtomicBool,
    /// HTTP/1: bytes have come since it is.
    begun: AtomicBool,
    /// HTTP/1: all that was written has left the buffers above the transport.
    flushed: AtomicBool,
    /// HTTP/1: it has waited for a head for long enough to give back what it needs for one.
    tired: AtomicBool,
    release_after: Duration,
    /// HTTP/1: requests so far.
    requests: AtomicU64,
    /// A request's body was dropped before its end.
    unread: AtomicBool,
    /// The connection is no longer HTTP.
    upgraded: AtomicBool,
    /// HTTP/1: what goes ahead of a response.
    pub(crate) interim: Waiting,
    sleep: Mutex<Option<Pin<Box<tokio::time::Sleep>>>>,
    /// HTTP/1: when waiting for a head is over, and what that is called, as of when it grew tired.
    until: Mutex<Option<(Instant, CloseReason)>>,
    /// What watches over a body; one that has ended leaves it to the next, with its timer.
    pub(crate) spare: Mutex<Option<Box<Watch>>>,
}

impl ConnState {
    pub(crate) fn new(options: &HttpOptions) -> Self {
        Self {
            first_request: Instant::now() + options.first_request_timeout.min(FOREVER),
            header_timeout: options.header_timeout.min(FOREVER),
            idle_timeout: options.idle_timeout.min(FOREVER),
            min_body_rate: options.min_body_rate,
            bodies: AtomicUsize::new(0),
            max_watched: (options.h2_connection_window / options.h2_stream_window.max(1)) as usize,
            body_grace: options.body_grace.min(FOREVER),
            reason: AtomicU8::new(0),
            finish: AtomicBool::new(false),
            awaiting: AtomicBool::new(false),
            begun: AtomicBool::new(false),
            flushed: AtomicBool::new(true),
            tired: AtomicBool::new(false),
            release_after: options.release_after.min(FOREVER),
            requests: AtomicU64::new(0),
            unread: AtomicBool::new(false),
            upgraded: AtomicBool::new(false),
            interim: Waiting::default(),
            sleep: Mutex::new(None),
            until: Mutex::new(None),
            spare: Mutex::new(None),
        }
    }

    /// A request's body begins.
    pub(crate) fn on_body(&self) {
        self.bodies.fetch_add(1, Relaxed);
    }

    /// It is over, or nobody asks for it any more.
    pub(crate) fn on_body_end(&self) {
        self.bodies.fetch_sub(1, Relaxed);
    }

    /// Whether a body that does not come is the client's doing: with many of them, others that nobody reads may have used up what the client
    /// may send on the connection (RFC 9113 section 5.2.1).
    pub(crate) fn is_clients_turn(&self) -> bool {
        self.bodies.load(Relaxed) <= self.max_watched
    }

    /// Notes why it ends, if nothing was noted before.
    pub(crate) fn close_for(&self, reason: CloseReason) {
        let _ = self.reason.compare_exchange(0, reason as u8, Relaxed, Relaxed);
    }

    pub(crate) fn reason(&self) -> Option<CloseReason> {
        CloseReason::from_code(self.reason.load(Relaxed))
    }

    /// Asks for the end, once what is in flight is done.
    pub(crate) fn finish_for(&self, reason: CloseReason) {
        self.close_for(reason);
        self.finish.store(true, Relaxed);
    }

    pub(crate) fn must_finish(&self) -> bool {
        self.finish.load(Relaxed)
    }

    /// A request's head is whole. Its number, from 1.
    pub(crate) fn on_request(&self) -> u64 {
        self.awaiting.store(false, Relaxed);
        self.requests.fetch_add(1, Relaxed) + 1
    }

    /// Bytes came in.
    pub(crate) fn on_read(&self) {
        if self.awaiting.load(Relaxed) {
            self.begun.store(true, Relaxed);
        }
    }

    pub(crate) fn on_write(&self) {
        self.flushed.store(false, Relaxed);
    }

    pub(crate) fn on_flushed(&self) {
        self.flushed.store(true, Relaxed);
    }

    /// Whether nothing is lost when the connection's driver is dropped, and it is time for that: it waits for a head of which nothing is there,
    /// and what it had to say is said.
    pub(crate) fn may_rest(&self) -> bool {
        self.tired.load(Relaxed)
            && self.awaiting.load(Relaxed)
            && !self.begun.load(Relaxed)
            && self.flushed.load(Relaxed)
    }

    /// Ready when the wait for a head, during which the connection grew tired, is over.
    pub(crate) fn poll_rest(&self, cx: &mut Context<'_>) -> Poll<()> {
        let Some((deadline, reason)) = *self.until.lock() else { return Poll::Ready(()) };
        ready!(self.poll_deadline(deadline, cx));
        self.close_for(reason);
        Poll::Ready(())
    }

    /// All waits of a connection share one timer, which is touched when it fires, or has to fire earlier.
    fn poll_deadline(&self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let mut shared = self.sleep.lock();
        let sleep = shared.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    pub(crate) fn on_unread_body(&self) {
        self.unread.store(true, Relaxed);
    }

    pub(crate) fn on_upgrade(&self) {
        self.close_for(CloseReason::Upgraded);
        self.upgraded.store(true, Relaxed);
    }

    pub(crate) fn is_upgraded(&self) -> bool {
        self.upgraded.load(Relaxed)
    }

    /// Whether the client may still be sending what nobody is going to read.
    pub(crate) fn may_send_more(&self) -> bool {
        self.unread.load(Relaxed) || (self.awaiting.load(Relaxed) && self.begun.load(Relaxed))
    }

    fn await_head(&self) {
        self.begun.store(false, Relaxed);
        self.unread.store(false, Relaxed);
        self.tired.store(false, Relaxed);
        self.awaiting.store(true, Relaxed);
    }
}

/// The timer that hyper's HTTP/1 driver gets. It makes a sleep for every head that it awaits and drops it when the head
/// is there. With the runtime's own sleeps that is two turns at its timer wheel per request; here all of them share one,
/// which is touched when it fires and not otherwise. Only one sleep of a connection may be in use at a time, which is
/// so in hyper's HTTP/1.
///
/// The deadline that hyper asks for is not looked at: which one holds depends on whether it is the first request, and on
/// whether its first byte is there.
#[derive(Clone)]
pub(crate) struct ConnTimer(pub(crate) Arc<ConnState>);

impl rt::Timer for ConnTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn rt::Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, _: std::time::Instant) -> Pin<Box<dyn rt::Sleep>> {
        self.0.await_head();
        Box::pin(HeadSleep { state: Arc::clone(&self.0), idle_since: Instant::now(), head_since: None })
    }

    fn now(&self) -> std::time::Instant {
        Instant::now().into()
    }
}

impl fmt::Debug for ConnTimer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnTimer").finish_non_exhaustive()
    }
}

/// From the moment that a head is awaited until it is there.
struct HeadSleep {
    state: Arc<ConnState>,
    idle_since: Instant,
    /// When it was first seen that only a part of it is there.
    head_since: Option<Instant>,
}

impl HeadSleep {
    fn deadline(&mut self) -> (Instant, CloseReason) {
        if self.state.begun.load(Relaxed) {
            let since = *self.head_since.get_or_insert_with(Instant::now);
            (since + self.state.header_timeout, CloseReason::HeaderTimeout)
        } else if self.state.requests.load(Relaxed) == 0 {
            (self.state.first_request, CloseReason::FirstRequestTimeout)
        } else {
            (self.idle_since + self.state.idle_timeout, CloseReason::Idle)
        }
    }
}

impl rt::Sleep for HeadSleep {}

impl Future for HeadSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let (deadline, reason) = self.deadline();
        let state = &self.state;
        let tired_at = self.idle_since + state.release_after;
        if tired_at < deadline && !state.begun.load(Relaxed) && !state.tired.load(Relaxed) {
            ready!(state.poll_deadline(tired_at, cx));
            *state.until.lock() = Some((deadline, reason));
            state.tired.store(true, Relaxed);
        }
        ready!(state.poll_deadline(deadline, cx));
        state.close_for(reason);
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rt::Timer as _;

    fn timer() -> ConnTimer {
        let options = HttpOptions::default()
            .with_first_request_timeout(Duration::from_secs(10))
            .with_header_timeout(Duration::from_secs(2))
            .with_idle_timeout(Duration::from_secs(30));
        ConnTimer(Arc::new(ConnState::new(&options)))
    }

    #[tokio::test(start_paused = true)]
    async fn each_wait_has_its_own_deadline_and_all_share_one_timer() {
        let timer = timer();
        let start = Instant::now();
        let mut first = timer.sleep(FOREVER);
        std::future::poll_fn(|cx| {
            assert!(first.as_mut().poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
        timer.0.on_read();
        timer.0.on_request();
        drop(first);
        // the first byte of the second is there
        let second = timer.sleep(FOREVER);
        timer.0.on_read();
        second.await;
        assert_eq!((start.elapsed().as_secs(), timer.0.reason()), (2, Some(CloseReason::HeaderTimeout)));
        timer.sleep(FOREVER).await;
        assert_eq!(start.elapsed().as_secs(), 32);
    }

    #[tokio::test(start_paused = true)]
    async fn it_rests_only_when_nothing_is_under_way() {
        let timer = timer();
        let state = &timer.0;
        let mut wait = timer.sleep(FOREVER);
        let mut look = async || {
            std::future::poll_fn(|cx| Poll::Ready(wait.as_mut().poll(cx).is_pending())).await
                && state.may_rest()
        };
        assert!(!look().await, "too early");
        tokio::time::advance(Duration::from_millis(1100)).await;
        assert!(look().await);
        state.on_write();
        assert!(!look().await, "something has not left yet");
        state.on_flushed();
        assert!(look().await);
        state.on_read();
        assert!(!look().await, "a head has begun");
        state.on_request();
        assert!(!look().await, "a request is served");
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_request_is_due_from_the_beginning() {
        let timer = timer();
        tokio::time::advance(Duration::from_secs(4)).await;
        let start = Instant::now();
        timer.sleep(FOREVER).await;
        assert_eq!(
            (start.elapsed().as_secs(), timer.0.reason()),
            (6, Some(CloseReason::FirstRequestTimeout))
        );
    }
}
