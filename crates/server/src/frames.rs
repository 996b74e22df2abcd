//! Counts the frames that an HTTP/2 client sends, where the protocol's driver sets no bound per time.
//!
//! What `h2` 0.4.20 bounds by itself, over the life of a connection: streams that are reset before they were taken up
//! (`max_pending_accept_reset_streams`), streams that this side was made to reset (`max_local_error_reset_streams`),
//! CONTINUATION frames of one head (by its size), empty DATA frames (100), the overhead of small DATA frames that wait
//! to be read, and a field list of more than four times the size allowed. It answers PING and SETTINGS one at a time and reads no
//! further until the answer is written, so they cost no memory, but they cost work; and a stream that was taken up and is then
//! reset costs the work behind it, as often as the client likes. These are counted here, over ten seconds each, so that a
//! long-lived connection earns no credit by its age.

use std::time::Duration;

use tokio::time::Instant;

/// The window of the budgets.
const WINDOW: Duration = Duration::from_secs(10);
/// RFC 9113 section 3.4.
const PREFACE: usize = 24;
/// RFC 9113 section 4.1.
const HEAD: usize = 9;

#[derive(Debug)]
pub(crate) struct FrameGuard {
    max_resets: u32,
    max_control: u32,
    since: Option<Instant>,
    resets: u32,
    control: u32,
    /// Bytes to pass over: of the preface, or of a payload.
    skip: usize,
    head: [u8; HEAD],
    filled: usize,
}

impl FrameGuard {
    pub(crate) fn new(max_resets: u32, max_control: u32) -> Self {
        Self {
            max_resets,
            max_control,
            since: None,
            resets: 0,
            control: 0,
            skip: PREFACE,
            head: [0; HEAD],
            filled: 0,
        }
    }

    /// Looks at what was read. Whether it is within the budgets.
    pub(crate) fn allows(&mut self, mut bytes: &[u8]) -> bool {
        let (resets, control) = (self.resets, self.control);
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = (HEAD - self.filled).min(bytes.len());
            self.head[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            if self.filled == HEAD {
                self.filled = 0;
                self.count();
            }
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

    fn count(&mut self) {
        let [a, b, c, kind, flags, ..] = self.head;
        self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        match (kind, self.skip) {
            // RST_STREAM
            (3, _) => self.resets = self.resets.saturating_add(1),
            // WINDOW_UPDATE: as many as there is data
            (8, _) => {}
            // DATA, HEADERS and CONTINUATION that carry something, or an end
            (0 | 1 | 9, 1..) => {}
            (0 | 1, 0) if flags & 1 != 0 => {}
            // PRIORITY, SETTINGS, PING, what is empty, and what nobody knows
            _ => self.control = self.control.saturating_add(1),
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
        let mut guard = FrameGuard::new(3, 2);
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
            let mut guard = FrameGuard::new(3, 2);
            let denied = all.chunks(piece).filter(|piece| !guard.allows(piece)).count();
            assert!(denied > 0 && guard.resets == 4, "pieces of {piece}");
        }
    }
}
