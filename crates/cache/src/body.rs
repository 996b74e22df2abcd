//! The response body that the layer gives.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::fill::Fill;

pin_project! {
    /// A stored body, or the inner service's, which is copied on its way if it is to be stored.
    pub struct CacheBody<B> {
        #[pin]
        kind: Kind<B>,
    }
}

pin_project! {
    #[project = KindProj]
    enum Kind<B> {
        Stored { data: Bytes },
        Streamed { #[pin] body: B, fill: Option<Box<Fill>> },
    }
}

impl<B> CacheBody<B> {
    pub(crate) fn stored(data: Bytes) -> Self {
        Self { kind: Kind::Stored { data } }
    }

    pub(crate) fn passed(body: B) -> Self {
        Self { kind: Kind::Streamed { body, fill: None } }
    }

    /// Whether the whole body is in memory.
    pub fn is_stored(&self) -> bool {
        matches!(self.kind, Kind::Stored { .. })
    }
}

impl<B: Body> CacheBody<B> {
    /// A body without a frame is stored at once, since nobody may ever poll it.
    pub(crate) fn filled(body: B, fill: Fill) -> Self {
        let mut fill = Some(Box::new(fill));
        if body.is_end_stream() {
            finish(&mut fill);
        }
        Self { kind: Kind::Streamed { body, fill } }
    }
}

impl<B> std::fmt::Debug for CacheBody<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CacheBody").field("stored", &self.is_stored()).finish_non_exhaustive()
    }
}

impl<B> Body for CacheBody<B>
where
    B: Body<Data = Bytes>,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().kind.project() {
            KindProj::Stored { data } => {
                let data = std::mem::take(data);
                Poll::Ready((!data.is_empty()).then(|| Ok(Frame::data(data))))
            }
            KindProj::Streamed { mut body, fill } => {
                let frame = ready!(body.as_mut().poll_frame(cx));
                if fill.is_some() {
                    match &frame {
                        None => finish(fill),
                        Some(Ok(frame)) => {
                            let kept = match (frame.data_ref(), fill.as_mut()) {
                                (Some(data), Some(fill)) => fill.push(data),
                                // Trailers may say that the body is not what it should be.
                                _ => false,
                            };
                            if !kept {
                                *fill = None;
                            } else if body.is_end_stream() {
                                // hyper does not poll again for the end.
                                finish(fill);
                            }
                        }
                        Some(Err(_)) => *fill = None,
                    }
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Stored { data } => data.is_empty(),
            Kind::Streamed { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Stored { data } => SizeHint::with_exact(data.len() as u64),
            Kind::Streamed { body, .. } => body.size_hint(),
        }
    }
}

fn finish(fill: &mut Option<Box<Fill>>) {
    if let Some(fill) = fill.take() {
        fill.finish();
    }
}
