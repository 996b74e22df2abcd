//! A response without its body as bytes, to be read again by the same process: times count from an instant of its own.

use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::{Meta, StaleFor};
use crate::vary::Selector;

/// Reads what was written, piece by piece; `None` where it is not what was written.
pub(crate) struct Reader(pub(crate) Bytes);

impl Reader {
    pub(crate) fn u64(&mut self) -> Option<u64> {
        (self.0.remaining() >= 8).then(|| self.0.get_u64())
    }

    pub(crate) fn take(&mut self, len: u64) -> Option<Bytes> {
        let len = usize::try_from(len).ok().filter(|len| *len <= self.0.len())?;
        Some(self.0.split_to(len))
    }

    pub(crate) fn bytes(&mut self) -> Option<Bytes> {
        let len = self.u64()?;
        self.take(len)
    }

    fn text(&mut self) -> Option<Box<str>> {
        std::str::from_utf8(&self.bytes()?).ok().map(Into::into)
    }

    fn duration(&mut self) -> Option<Duration> {
        let (seconds, nanos) = (self.u64()?, u32::try_from(self.u64()?).ok()?);
        (nanos < 1_000_000_000).then(|| Duration::new(seconds, nanos))
    }

    fn list<T>(&mut self, mut one: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.u64()?;
        // one takes 8 bytes at least, so a wrong count ends early
        (0..count).map(|_| one(self)).collect()
    }
}

pub(crate) fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_be_bytes());
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_u64(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_duration(out: &mut Vec<u8>, duration: Duration) {
    put_u64(out, duration.as_secs());
    put_u64(out, duration.subsec_nanos().into());
}

impl Meta {
    pub(crate) fn write(&self, start: Instant, out: &mut Vec<u8>) {
        let Self {
            status,
            headers,
            selectors,
            selection,
            tags,
            initial_age,
            lifetime,
            received,
            always_validate,
            stale,
        } = self;
        let StaleFor { forbidden, revalidating, failing } = stale;
        put_u64(out, status.as_u16().into());
        put_u64(out, headers.len() as u64);
        for (name, value) in headers {
            put_bytes(out, name.as_str().as_bytes());
            put_bytes(out, value.as_bytes());
        }
        put_u64(out, selectors.len() as u64);
        for selector in selectors {
            let (kind, name) = match selector {
                Selector::Field(name) => (0, name.as_str()),
                Selector::Cookie(name) => (1, &**name),
            };
            put_u64(out, kind);
            put_bytes(out, name.as_bytes());
        }
        put_bytes(out, selection);
        put_u64(out, tags.len() as u64);
        for tag in tags {
            put_bytes(out, tag.as_bytes());
        }
        let received = received.saturating_duration_since(start);
        for duration in [*initial_age, *lifetime, received, *revalidating, *failing] {
            put_duration(out, duration);
        }
        put_u64(out, u64::from(*always_validate) | u64::from(*forbidden) << 1);
    }

    pub(crate) fn read(start: Instant, input: &mut Reader) -> Option<Self> {
        let status = StatusCode::from_u16(u16::try_from(input.u64()?).ok()?).ok()?;
        let fields = input.list(|input| {
            let name = HeaderName::from_bytes(&input.bytes()?).ok()?;
            // a copy of its own: what is kept of a record is its body alone
            Some((name, HeaderValue::from_bytes(&input.bytes()?).ok()?))
        })?;
        let mut headers = HeaderMap::with_capacity(fields.len());
        for (name, value) in fields {
            headers.append(name, value);
        }
        let selectors = input.list(|input| match input.u64()? {
            0 => Some(Selector::Field(HeaderName::from_bytes(&input.bytes()?).ok()?)),
            1 => Some(Selector::Cookie(input.text()?)),
            _ => None,
        })?;
        let selection = Box::from(&*input.bytes()?);
        let tags = input.list(Reader::text)?;
        let (initial_age, lifetime, received) = (input.duration()?, input.duration()?, input.duration()?);
        let (revalidating, failing) = (input.duration()?, input.duration()?);
        let flags = input.u64()?;
        Some(Self {
            status,
            headers,
            selectors: selectors.into(),
            selection,
            tags: tags.into(),
            initial_age,
            lifetime,
            received: start.checked_add(received)?,
            always_validate: flags & 1 != 0,
            stale: StaleFor { forbidden: flags & 2 != 0, revalidating, failing },
        })
    }
}
