//! Counts the frames that an HTTP/2 client sends, where the protocol's driver sets no bound per time.
//!
//! What `h2` 0.4.20 bounds by itself, over the life of a connection: streams that are reset before they were taken up
//! (`max_pending_accept_reset_streams`), streams that this side was made to reset (`max_local_error_reset_streams`),
//! CONTINUATION frames of one head (by its size), empty DATA frames (100), the overhead of small DATA frames that wait
//! to be read, and a field list of more than four times the size allowed. It answers PING and SETTINGS one at a time and reads no
//! further until the answer is written, so they cost no memory, but they cost work; and a stream that was taken up and is then
//! reset costs the work behind it, as often as the client likes. These are counted here, over ten seconds each, so that a
//! long-lived connection earns no credit by its age.
//!
//! What is written is looked at too: which responses have begun and are not over is what [`Activity`] goes by.

use std::{
    io::{self, IoSlice},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use tokio::time::Instant;

use crate::activity::Activity;

/// The window of the budgets.
const WINDOW: Duration = Duration::from_secs(10);
/// RFC 9113 section 3.4.
const PREFACE: usize = 24;
/// RFC 9113 section 4.1.
const HEAD: usize = 9;
/// Of DATA and HEADERS (RFC 9113 sections 6.1 and 6.2).
const END_STREAM: u8 = 1;

/// The heads of frames in a stream of bytes that comes in pieces.
#[derive(Debug)]
struct Heads {
    /// Bytes to pass over: of the preface, or of a payload.
    skip: usize,
    head: [u8; HEAD],
    filled: usize,
}

#[derive(Clone, Copy)]
struct Head {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Heads {
    fn behind(skip: usize) -> Self {
        Self { skip, head: [0; HEAD], filled: 0 }
    }

    /// The next that is whole; what was looked at is taken off `bytes`.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<Head> {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        let taken = (HEAD - self.filled).min(bytes.len() - skipped);
        let (now, rest) = bytes[skipped..].split_at(taken);
        self.head[self.filled..self.filled + taken].copy_from_slice(now);
        self.filled += taken;
        *bytes = rest;
        if self.filled < HEAD {
            return None;
        }
        self.filled = 0;
        let [a, b, c, kind, flags, stream @ ..] = self.head;
        self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        // the first bit is nobody's (RFC 9113 section 4.1)
        let stream = u32::from_be_bytes(stream) & (u32::MAX >> 1);
        Some(Head { length: self.skip, kind, flags, stream })
    }
}

#[derive(Debug)]
pub(crate) struct FrameGuard {
    max_resets: u32,
    max_control: u32,
    since: Option<Instant>,
    resets: u32,
    control: u32,
    read: Heads,
    written: Heads,
    is_blocked: bool,
    activity: Arc<Activity>,
}

impl FrameGuard {
    pub(crate) fn new(max_resets: u32, max_control: u32, activity: Arc<Activity>) -> Self {
        Self {
            max_resets,
            max_control,
            since: None,
            resets: 0,
            control: 0,
            read: Heads::behind(PREFACE),
            written: Heads::behind(0),
            is_blocked: false,
            activity,
        }
    }

    /// Looks at what was read. Whether it is within the budgets.
    pub(crate) fn allows(&mut self, mut bytes: &[u8]) -> bool {
        let (resets, control) = (self.resets, self.control);
        while let Some(head) = self.read.next(&mut bytes) {
            self.count(head);
        }
        if (resets, control) == (self.resets, self.control) {
            return true;
        }
        let now = Instant::now();
        if self.since.is_none_or(|since| now - since >= WINDOW) {
            self.since = Some(now);
            self.resets = self.resets.saturating_sub(resets);
            self.control = self.control.saturating_sub(control);
        }
        self.resets <= self.max_resets && self.control <= self.max_control
    }

    fn count(&mut self, head: Head) {
        match (head.kind, head.length) {
            // RST_STREAM
            (3, _) => {
                self.resets = self.resets.saturating_add(1);
                self.activity.on_reset(head.stream);
            }
            // WINDOW_UPDATE: as many as there is data
            (8, _) => {}
            // DATA, HEADERS and CONTINUATION that carry something, or an end
            (0 | 1 | 9, 1..) => {}
            (0 | 1, 0) if head.flags & END_STREAM != 0 => {}
            // PRIORITY, SETTINGS, PING, what is empty, and what nobody knows
            _ => self.control = self.control.saturating_add(1),
        }
    }

    /// Looks at what a write came to.
    pub(crate) fn on_write(&mut self, result: &Poll<io::Result<usize>>, bufs: &[IoSlice<'_>]) {
        if self.is_blocked != result.is_pending() {
            self.is_blocked = result.is_pending();
            self.activity.on_blocked(self.is_blocked);
        }
        let Poll::Ready(Ok(written)) = result else { return };
        let mut left = *written;
        for buf in bufs {
            let taken = left.min(buf.len());
            self.on_written(&buf[..taken]);
            left -= taken;
        }
    }

    fn on_written(&mut self, mut bytes: &[u8]) {
        while let Some(head) = self.written.next(&mut bytes) {
            match head.kind {
                0 | 1 if head.flags & END_STREAM == 0 => {
                    self.activity.on_written(head.stream, head.kind == 1, head.length);
                }
                0 | 1 | 3 => self.activity.on_end(head.stream),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        frame.resize(HEAD + payload, 0xff);
        frame
    }

    fn guard() -> FrameGuard {
        let mut guard = FrameGuard::new(3, 2, Arc::new(Activity::new(1)));
        assert!(guard.allows(&[b'P'; PREFACE]));
        guard
    }

    #[tokio::test(start_paused = true)]
    async fn resets_and_control_frames_have_their_own_budgets() {
        let mut guard = guard();
        for _ in 0..3 {
            assert!(guard.allows(&frame(3, 0, 4)));
        }
        assert!(guard.allows(&frame(6, 0, 8)) && guard.allows(&frame(4, 0, 6)));
        for free in [frame(0, 0, 70_000), frame(1, 4, 12), frame(9, 0, 1), frame(8, 0, 4), frame(0, 1, 0)] {
            assert!(guard.allows(&free), "{:?}", &free[..HEAD]);
        }
        tokio::time::advance(WINDOW).await;
        assert!(guard.allows(&frame(3, 0, 4)), "a new window");
        for costly in [frame(0, 0, 0), frame(9, 0, 0), frame(2, 0, 5), frame(6, 1, 8), frame(77, 0, 0)] {
            let mut guard = self::guard();
            assert!(guard.allows(&costly) && guard.allows(&costly));
            assert!(!guard.allows(&costly), "{costly:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pieces_count_as_the_whole_does() {
        let mut all = vec![b'P'; PREFACE];
        for _ in 0..4 {
            all.extend(frame(0, 0, 300));
            all.extend(frame(3, 0, 4));
        }
        for piece in [1, 2, 7, 9, 10, 500] {
            let mut guard = FrameGuard::new(3, 2, Arc::new(Activity::new(1)));
            let denied = all.chunks(piece).filter(|piece| !guard.allows(piece)).count();
            assert!(denied > 0 && guard.resets == 4, "pieces of {piece}");
        }
    }
    /// What is written goes on a tick after the other, or not at all.
    #[test]
    fn a_response_that_was_handed_over_whole_and_is_not_taken_is_seen() {
        let activity = Arc::new(Activity::new(8));
        let mut guard = FrameGuard::new(3, 2, Arc::clone(&activity));
        let stuck = |activity: &Activity| [activity.tick(), activity.tick(), activity.tick()];
        let written = |guard: &mut FrameGuard, frames: &[Vec<u8>]| {
            frames.concat().chunks(5).for_each(|piece| guard.on_written(piece));
        };
        let whole = [frame(4, 0, 6), frame(1, 4, 20), frame(0, 0, 70_000), frame(0, 1, 10)];
        written(&mut guard, &whole);
        assert_eq!(stuck(&activity), [false; 3], "one that is over");
        written(&mut guard, &whole[..3]);
        assert!(!activity.tick() && !activity.tick(), "it may have been on its way just then");
        assert!(activity.tick());
        written(&mut guard, &[frame(0, 0, 1)]);
        assert!(activity.tick(), "a byte now and then is nothing");
        written(&mut guard, &[frame(0, 0, 1000), frame(0, 0, 1000)]);
        assert!(!activity.tick() && !activity.tick() && activity.tick());
        guard.on_write(&Poll::Pending, &[]);
        assert_eq!(stuck(&activity), [false; 3], "nothing is taken: it is not the window");
        guard.on_write(&Poll::Ready(Ok(0)), &[]);
        assert!(!activity.tick() && activity.tick());
        written(&mut guard, &whole[3..]);
        assert_eq!(stuck(&activity), [false; 3]);
        // either side may reset it, and a head that was on its way is no response any more
        for by in [true, false] {
            written(&mut guard, &whole[1..3]);
            match by {
                true => assert!(guard.allows(&[vec![b'P'; PREFACE], frame(3, 0, 4)].concat())),
                false => written(&mut guard, &[frame(3, 0, 4)]),
            }
            assert_eq!(stuck(&activity), [false; 3]);
        }
        activity.on_reset(1);
        written(&mut guard, &whole[1..3]);
        assert_eq!(stuck(&activity), [false; 3]);
    }
}
