//! What the parts of one exchange tell each other: the task that serves it, the reader of its body and what the service kept
//! of it may be three tasks.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering},
    },
    task::Context,
};

use futures_util::task::AtomicWaker;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use portcullis_conn::InterimSink;

/// Interim responses that wait to be written.
const INTERIM_MAX: usize = 16;
const NO_PRIORITY: i32 = i32::MIN;

#[derive(Debug)]
pub(crate) struct Side {
    /// The code to give the stream up with, once something is wrong with it; 0 before.
    fault: AtomicU32,
    /// Something is there for the task that writes.
    news: AtomicBool,
    writer: AtomicWaker,
    interim: Mutex<VecDeque<(StatusCode, HeaderMap)>>,
    /// The final response was begun.
    answered: AtomicBool,
    priority: AtomicI32,
    /// The response waits for room to write.
    waits: AtomicBool,
}

impl Side {
    pub(crate) fn new() -> Self {
        Self {
            fault: AtomicU32::new(0),
            news: AtomicBool::new(false),
            writer: AtomicWaker::new(),
            interim: Mutex::default(),
            answered: AtomicBool::new(false),
            priority: AtomicI32::new(NO_PRIORITY),
            waits: AtomicBool::new(false),
        }
    }

    /// Notes what is wrong with the stream; the first report stays.
    pub(crate) fn fail(&self, code: u32) {
        let _ = self.fault.compare_exchange(0, code, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The code of the fault that was noted, if any.
    pub(crate) fn fault(&self) -> Option<u32> {
        Some(self.fault.load(Ordering::Relaxed)).filter(|code| *code != 0)
    }

    fn tell(&self) {
        self.news.store(true, Ordering::Release);
        self.writer.wake();
    }

    /// Whether there is something new for the task that writes, which is woken when there will be.
    pub(crate) fn poll_news(&self, cx: &mut Context<'_>) -> bool {
        self.writer.register(cx.waker());
        self.news.swap(false, Ordering::Acquire)
    }

    pub(crate) fn reprioritize(&self, priority: i32) {
        self.priority.store(priority, Ordering::Relaxed);
        self.tell();
    }

    /// The priority that was asked for since the last time.
    pub(crate) fn take_priority(&self) -> Option<i32> {
        Some(self.priority.swap(NO_PRIORITY, Ordering::Relaxed)).filter(|priority| *priority != NO_PRIORITY)
    }

    pub(crate) fn set_waits(&self, waits: bool) {
        self.waits.store(waits, Ordering::Relaxed);
    }

    pub(crate) fn waits(&self) -> bool {
        self.waits.load(Ordering::Relaxed)
    }

    fn interim(&self) -> std::sync::MutexGuard<'_, VecDeque<(StatusCode, HeaderMap)>> {
        self.interim.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The interim responses that wait.
    pub(crate) fn take_interim(&self) -> VecDeque<(StatusCode, HeaderMap)> {
        std::mem::take(&mut *self.interim())
    }

    /// From here on an interim response comes too late.
    pub(crate) fn answer(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }

    fn push_interim(&self, status: StatusCode, headers: HeaderMap) -> Result<(), InterimError> {
        if !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(InterimError::Status);
        }
        if self.answered.load(Ordering::Relaxed) {
            return Err(InterimError::Late);
        }
        let mut interim = self.interim();
        if interim.len() >= INTERIM_MAX {
            return Err(InterimError::Full);
        }
        interim.push_back((status, headers));
        drop(interim);
        self.tell();
        Ok(())
    }

    /// RFC 9110 section 10.1.1.
    pub(crate) fn send_continue(&self) {
        // too late means that it is not needed any more
        let _ = self.push_interim(StatusCode::CONTINUE, HeaderMap::new());
    }
}

impl InterimSink for Side {
    fn send(&self, _: u64, status: u16, fields: &mut dyn Iterator<Item = (&str, &[u8])>) -> bool {
        let Ok(status) = StatusCode::from_u16(status) else { return false };
        let fields: Option<HeaderMap> = fields
            .map(|(name, value)| {
                Some((HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_bytes(value).ok()?))
            })
            .collect();
        fields.is_some_and(|fields| self.push_interim(status, fields).is_ok())
    }
}

/// Sends interim responses (RFC 9110 section 15.2) ahead of the response to a request: `103 Early Hints` (RFC 8297), for one.
///
/// Every request has it among its extensions. A `100 Continue` need not be sent by hand: a client that expects one gets it
/// when the body is first asked for.
#[derive(Clone, Debug)]
pub struct InterimSender(Arc<Side>);

/// Why an interim response is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InterimError {
    /// Its status is not 1xx, or it is 101, which HTTP/3 does not have (RFC 9114 section 4.5).
    #[error("the status is not that of an interim response")]
    Status,
    /// The response itself was begun.
    #[error("the response was begun already")]
    Late,
    /// 16 of them wait for the client to read.
    #[error("too many interim responses wait to be sent")]
    Full,
}

impl InterimSender {
    pub(crate) fn new(side: Arc<Side>) -> Self {
        Self(side)
    }

    /// Queues one; it leaves at once if the client takes it.
    pub fn send(&self, status: StatusCode, headers: HeaderMap) -> Result<(), InterimError> {
        self.0.push_interim(status, headers)
    }
}
