//! Takes lines from any thread and writes them in one of its own.
//!
//! A line is formatted straight into one of eight buffers, chosen by thread, so that workers seldom meet; the writing
//! thread swaps full buffers for an empty one and writes each with one call. Compared with a channel of lines, as
//! `tracing_appender` has it, this spares an allocation, a free and often a wake-up per line, and bounds bytes
//! instead of lines.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, Write},
    mem,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use super::{AccessLine, Format};
use crate::stripe::{Padded, thread_number};

const STRIPES: usize = 8;
/// More than the longest line, so that a buffer never grows; the documentation of [`AccessLine`] says how long one gets.
const MAX_LINE: usize = 9 * 1024;
const MIN_STRIPE: usize = 64 * 1024;
/// How long the end of the program waits for a reader that doesn't read.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How lines are kept until they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WriterOptions {
    /// The form of a line. Default [`Format::Combined`].
    pub format: Format,
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
    /// There is no thread to write in.
    #[error("cannot start the access log's thread")]
    Thread(#[source] io::Error),
}

/// Takes lines; every clone writes to the same place.
#[derive(Clone)]
pub struct Writer {
    format: Format,
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
        match open(&path) {
            Ok(file) => Self::start(Target::File { path, file }, options),
            Err(source) => Err(WriterError::Open { path, source }),
        }
    }

    /// Lines go wherever else.
    pub fn to(
        sink: impl Write + Send + 'static,
        options: &WriterOptions,
    ) -> Result<(Self, WriterGuard), WriterError> {
        Self::start(Target::Stream(Box::new(sink)), options)
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
        Ok((Self { format: options.format, shared }, guard))
    }

    /// Takes a line, or drops it where there is no room. Never waits for a file or a terminal.
    pub fn write(&self, line: &AccessLine<'_>) {
        self.shared.push(|buffer| line.write(self.format, buffer));
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
}

struct Stripe {
    buffer: Vec<u8>,
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
        let stripe = |_| Padded(Mutex::new(Stripe { buffer: Vec::with_capacity(each), closed: false }));
        Self {
            stripes: std::array::from_fn(stripe),
            told: AtomicBool::new(false),
            signal: Mutex::default(),
            wake: Condvar::new(),
            closed: Condvar::new(),
            dropped: AtomicU64::new(0),
        }
    }

    fn push(&self, line: impl FnOnce(&mut Vec<u8>)) {
        let mut stripe = self.stripes[thread_number() % STRIPES].0.lock();
        let Stripe { buffer, closed } = &mut *stripe;
        let (before, room) = (buffer.len(), buffer.capacity() - buffer.len());
        if *closed || room < MAX_LINE {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        line(buffer);
        let half = buffer.capacity() / 2;
        let urgent = before < half && buffer.len() >= half;
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
                }
                let result = target.write(&spare);
                if let Err(error) = &result {
                    let lines = spare.iter().filter(|byte| **byte == b'\n').count();
                    self.dropped.fetch_add(lines as u64, Ordering::Relaxed);
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

enum Target {
    File { path: PathBuf, file: File },
    Stream(Box<dyn Write + Send>),
}

impl Target {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            Self::File { file, .. } => file.write_all(lines),
            Self::Stream(stream) => {
                stream.write_all(lines)?;
                stream.flush()
            }
        }
    }

    fn reopen(&mut self) {
        if let Self::File { path, file } = self {
            match open(path) {
                Ok(new) => *file = new,
                Err(error) => {
                    tracing::warn!(?path, %error, "cannot reopen the access log; the old file is kept");
                }
            }
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

#[cfg(test)]
mod tests;
