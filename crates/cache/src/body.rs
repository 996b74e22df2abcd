//! The response body that the layer gives.

use std::{
    error::Error,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::Sleep;

use crate::{
    flight::{BoxError, End, Read, Seat},
    store::{Stored, StoredBody},
};

/// Why a body broke off.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheBodyError {
    /// The inner service's body did; every client that was reading it gets this.
    #[error("the response's body broke off")]
    Inner(#[source] Arc<dyn Error + Send + Sync>),
    /// Others waited for this reader longer than [`crate::CacheRules::collapse_wait`], for a body too large to be stored.
    #[error("others waited for this reader for too long")]
    TooSlow,
}

impl CacheBodyError {
    fn inner(error: impl Into<BoxError>) -> Self {
        Self::Inner(error.into().into())
    }
}

pin_project! {
    /// A stored body, one that is on its way for several clients, or the inner service's.
    pub struct CacheBody<B> {
        #[pin]
        kind: Kind<B>,
    }
}

pin_project! {
    #[project = KindProj]
    enum Kind<B> {
        Stored { stored: Option<Arc<Stored>>, chunk: usize, skip: u64, left: u64 },
        Shared { shared: SharedBody },
        Passed { #[pin] body: B },
    }
}

/// A body on its way, or a part of it.
struct SharedBody {
    seat: Seat,
    skip: u64,
    /// `None` where nobody knows how much it will be.
    left: Option<u64>,
    /// A part ends where it ends; behind the last byte of the whole there may be trailers.
    part: bool,
    ended: bool,
    /// Runs while this waits for a slower reader.
    patience: Option<Pin<Box<Sleep>>>,
    wait: Duration,
}

impl<B> CacheBody<B> {
    pub(crate) fn empty() -> Self {
        Self { kind: Kind::Stored { stored: None, chunk: 0, skip: 0, left: 0 } }
    }

    /// `left` bytes from `skip` on.
    pub(crate) fn stored(stored: Arc<Stored>, skip: u64, left: u64) -> Self {
        Self { kind: Kind::Stored { stored: Some(stored), chunk: 0, skip, left } }
    }

    /// All of what is on its way, which is so long where somebody said.
    pub(crate) fn shared(seat: Seat, len: Option<u64>, wait: Duration) -> Self {
        let shared = SharedBody { seat, skip: 0, left: len, part: false, ended: false, patience: None, wait };
        Self { kind: Kind::Shared { shared } }
    }

    /// `left` bytes of it from `skip` on.
    pub(crate) fn shared_part(seat: Seat, skip: u64, left: u64, wait: Duration) -> Self {
        let left = Some(left);
        let shared = SharedBody { seat, skip, left, part: true, ended: false, patience: None, wait };
        Self { kind: Kind::Shared { shared } }
    }

    pub(crate) fn passed(body: B) -> Self {
        Self { kind: Kind::Passed { body } }
    }

    /// What is inside, for who has a form of his own for it: this type is made to be read, not to be kept.
    pub fn into_inner(self) -> CacheBodyInner<B> {
        match self.kind {
            Kind::Passed { body } => CacheBodyInner::Passed(body),
            Kind::Stored { stored, chunk: 0, skip, left } => match stored.as_deref().map(one_piece) {
                None => CacheBodyInner::Bytes(Bytes::new()),
                Some(Some(data)) => {
                    let (mut skip, mut left) = (skip, left);
                    CacheBodyInner::Bytes(cut(data, &mut skip, &mut left).unwrap_or_default())
                }
                Some(None) => {
                    CacheBodyInner::Other(Self { kind: Kind::Stored { stored, chunk: 0, skip, left } })
                }
            },
            kind => CacheBodyInner::Other(Self { kind }),
        }
    }

    /// The place in the flight, where it is on its way into the store.
    pub(crate) fn into_seat(self) -> Option<Seat> {
        match self.kind {
            Kind::Shared { shared } => Some(shared.seat),
            _ => None,
        }
    }

    /// Whether the whole body is in memory.
    pub fn is_stored(&self) -> bool {
        matches!(self.kind, Kind::Stored { .. })
    }
}

/// What a [`CacheBody`] comes to.
#[derive(Debug)]
pub enum CacheBodyInner<B> {
    /// The inner service's body, as it is.
    Passed(B),
    /// All of it.
    Bytes(Bytes),
    /// In several pieces, or on its way.
    Other(CacheBody<B>),
}

fn one_piece(stored: &Stored) -> Option<&Bytes> {
    match &*stored.body.chunks {
        [data] => Some(data),
        _ => None,
    }
}

impl<B> fmt::Debug for CacheBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheBody").field("stored", &self.is_stored()).finish_non_exhaustive()
    }
}

impl<B> Body for CacheBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = CacheBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CacheBodyError>>> {
        match self.project().kind.project() {
            KindProj::Stored { stored, chunk, skip, left } => {
                let Some(Stored { body: StoredBody { chunks, .. }, .. }) = stored.as_deref() else {
                    return Poll::Ready(None);
                };
                while let Some(data) = chunks.get(*chunk).filter(|_| *left > 0) {
                    *chunk += 1;
                    if let Some(data) = cut(data, skip, left) {
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                }
                Poll::Ready(None)
            }
            KindProj::Shared { shared } => shared.poll_frame(cx),
            KindProj::Passed { body } => body.poll_frame(cx).map_err(CacheBodyError::inner),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Stored { left, .. } => *left == 0,
            Kind::Shared { shared } => shared.is_done() || shared.seat.is_at_end(),
            Kind::Passed { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Stored { left, .. } => SizeHint::with_exact(*left),
            Kind::Shared { shared } => shared.left.map_or_else(SizeHint::default, SizeHint::with_exact),
            Kind::Passed { body } => body.size_hint(),
        }
    }
}

/// What of a piece is within the part.
fn cut(data: &Bytes, skip: &mut u64, left: &mut u64) -> Option<Bytes> {
    let len = data.len() as u64;
    let start = (*skip).min(len);
    *skip -= start;
    let end = len.min(start.saturating_add(*left));
    *left -= end - start;
    // Both are at most the length of the piece.
    let (start, end) = (usize::try_from(start).ok()?, usize::try_from(end).ok()?);
    (start < end).then(|| data.slice(start..end))
}

impl SharedBody {
    fn is_done(&self) -> bool {
        self.ended || (self.part && self.left == Some(0))
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CacheBodyError>>> {
        loop {
            if self.is_done() {
                return Poll::Ready(None);
            }
            let mut blocked = false;
            let read = match self.seat.poll_read(cx, &mut blocked) {
                Poll::Ready(read) => read,
                Poll::Pending if blocked => {
                    let wait = self.wait;
                    if self.patience.is_none() && tokio::runtime::Handle::try_current().is_err() {
                        // Without a clock nobody is waited for.
                        self.seat.cut_slowest();
                        continue;
                    }
                    let patience = self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(wait)));
                    ready!(patience.as_mut().poll(cx));
                    self.patience = None;
                    self.seat.cut_slowest();
                    continue;
                }
                Poll::Pending => return Poll::Pending,
            };
            self.patience = None;
            match read {
                Read::Data(data) => {
                    let mut unknown = u64::MAX;
                    let left = self.left.as_mut().unwrap_or(&mut unknown);
                    // More than was announced is not passed on, nor waited for.
                    self.ended = *left == 0;
                    if let Some(data) = cut(&data, &mut self.skip, left) {
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                }
                Read::End(End::Done) => return Poll::Ready(None),
                Read::End(End::Trailers(trailers)) => {
                    // Once.
                    self.ended = true;
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                Read::End(End::Broken(error)) => {
                    return Poll::Ready(Some(Err(CacheBodyError::Inner(error))));
                }
                Read::Cut => return Poll::Ready(Some(Err(CacheBodyError::TooSlow))),
            }
        }
    }
}
