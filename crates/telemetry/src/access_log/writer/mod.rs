//! Takes lines from any thread and writes them in one of its own.
//!
//! A line is formatted straight into one of eight buffers, chosen by thread, so that workers seldom meet; the writing
//! thread swaps full buffers for an empty one and writes each with one call. Compared with a channel of lines, as
//! `tracing_appender` has it, this spares an allocation, a free and often a wake-up per line, and bounds bytes
//! instead of lines.

mod target;

use std::{
    fmt,
    io::{self, Write},
    mem,
    path::PathBuf,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use self::target::{Lost, Target};
use super::{AccessLine, Format, MAX_LINE, Redaction};
use crate::stripe::{Padded, thread_number};

const STRIPES: usize = 8;
/// Several of the longest lines, so that a buffer never grows.
const MIN_STRIPE: usize = 64 * 1024;
/// How long the end of the program waits for a reader that doesn't read.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How lines are kept until they are written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WriterOptions {
    /// The form of a line. Default [`Format::Combined`].
    pub format: Format,
    /// What of URIs is hidden. Default: the values of [`super::SECRET_PARAMETERS`].
    pub redaction: Redaction,
    /// Bytes of lines that may wait to be written, over eight buffers; past it lines are dropped and counted, since a slow
    /// disk must not slow requests. Default 4 MiB, at least 512 KiB. Memory is nine eighths of it, as it is first
    /// touched.
    pub buffer_bytes: usize,
    /// How long the first line of a batch waits for others; a batch that fills half a buffer doesn't wait. Default
    /// 100 ms: nobody who follows a log notices, and an idle program isn't woken at all. Lines of different threads
    /// may be out of order by this much.
    pub flush_interval: Duration,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self {
            format: Format::Combined,
            redaction: Redaction::default(),
            buffer_bytes: 4 * 1024 * 1024,
            flush_interval: Duration::from_millis(100),
        }
    }
}

impl WriterOptions {
    /// Sets [`WriterOptions::format`].
    #[must_use]
    pub fn with_format(mut self, format: Format) -> Self {
        self.format = format;
        self
    }

    /// Sets [`WriterOptions::redaction`].
    #[must_use]
    pub fn with_redaction(mut self, redaction: Redaction) -> Self {
        self.redaction = redaction;
        self
    }

    /// Sets [`WriterOptions::buffer_bytes`].
    #[must_use]
    pub fn with_buffer_bytes(mut self, bytes: usize) -> Self {
        self.buffer_bytes = bytes;
        self
    }

    /// Sets [`WriterOptions::flush_interval`].
    #[must_use]
    pub fn with_flush_interval(mut self, interval: Duration) -> Self {
        self.flush_interval = interval;
        self
    }
}

/// Why there is no writer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriterError {
    /// The file can't be opened for appending.
    #[error("cannot open the access log {path:?}")]
    Open {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nothing listens at the socket of the syslog daemon.
    #[error("cannot send the access log to syslog at {path:?}")]
    Syslog {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no thread to write in.
    #[error("cannot start the access log's thread")]
    Thread(#[source] io::Error),
}

/// Takes lines; every clone writes to the same place.
#[derive(Clone)]
pub struct Writer {
    format: Arc<Format>,
    redaction: Redaction,
    shared: Arc<Shared>,
}

impl Writer {
    /// Lines go to standard output.
    pub fn stdout(options: &WriterOptions) -> Result<(Self, WriterGuard), WriterError> {
        Self::to(io::stdout(), options)
    }

    /// Lines are appended to a file, which is made if it isn't there.
    pub fn file(
        path: impl Into<PathBuf>,
        options: &WriterOptions,
    ) -> Result<(Self, WriterGuard), WriterError> {
        let path = path.into();
        match Target::file(path.clone()) {
            Ok(target) => Self::start(target, options),
            Err(source) => Err(WriterError::Open { path, source }),
        }
    }

    /// Lines go to a syslog daemon of this machine by its socket, `/dev/log` as a rule: each as a message of its own, from `portcullis`, facility
    /// `local7`, severity `info`. A daemon that is away for a while loses the lines of that time, which are counted.
    #[cfg(unix)]
    pub fn syslog(
        path: impl Into<PathBuf>,
        options: &WriterOptions,
    ) -> Result<(Self, WriterGuard), WriterError> {
        let path = path.into();
        match target::Syslog::connect(path.clone()) {
            Ok(syslog) => Self::start(Target::Syslog(syslog), options),
            Err(source) => Err(WriterError::Syslog { path, source }),
        }
    }

    /// Lines go wherever else.
    pub fn to(
        sink: impl Write + Send + 'static,
        options: &WriterOptions,
    ) -> Result<(Self, WriterGuard), WriterError> {
        Self::start(Target::stream(sink), options)
    }

    fn start(target: Target, options: &WriterOptions) -> Result<(Self, WriterGuard), WriterError> {
        let shared = Arc::new(Shared::new(options.buffer_bytes));
        let thread = {
            let shared = Arc::clone(&shared);
            let interval = options.flush_interval;
            move || shared.run(target, interval)
        };
        thread::Builder::new().name("access-log".to_owned()).spawn(thread).map_err(WriterError::Thread)?;
        let guard = WriterGuard { shared: Arc::clone(&shared) };
        let (format, redaction) = (Arc::new(options.format.clone()), options.redaction.clone());
        Ok((Self { format, redaction, shared }, guard))
    }

    /// Takes a line, or drops it where there is no room. Never waits for a file or a terminal.
    pub fn write(&self, line: &AccessLine<'_>) {
        self.shared.push(|buffer| line.write(&self.format, &self.redaction, buffer));
    }

    /// The form of its lines.
    pub fn format(&self) -> &Format {
        &self.format
    }

    /// Whether a buffer is half full: lines come faster than they are written.
    pub fn is_pressed(&self) -> bool {
        self.shared.pressed.load(Ordering::Acquire) > 0
    }

    /// Waits until [`Writer::is_pressed`] is not so. Whoever begins no work before this is ready, and has less under way than half a buffer holds
    /// lines, loses none of them; whoever doesn't want to wait as long as a disk stands still gives it a deadline.
    pub async fn room(&self) {
        loop {
            // registered before the look, so that nothing is missed in between
            let mut relieved = pin!(self.shared.relieved.notified());
            relieved.as_mut().enable();
            if !self.is_pressed() {
                return;
            }
            relieved.await;
        }
    }

    /// How many lines were dropped so far: for want of room, because they couldn't be written, or because they came after
    /// the guard was dropped.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Opens the file by its path again, after it was renamed to rotate it. Where that fails the old one is kept and a
    /// warning logged. Nothing happens to other targets.
    pub fn reopen(&self) {
        self.shared.signal(|signal| signal.reopen = true);
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("format", &self.format)
            .field("dropped", &self.dropped())
            .finish_non_exhaustive()
    }
}

/// Keeps the writing thread. When it is dropped, what is buffered is written, for up to two seconds; lines that come
/// later are dropped. To be held until the last request is over.
#[must_use = "lines are written only as long as the guard is held"]
pub struct WriterGuard {
    shared: Arc<Shared>,
}

impl Drop for WriterGuard {
    fn drop(&mut self) {
        self.shared.signal(|signal| signal.stop = true);
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        let mut signal = self.shared.signal.lock();
        while !signal.done {
            if self.shared.closed.wait_until(&mut signal, deadline).timed_out() {
                break;
            }
        }
    }
}

impl fmt::Debug for WriterGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriterGuard").finish_non_exhaustive()
    }
}

struct Shared {
    stripes: [Padded<Mutex<Stripe>>; STRIPES],
    /// Whether the thread has been told that there is work; spares the lock below.
    told: AtomicBool,
    signal: Mutex<Signal>,
    wake: Condvar,
    closed: Condvar,
    dropped: AtomicU64,
    /// How many stripes are at least half full.
    pressed: AtomicUsize,
    relieved: Notify,
}

struct Stripe {
    buffer: Vec<u8>,
    pressed: bool,
    closed: bool,
}

#[derive(Default)]
struct Signal {
    work: bool,
    urgent: bool,
    reopen: bool,
    stop: bool,
    done: bool,
}

impl Shared {
    fn new(buffer_bytes: usize) -> Self {
        let each = (buffer_bytes / STRIPES).max(MIN_STRIPE);
        let stripe = |_| {
            Padded(Mutex::new(Stripe { buffer: Vec::with_capacity(each), pressed: false, closed: false }))
        };
        Self {
            stripes: std::array::from_fn(stripe),
            told: AtomicBool::new(false),
            signal: Mutex::default(),
            wake: Condvar::new(),
            closed: Condvar::new(),
            dropped: AtomicU64::new(0),
            pressed: AtomicUsize::new(0),
            relieved: Notify::new(),
        }
    }

    fn push(&self, line: impl FnOnce(&mut Vec<u8>)) {
        let mut stripe = self.stripes[thread_number() % STRIPES].0.lock();
        let Stripe { buffer, pressed, closed } = &mut *stripe;
        let room = buffer.capacity() - buffer.len();
        if *closed || room < MAX_LINE {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        line(buffer);
        let urgent = !*pressed && buffer.len() >= buffer.capacity() / 2;
        if urgent {
            *pressed = true;
            self.pressed.fetch_add(1, Ordering::AcqRel);
        }
        drop(stripe);
        // the thread takes the flag back before it looks into the stripes: whoever finds it set after pushing knows that
        // its line will be seen
        if urgent || (!self.told.load(Ordering::Acquire) && !self.told.swap(true, Ordering::AcqRel)) {
            self.signal(|signal| {
                signal.work = true;
                signal.urgent |= urgent;
            });
        }
    }

    fn signal(&self, change: impl FnOnce(&mut Signal)) {
        change(&mut self.signal.lock());
        self.wake.notify_one();
    }

    /// The thread's life.
    fn run(&self, mut target: Target, interval: Duration) {
        let capacity = self.stripes[0].0.lock().buffer.capacity();
        let mut spare = Vec::with_capacity(capacity);
        let mut failing = false;
        loop {
            let (stop, reopen) = self.wait(interval);
            if reopen {
                target.reopen();
            }
            for stripe in &self.stripes {
                {
                    let mut stripe = stripe.0.lock();
                    stripe.closed = stop;
                    if stripe.buffer.is_empty() {
                        continue;
                    }
                    mem::swap(&mut stripe.buffer, &mut spare);
                    if mem::take(&mut stripe.pressed) && self.pressed.fetch_sub(1, Ordering::AcqRel) == 1 {
                        self.relieved.notify_waiters();
                    }
                }
                let result = target.write(&spare);
                if let Err(Lost { lines, error }) = &result {
                    self.dropped.fetch_add(*lines, Ordering::Relaxed);
                    if !failing {
                        tracing::warn!(%error, "access log lines cannot be written and are dropped");
                    }
                }
                failing = result.is_err();
                spare.clear();
            }
            if stop {
                self.signal.lock().done = true;
                self.closed.notify_all();
                return;
            }
        }
    }

    /// Waits for the first line of a batch, and then for others. Gives whether to stop and whether to reopen.
    fn wait(&self, interval: Duration) -> (bool, bool) {
        let mut signal = self.signal.lock();
        while !(signal.work || signal.stop || signal.reopen) {
            self.wake.wait(&mut signal);
        }
        let deadline = Instant::now() + interval;
        while !(signal.urgent || signal.stop || signal.reopen) {
            if self.wake.wait_until(&mut signal, deadline).timed_out() {
                break;
            }
        }
        (signal.work, signal.urgent) = (false, false);
        self.told.store(false, Ordering::Release);
        (signal.stop, mem::take(&mut signal.reopen))
    }
}

#[cfg(test)]
mod tests;
