//! The one body type of an edge.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};

use crate::{BoxError, connect::UpstreamIo};

/// A request or response body on its way through an edge. The kinds that every request meets are held as they are;
/// only a foreign body is boxed.
pub struct Body(Kind);

enum Kind {
    Bytes(Option<Bytes>),
    Http(portcullis_server::RequestBody),
    Quic(Box<portcullis_h3::RecvBody>),
    Upstream(portcullis_upstream::Body<Body, UpstreamIo>),
    Boxed(UnsyncBoxBody<Bytes, BoxError>),
}

impl Body {
    /// Holds any body.
    pub fn new<B>(body: B) -> Self
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Self(Kind::Boxed(body.map_err(Into::into).boxed_unsync()))
    }

    /// No body.
    pub const fn empty() -> Self {
        Self(Kind::Bytes(None))
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::empty()
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self(Kind::Bytes((!bytes.is_empty()).then_some(bytes)))
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Bytes::from_static(text.as_bytes()).into()
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

impl From<portcullis_server::RequestBody> for Body {
    fn from(body: portcullis_server::RequestBody) -> Self {
        Self(Kind::Http(body))
    }
}

impl From<portcullis_h3::RecvBody> for Body {
    fn from(body: portcullis_h3::RecvBody) -> Self {
        Self(Kind::Quic(Box::new(body)))
    }
}

impl From<portcullis_upstream::Body<Body, UpstreamIo>> for Body {
    fn from(body: portcullis_upstream::Body<Body, UpstreamIo>) -> Self {
        Self(Kind::Upstream(body))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.0 {
            Kind::Bytes(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Http(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Kind::Quic(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Kind::Upstream(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Kind::Boxed(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Bytes(bytes) => bytes.is_none(),
            Kind::Http(body) => body.is_end_stream(),
            Kind::Quic(body) => body.is_end_stream(),
            Kind::Upstream(body) => body.is_end_stream(),
            Kind::Boxed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Bytes(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Kind::Http(body) => body.size_hint(),
            Kind::Quic(body) => body.size_hint(),
            Kind::Upstream(body) => body.size_hint(),
            Kind::Boxed(body) => body.size_hint(),
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            Kind::Bytes(_) => "Body::Bytes",
            Kind::Http(_) => "Body::Http",
            Kind::Quic(_) => "Body::Quic",
            Kind::Upstream(_) => "Body::Upstream",
            Kind::Boxed(_) => "Body::Boxed",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body::Body as _;

    #[tokio::test]
    async fn bytes_come_out_once_and_their_length_is_known() {
        let body = Body::from("abc");
        assert_eq!(body.size_hint().exact(), Some(3));
        assert!(!body.is_end_stream());
        assert_eq!(body.collect().await.unwrap().to_bytes(), "abc");
        assert!(Body::from(Bytes::new()).is_end_stream());
        assert_eq!(Body::empty().size_hint().exact(), Some(0));
    }

    #[tokio::test]
    async fn a_foreign_body_keeps_its_hints() {
        let body = Body::new(http_body_util::Full::new(Bytes::from("abcd")));
        assert_eq!(body.size_hint().exact(), Some(4));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "abcd");
    }
}
