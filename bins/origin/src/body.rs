//! The one body type of every answer.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

const PIECE: usize = 64 * 1024;
static FILLER: [u8; PIECE] = filler();

/// Printable and of a length that no power of two divides, so that a lost or doubled piece shows.
const fn filler() -> [u8; PIECE] {
    let mut bytes = [0; PIECE];
    let mut at = 0;
    while at < PIECE {
        bytes[at] = b'!' + (at % 89) as u8;
        at += 1;
    }
    bytes
}

/// A response body.
pub(crate) enum OriginBody {
    /// One piece.
    Full(Option<Bytes>),
    /// Filler, 64 KiB at a time.
    Filler { left: u64, announced: bool },
    /// The request's own body.
    Echo(Incoming),
}

impl OriginBody {
    /// A short body.
    pub(crate) fn full(bytes: impl Into<Bytes>) -> Self {
        Self::Full(Some(bytes.into()))
    }

    /// `len` bytes of filler whose length is announced.
    pub(crate) fn filler(len: u64) -> Self {
        match usize::try_from(len) {
            Ok(len) if len <= PIECE => Self::Full(Some(Bytes::from_static(&FILLER[..len]))),
            _ => Self::Filler { left: len, announced: true },
        }
    }

    /// `len` bytes of filler whose length is not announced.
    pub(crate) fn unannounced(len: u64) -> Self {
        Self::Filler { left: len, announced: false }
    }
}

impl Body for OriginBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Filler { left: 0, .. } => Poll::Ready(None),
            Self::Filler { left, .. } => {
                let len = usize::try_from(*left).map_or(PIECE, |left| left.min(PIECE));
                *left -= len as u64;
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&FILLER[..len])))))
            }
            Self::Echo(incoming) => Pin::new(incoming).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Filler { left, .. } => *left == 0,
            Self::Echo(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Filler { left, announced: true } => SizeHint::with_exact(*left),
            // an exact hint would make hyper announce the length
            Self::Filler { .. } => SizeHint::new(),
            Self::Echo(incoming) => incoming.size_hint(),
        }
    }
}
