//! The origin's body, whatever its type.

use std::{
    error::Error,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame};
use pin_project_lite::pin_project;

pub(crate) type BoxError = Box<dyn Error + Send + Sync>;

/// The origin's body.
pub(super) trait Source: Send {
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>>;
    fn is_end(&self) -> bool;
}

pub(super) type Pinned = Pin<Box<dyn Source>>;

pin_project! {
    pub(super) struct BodySource<B> {
        #[pin]
        pub(super) body: B,
    }
}

impl<B> Source for BodySource<B>
where
    B: Body<Data = Bytes> + Send,
    B::Error: Into<BoxError>,
{
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.project().body.poll_frame(cx).map_err(Into::into)
    }

    fn is_end(&self) -> bool {
        self.body.is_end_stream()
    }
}
