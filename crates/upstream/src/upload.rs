//! A request's body on its way out, whatever it is spoken in: held to its length, and kept as long as it may have to be
//! sent again.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Body;

use crate::{BoxError, h1::RequestFraming};

/// What a body gives next.
#[derive(Debug)]
pub(crate) enum Piece {
    /// Some of it, never empty; `true` with its last byte, after which nothing else comes.
    Data(Bytes, bool),
    /// What ends it.
    Trailers(HeaderMap),
    /// Its end.
    End,
}

/// A body in more pieces than this is not kept, however short it is.
const MAX_PIECES: usize = 256;

/// A request body and how much of it is taken.
#[derive(Debug)]
pub(crate) struct Upload<B> {
    body: B,
    /// Bytes to come, where the length is known.
    left: Option<u64>,
    /// What was taken, as long as it all is at hand.
    kept: Kept,
    /// How much of what was kept comes again, from the front.
    again: usize,
    taken: u64,
    ended: bool,
}

#[derive(Debug)]
enum Kept {
    /// Nothing was taken that would be missed.
    Pieces { pieces: Vec<Bytes>, bytes: usize, max: usize },
    /// Too much was, or something that is not kept.
    Lost,
}

impl<B> Upload<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    /// A body that is framed so, of which up to `keep` bytes are kept.
    pub(crate) fn new(body: B, framing: RequestFraming, keep: usize) -> Self {
        let left = match framing {
            RequestFraming::None => Some(0),
            RequestFraming::Length(length) => Some(length),
            RequestFraming::Chunked => None,
        };
        let kept = Kept::Pieces { pieces: Vec::new(), bytes: 0, max: keep };
        Self { body, left, kept, again: 0, taken: 0, ended: framing == RequestFraming::None }
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.ended && self.taken == 0
    }

    /// Whether it can be sent from its beginning.
    pub(crate) fn can_rewind(&self) -> bool {
        matches!(self.kept, Kept::Pieces { .. })
    }

    /// To its beginning, for another attempt.
    pub(crate) fn rewind(&mut self) {
        if let Kept::Pieces { pieces, .. } = &self.kept {
            self.again = pieces.len();
        }
    }

    /// Bytes that were taken from the client.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, BoxError>> {
        if self.again > 0
            && let Kept::Pieces { pieces, .. } = &self.kept
        {
            let piece = pieces[pieces.len() - self.again].clone();
            self.again -= 1;
            let last = self.again == 0 && self.ended;
            return Poll::Ready(Ok(Piece::Data(piece, last)));
        }
        if self.ended {
            return Poll::Ready(Ok(Piece::End));
        }
        loop {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None => return Poll::Ready(self.end().map(|()| Piece::End)),
                Some(Err(error)) => return Poll::Ready(Err(error.into())),
                Some(Ok(frame)) => frame,
            };
            match frame.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => return Poll::Ready(self.data(data)),
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        // they come once
                        self.kept = Kept::Lost;
                        return Poll::Ready(self.end().map(|()| Piece::Trailers(trailers)));
                    }
                }
            }
        }
    }

    fn data(&mut self, data: Bytes) -> Result<Piece, BoxError> {
        if let Some(left) = &mut self.left {
            let over = "its body is longer than its Content-Length";
            *left = left.checked_sub(data.len() as u64).ok_or(over)?;
            // with its last byte the body is at its end: no second look is needed
            self.ended = *left == 0;
        }
        self.taken += data.len() as u64;
        self.kept = match mem::replace(&mut self.kept, Kept::Lost) {
            Kept::Pieces { mut pieces, bytes, max }
                if bytes + data.len() <= max && pieces.len() < MAX_PIECES =>
            {
                pieces.push(data.clone());
                Kept::Pieces { pieces, bytes: bytes + data.len(), max }
            }
            _ => Kept::Lost,
        };
        Ok(Piece::Data(data, self.ended))
    }

    fn end(&mut self) -> Result<(), BoxError> {
        self.ended = true;
        match self.left {
            None | Some(0) => Ok(()),
            Some(_) => Err("its body is shorter than its Content-Length".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body::Frame;
    use portcullis_testkit::body::ScriptBody;
    use std::{future::poll_fn, io};

    async fn all<B>(upload: &mut Upload<B>) -> Result<String, BoxError>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<BoxError>,
    {
        let mut text = String::new();
        loop {
            match poll_fn(|cx| upload.poll(cx)).await? {
                Piece::Data(data, last) => {
                    text += std::str::from_utf8(&data).unwrap();
                    if last {
                        return Ok(text + "|");
                    }
                }
                Piece::Trailers(_) => return Ok(text + "|trailers"),
                Piece::End => return Ok(text + "|end"),
            }
        }
    }

    #[tokio::test]
    async fn what_is_kept_comes_again() {
        let body = ScriptBody::new().data("ab").pend().data("cd");
        let mut upload = Upload::new(body, RequestFraming::Length(4), 4);
        assert!(matches!(poll_fn(|cx| upload.poll(cx)).await, Ok(Piece::Data(data, false)) if data == "ab"));
        upload.rewind();
        assert_eq!(all(&mut upload).await.unwrap(), "abcd|");
        upload.rewind();
        assert_eq!(all(&mut upload).await.unwrap(), "abcd|");
        assert_eq!(upload.taken(), 4);
        let body = ScriptBody::new().data("ab").data("cd");
        let mut upload = Upload::new(body, RequestFraming::Chunked, 4);
        assert_eq!(all(&mut upload).await.unwrap(), "abcd|end");
        upload.rewind();
        assert_eq!(all(&mut upload).await.unwrap(), "abcd|");
    }

    #[tokio::test]
    async fn more_than_is_kept_is_lost_and_so_are_trailers() {
        let mut upload = Upload::new(ScriptBody::new().data("abc"), RequestFraming::Chunked, 2);
        assert!(upload.can_rewind());
        all(&mut upload).await.unwrap();
        assert!(!upload.can_rewind());
        let body = ScriptBody::new().data("a").trailers(HeaderMap::new());
        let mut upload = Upload::new(body, RequestFraming::Chunked, 9);
        assert_eq!(all(&mut upload).await.unwrap(), "a|trailers");
        assert!(!upload.can_rewind());
        let mut none = Upload::new(ScriptBody::new(), RequestFraming::None, 0);
        assert_eq!(all(&mut none).await.unwrap(), "|end");
        assert!(none.can_rewind());
    }

    #[tokio::test]
    async fn a_body_is_held_to_its_length() {
        for (length, ok) in [(3, true), (2, false), (4, false)] {
            let mut upload =
                Upload::new(ScriptBody::new().data("a").data("bc"), RequestFraming::Length(length), 9);
            assert_eq!(all(&mut upload).await.is_ok(), ok, "{length}");
        }
    }

    #[tokio::test]
    async fn frames_of_an_unknown_kind_and_empty_ones_are_passed_over() {
        let body =
            http_body_util::StreamBody::new(tokio_stream([Ok::<_, io::Error>(Frame::data(Bytes::new()))]));
        let mut upload = Upload::new(Box::pin(body), RequestFraming::Chunked, 9);
        assert_eq!(all(&mut upload).await.unwrap(), "|end");
    }

    fn tokio_stream<T: Unpin>(items: impl IntoIterator<Item = T>) -> impl futures_core::Stream<Item = T> {
        struct Iter<I>(I);
        impl<I: Iterator + Unpin> futures_core::Stream for Iter<I> {
            type Item = I::Item;
            fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<I::Item>> {
                Poll::Ready(self.0.next())
            }
        }
        Iter(items.into_iter().collect::<Vec<_>>().into_iter())
    }
}
