//! Priorities (RFC 9218).

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use http::HeaderMap;

use crate::side::Side;

/// How urgent a response is, and whether it is of use in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Priority {
    /// From 0, the most urgent, to 7.
    urgency: u8,
    incremental: bool,
}

impl Default for Priority {
    /// RFC 9218 section 4.
    fn default() -> Self {
        Self { urgency: 3, incremental: false }
    }
}

/// Requests that are told apart in the order of their coming; later ones share the last place.
const PLACES: u64 = 1 << 24;

impl Priority {
    /// What the `Priority` fields of a request say; the defaults without one.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        Self::default().with(headers)
    }

    /// The same with what the fields say instead (section 8: a response may say more than its request).
    pub(crate) fn with(self, headers: &HeaderMap) -> Self {
        headers.get_all(NAME).iter().fold(self, |priority, value| priority.updated(value.as_bytes()))
    }

    /// A structured dictionary (RFC 9651 section 3.2): members that are unknown or out of range are ignored (section 4).
    pub(crate) fn updated(mut self, value: &[u8]) -> Self {
        for member in value.split(|byte| *byte == b',') {
            // parameters of a member mean nothing here
            let member = member.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
            match member {
                [b'u', b'=', digit @ b'0'..=b'7'] => self.urgency = digit - b'0',
                b"i" | b"i=?1" => self.incremental = true,
                b"i=?0" => self.incremental = false,
                _ => {}
            }
        }
        self
    }

    /// For QUIC, where the higher goes first and equals take turns. Within an urgency the responses that are of use in parts
    /// share the way; of the others one after the other is sent, in the order of the requests (section 10).
    pub(crate) fn of_stream(self, id: u64) -> i32 {
        let level = (3 - i32::from(self.urgency)) * (PLACES as i32 * 2);
        if self.incremental {
            return level;
        }
        // cannot truncate: below 2^24
        level - 1 - (id / 4).min(PLACES - 1) as i32
    }
}

/// Updates (section 7) that came before their response was long, or before their request: the last ones count.
const EARLY_MAX: usize = 64;

/// The long responses of a connection, and what clients said of others.
///
/// QUIC sends by priority what it was given, but it takes no more than `send_window`, and who has filled that is not asked. So a
/// response lets those before it write first.
#[derive(Debug, Default)]
pub(crate) struct Priorities {
    known: Mutex<Known>,
    /// How many long ones there are, for those that are alone.
    long: AtomicUsize,
}

#[derive(Debug, Default)]
struct Known {
    long: Vec<Long>,
    early: VecDeque<(u64, Vec<u8>)>,
}

#[derive(Debug)]
struct Long {
    id: u64,
    place: i32,
    side: Arc<Side>,
}

/// Bytes of an early update that are kept: `u=0, i` takes 6.
const UPDATE_MAX: usize = 64;

impl Priorities {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A response turned out to be long: its place for QUIC. It is told of updates until it leaves. They are as many as there
    /// are requests open.
    pub(crate) fn enter(&self, id: u64, mut priority: Priority, side: &Arc<Side>) -> i32 {
        let mut known = self.known();
        if let Some(place) = known.early.iter().rposition(|(early, _)| *early == id)
            && let Some((_, update)) = known.early.remove(place)
        {
            // section 7: the frame overrides the field
            priority = Priority::default().updated(&update);
        }
        let place = priority.of_stream(id);
        known.long.push(Long { id, place, side: Arc::clone(side) });
        self.long.store(known.long.len(), Ordering::Relaxed);
        place
    }

    pub(crate) fn leave(&self, id: u64) {
        let mut known = self.known();
        known.long.retain(|long| long.id != id);
        self.long.store(known.long.len(), Ordering::Relaxed);
    }

    /// Whether another one that waits for room to write comes first.
    pub(crate) fn is_behind(&self, place: i32) -> bool {
        self.long.load(Ordering::Relaxed) > 1
            && self.known().long.iter().any(|long| long.place > place && long.side.waits())
    }

    /// A PRIORITY_UPDATE frame.
    pub(crate) fn update(&self, id: u64, value: &[u8]) {
        let mut known = self.known();
        if let Some(long) = known.long.iter_mut().find(|long| long.id == id) {
            long.place = Priority::default().updated(value).of_stream(id);
            long.side.reprioritize(long.place);
            return;
        }
        if known.early.len() >= EARLY_MAX {
            known.early.pop_front();
        }
        known.early.push_back((id, value[..value.len().min(UPDATE_MAX)].to_vec()));
    }
}

const NAME: http::HeaderName = http::HeaderName::from_static("priority");

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> (u8, bool) {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append("priority", line.parse().unwrap());
        }
        let priority = Priority::of(&headers);
        (priority.urgency, priority.incremental)
    }

    #[test]
    fn fields() {
        for (lines, expected) in [
            (&[][..], (3, false)),
            (&["u=0"], (0, false)),
            (&["u=5, i"], (5, true)),
            (&["i, u=7"], (7, true)),
            (&["i=?0"], (3, false)),
            (&["i=?1;x=1 , u=2;y"], (2, true)),
            // RFC 9218 section 4: out of range or of another type means the default
            (&["u=8"], (3, false)),
            (&["u=-1, i=1"], (3, false)),
            (&["u=1", "u=2"], (2, false)),
            (&["", ",,", "u", "=", "urgency=1"], (3, false)),
        ] {
            assert_eq!(read(lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn urgent_before_incremental_before_the_rest_in_order() {
        let of = |text: &str, id| Priority::default().updated(text.as_bytes()).of_stream(id);
        let order = [
            of("u=0", 400),
            of("i", 4),
            of("u=3", 0),
            of("u=3", 4),
            of("u=3", u64::MAX >> 2),
            of("u=4, i", 0),
            of("u=7", 0),
        ];
        assert!(order.is_sorted_by(|a, b| a > b), "{order:?}");
        assert_eq!(of("i", 4), of("i", 8));
        assert!(of("u=7", u64::MAX >> 2) > i32::MIN);
    }

    #[test]
    fn a_response_says_more() {
        let mut headers = HeaderMap::new();
        headers.insert("priority", "u=1".parse().unwrap());
        let asked = Priority::default().updated(b"u=5, i");
        assert_eq!(asked.with(&headers), Priority { urgency: 1, incremental: true });
    }
}
