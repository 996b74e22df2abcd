//! Interim responses over HTTP/1 (RFC 9110 section 15.2), which hyper does not send: they wait here, and [`crate::wire::Wire`] writes them when
//! hyper has nothing in its buffers.

use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use http::{HeaderName, HeaderValue, StatusCode};
use parking_lot::Mutex;
use portcullis_conn::InterimSink;

use crate::state::ConnState;

/// Bytes that wait at most, so that a client that does not read costs no more.
const MAX_WAITING: usize = 64 << 10;

/// Those of one connection.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    /// The request that waits for its response, by its number; 0 if none does.
    request: AtomicU64,
    any: AtomicBool,
    bytes: Mutex<Vec<u8>>,
}

impl Waiting {
    /// From now on, those of this request may be sent.
    pub(crate) fn open(&self, request: u64) {
        self.request.store(request, Relaxed);
    }

    /// Its response is there, or nobody waits for it any more: what comes now comes too late.
    pub(crate) fn close(&self) {
        // under the lock, so that nothing is pushed behind this
        let _bytes = self.bytes.lock();
        self.request.store(0, Relaxed);
    }

    /// Whether some were not written to their end.
    pub(crate) fn any(&self) -> bool {
        self.any.load(Acquire)
    }

    /// What is to be written; it counts as waiting until [`Self::written`].
    pub(crate) fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.bytes.lock())
    }

    /// What was taken is written. Says whether that was all.
    pub(crate) fn written(&self) -> bool {
        let bytes = self.bytes.lock();
        if bytes.is_empty() {
            self.any.store(false, Release);
        }
        bytes.is_empty()
    }

    fn push(&self, request: u64, status: u16, fields: &mut dyn Iterator<Item = (&str, &[u8])>) -> Option<()> {
        // 100 is hyper's own matter, and after 101 there is no response
        let status =
            StatusCode::from_u16(status).ok().filter(|status| (102..200).contains(&status.as_u16()))?;
        let mut head = Vec::with_capacity(256);
        head.extend_from_slice(b"HTTP/1.1 ");
        head.extend_from_slice(status.as_str().as_bytes());
        head.push(b' ');
        head.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
        head.extend_from_slice(b"\r\n");
        for (name, value) in fields {
            // whoever made them: no field ends a line or the head
            HeaderName::from_bytes(name.as_bytes()).ok()?;
            HeaderValue::from_bytes(value).ok()?;
            for part in [name.as_bytes(), b": ", value, b"\r\n"] {
                head.extend_from_slice(part);
            }
        }
        head.extend_from_slice(b"\r\n");
        let mut bytes = self.bytes.lock();
        if request == 0 || self.request.load(Relaxed) != request || bytes.len() + head.len() > MAX_WAITING {
            return None;
        }
        bytes.append(&mut head);
        self.any.store(true, Release);
        Some(())
    }
}

impl InterimSink for ConnState {
    fn send(&self, request: u64, status: u16, fields: &mut dyn Iterator<Item = (&str, &[u8])>) -> bool {
        self.interim.push(request, status, fields).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(waiting: &Waiting, request: u64, status: u16, field: (&str, &[u8])) -> bool {
        waiting.push(request, status, &mut std::iter::once(field)).is_some()
    }

    #[test]
    fn only_those_of_the_request_that_waits() {
        let waiting = Waiting::default();
        let link: (&str, &[u8]) = ("link", b"</a>");
        assert!(!push(&waiting, 0, 103, link) && !push(&waiting, 1, 103, link));
        waiting.open(2);
        assert!(!push(&waiting, 1, 103, link) && !push(&waiting, 3, 103, link));
        for status in [0, 99, 100, 101, 200, 1000] {
            assert!(!push(&waiting, 2, status, link), "{status}");
        }
        for field in [("a b", &b""[..]), ("", b"x"), ("a", b"b\r\nc: d"), ("a", b"\0")] {
            assert!(!push(&waiting, 2, 103, field), "{field:?}");
        }
        assert!(!waiting.any());
        assert!(push(&waiting, 2, 103, link) && push(&waiting, 2, 102, ("a", b"\xff")) && waiting.any());
        let want =
            b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\na: \xff\r\n\r\n";
        assert_eq!(waiting.take(), want);
        assert!(waiting.any() && push(&waiting, 2, 103, link) && !waiting.written() && waiting.any());
        waiting.close();
        assert!(!push(&waiting, 2, 103, link));
        waiting.take();
        assert!(waiting.written() && !waiting.any());
    }

    #[test]
    fn what_waits_is_bounded() {
        let waiting = Waiting::default();
        waiting.open(1);
        let value = vec![b'a'; 1000];
        let sent = (0..1000).take_while(|_| push(&waiting, 1, 103, ("a", &value))).count();
        assert!((60..65).contains(&sent), "{sent}");
        assert!(waiting.take().len() <= MAX_WAITING);
    }
}
