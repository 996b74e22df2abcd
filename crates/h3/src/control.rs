//! The peer's unidirectional streams (RFC 9114 section 6.2): control, and those of QPACK (RFC 9204 section 4.2).

use std::{
    future::poll_fn,
    mem,
    pin::pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes, BytesMut};

use crate::{
    codes,
    frame::{
        CANCEL_PUSH, DATA, GOAWAY, HEADERS, MAX_PUSH_ID, PRIORITY_UPDATE_PUSH, PRIORITY_UPDATE_REQUEST,
        PUSH_PROMISE, SETTINGS, StreamFault, varint,
    },
    qpack::decode::integer,
    quic::{Quic, ReadFault, RecvHalf},
    settings::Settings,
};

/// RFC 9114 section 6.2.1.
pub(crate) const CONTROL_STREAM: u64 = 0x00;
/// Bounds a frame on the control stream: settings and priorities are short.
const FRAME_MAX: u64 = 16 * 1024;
/// Streams whose type is not known yet; QUIC's own bound on open streams is below it.
const UNTYPED_MAX: usize = 256;
/// Chunks read at a time.
const BATCH: usize = 4;

/// Which end of the connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Server,
    #[cfg(feature = "client")]
    Client,
}

/// What the control stream brings.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Settings(Settings),
    /// No request from this id on is served (to a client), or no push (to a server).
    GoAway(u64),
    /// The request stream and its new `Priority` (RFC 9218 section 7.2).
    Priority(u64, Bytes),
}

/// Reads the streams until the connection is lost (`Ok`) or has to be closed. `heed` gets the commands in their order and may
/// refuse one.
pub(crate) async fn read<Q: Quic>(
    quic: &Q,
    role: Role,
    mut heed: impl FnMut(Command) -> Result<(), StreamFault>,
) -> Result<(), StreamFault> {
    let mut streams = Streams::<Q::Recv> { role, untyped: Vec::new(), critical: [const { None }; 3] };
    let mut accept = pin!(quic.accept_uni());
    poll_fn(|cx| {
        while let Poll::Ready(accepted) = accept.as_mut().poll(cx) {
            accept.set(quic.accept_uni());
            match accepted {
                Ok(recv) => streams.add(recv)?,
                Err(_) => return Poll::Ready(Ok(())),
            }
        }
        streams.poll(cx, &mut heed)
    })
    .await
}

/// What a stream of a peer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Control = 0,
    Encoder = 1,
    Decoder = 2,
}

struct Untyped<R> {
    recv: R,
    header: [u8; 8],
    have: usize,
}

struct Streams<R> {
    role: Role,
    untyped: Vec<Untyped<R>>,
    /// In the order of [`Kind`].
    critical: [Option<Critical<R>>; 3],
}

struct Critical<R> {
    recv: R,
    reader: Reader,
}

impl<R: RecvHalf> Streams<R> {
    fn add(&mut self, recv: R) -> Result<(), StreamFault> {
        if self.untyped.len() >= UNTYPED_MAX {
            return Err(StreamFault::Connection(codes::EXCESSIVE_LOAD, "too many streams without a type"));
        }
        self.untyped.push(Untyped { recv, header: [0; 8], have: 0 });
        Ok(())
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        heed: &mut impl FnMut(Command) -> Result<(), StreamFault>,
    ) -> Poll<Result<(), StreamFault>> {
        for mut untyped in mem::take(&mut self.untyped) {
            match untyped.poll_type(cx) {
                Poll::Pending => self.untyped.push(untyped),
                Poll::Ready(None) => {}
                Poll::Ready(Some((kind, rest))) => self.typed(kind, untyped.recv, &rest, heed)?,
            }
        }
        for (place, critical) in self.critical.iter_mut().enumerate() {
            let Some(stream) = critical else { continue };
            match stream.poll(cx, heed) {
                Ok(()) => {}
                // the accept loop sees the same
                Err(StreamFault::Lost(_)) => *critical = None,
                Err(fault) => {
                    tracing::trace!(place, %fault, "a critical stream failed");
                    return Poll::Ready(Err(fault));
                }
            }
        }
        Poll::Pending
    }

    fn typed(
        &mut self,
        kind: u64,
        mut recv: R,
        rest: &[u8],
        heed: &mut impl FnMut(Command) -> Result<(), StreamFault>,
    ) -> Result<(), StreamFault> {
        let kind = match kind {
            CONTROL_STREAM => Kind::Control,
            0x02 => Kind::Encoder,
            0x03 => Kind::Decoder,
            // a push stream: only a server may open one, and only where we allowed it
            0x01 => {
                let code = match self.role {
                    Role::Server => codes::STREAM_CREATION_ERROR,
                    #[cfg(feature = "client")]
                    Role::Client => codes::ID_ERROR,
                };
                return Err(StreamFault::Connection(code, "a push stream"));
            }
            // section 6.2: unknown ones are given up
            _ => {
                recv.stop(codes::STREAM_CREATION_ERROR);
                return Ok(());
            }
        };
        let place = &mut self.critical[kind as usize];
        if place.is_some() {
            return Err(StreamFault::Connection(
                codes::STREAM_CREATION_ERROR,
                "a second stream of a kind that is alone",
            ));
        }
        let mut reader = Reader::new(kind, self.role);
        reader.feed(rest, heed)?;
        *place = Some(Critical { recv, reader });
        Ok(())
    }
}

impl<R: RecvHalf> Untyped<R> {
    /// The type and what came behind it; `None` if the stream ended before.
    fn poll_type(&mut self, cx: &mut Context<'_>) -> Poll<Option<(u64, BytesMut)>> {
        loop {
            let mut chunk = [Bytes::new()];
            match self.recv.poll_read(cx, &mut chunk) {
                Poll::Pending => return Poll::Pending,
                // section 6.2: a stream may end or be reset before its type
                Poll::Ready(Ok(None) | Err(_)) => return Poll::Ready(None),
                Poll::Ready(Ok(Some(_))) => {}
            }
            let [mut bytes] = chunk;
            while bytes.has_remaining() && self.have < self.header.len() {
                self.header[self.have] = bytes.get_u8();
                self.have += 1;
                if let Some((kind, _)) = varint(&self.header[..self.have]) {
                    return Poll::Ready(Some((kind, BytesMut::from(&bytes[..]))));
                }
            }
        }
    }
}

impl<R: RecvHalf> Critical<R> {
    /// An error when the connection has to be closed.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        heed: &mut impl FnMut(Command) -> Result<(), StreamFault>,
    ) -> Result<(), StreamFault> {
        loop {
            let mut chunks = [const { Bytes::new() }; BATCH];
            match self.recv.poll_read(cx, &mut chunks) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(Some(filled))) => {
                    for chunk in &chunks[..filled] {
                        self.reader.feed(chunk, heed)?;
                    }
                }
                Poll::Ready(Err(ReadFault::Lost(lost))) => return Err(StreamFault::Lost(lost)),
                Poll::Ready(Ok(None) | Err(ReadFault::Reset(_))) => {
                    return Err(StreamFault::Connection(
                        codes::CLOSED_CRITICAL_STREAM,
                        "a stream ended that must not",
                    ));
                }
            }
        }
    }
}

/// Reads one stream, whose bytes come in any pieces.
struct Reader {
    kind: Kind,
    role: Role,
    /// What is not complete yet: a frame, or an instruction.
    held: BytesMut,
    /// Bytes of an unknown frame that are passed over.
    skip: u64,
    settled: bool,
    /// The last GOAWAY.
    goaway: Option<u64>,
    max_push: Option<u64>,
}

impl Reader {
    fn new(kind: Kind, role: Role) -> Self {
        Self { kind, role, held: BytesMut::new(), skip: 0, settled: false, goaway: None, max_push: None }
    }

    fn feed(
        &mut self,
        mut bytes: &[u8],
        heed: &mut impl FnMut(Command) -> Result<(), StreamFault>,
    ) -> Result<(), StreamFault> {
        match self.kind {
            Kind::Control => {}
            Kind::Encoder => return self.encoder(bytes),
            // nothing of ours refers to a dynamic table, so there is nothing to acknowledge but cancelled streams
            Kind::Decoder => return self.decoder(bytes),
        }
        // cannot truncate: at most what is there
        let skipped = self.skip.min(bytes.len() as u64) as usize;
        self.skip -= skipped as u64;
        bytes = &bytes[skipped..];
        self.held.extend_from_slice(bytes);
        while let Some((frame, length, header)) = header(&self.held) {
            if !self.settled && frame != SETTINGS {
                return Err(StreamFault::Connection(codes::MISSING_SETTINGS, "a frame before the settings"));
            }
            self.check(frame)?;
            if length > FRAME_MAX {
                return Err(StreamFault::Connection(
                    codes::EXCESSIVE_LOAD,
                    "a frame on the control stream was longer than allowed",
                ));
            }
            if !is_known(frame) {
                self.held.advance(header);
                let there = length.min(self.held.len() as u64);
                self.held.advance(there as usize);
                self.skip = length - there;
                continue;
            }
            // cannot truncate: below the bound
            let whole = header + length as usize;
            if self.held.len() < whole {
                return Ok(());
            }
            let payload = self.held.split_to(whole).freeze().slice(header..);
            self.heed(frame, &payload, heed)?;
        }
        Ok(())
    }

    /// RFC 9114 section 7.2: what may come here.
    fn check(&self, frame: u64) -> Result<(), StreamFault> {
        let unexpected = match frame {
            DATA | HEADERS | PUSH_PROMISE | 0x02 | 0x06 | 0x08 | 0x09 => true,
            SETTINGS => self.settled,
            MAX_PUSH_ID | PRIORITY_UPDATE_REQUEST | PRIORITY_UPDATE_PUSH => self.role != Role::Server,
            _ => false,
        };
        if unexpected {
            return Err(StreamFault::Connection(codes::FRAME_UNEXPECTED, "a frame stood where it must not"));
        }
        Ok(())
    }

    fn heed(
        &mut self,
        frame: u64,
        payload: &Bytes,
        heed: &mut impl FnMut(Command) -> Result<(), StreamFault>,
    ) -> Result<(), StreamFault> {
        let id_error = |what| Err(StreamFault::Connection(codes::ID_ERROR, what));
        match frame {
            SETTINGS => {
                self.settled = true;
                heed(Command::Settings(Settings::decode(payload)?))
            }
            GOAWAY => {
                let id = whole_varint(payload)?;
                // section 5.2: it may only go down, and to a client it is the id of a request
                if self.goaway.is_some_and(|before| id > before) {
                    return id_error("a goaway that goes up");
                }
                if self.role != Role::Server && id % 4 != 0 {
                    return id_error("a goaway to no request");
                }
                self.goaway = Some(id);
                heed(Command::GoAway(id))
            }
            MAX_PUSH_ID => {
                let id = whole_varint(payload)?;
                // section 7.2.7
                if self.max_push.is_some_and(|before| id < before) {
                    return id_error("a maximum of pushes that goes down");
                }
                self.max_push = Some(id);
                Ok(())
            }
            // section 7.2.3: of a push that was never allowed or promised
            CANCEL_PUSH => {
                whole_varint(payload)?;
                id_error("a push is cancelled that there never was")
            }
            PRIORITY_UPDATE_REQUEST => {
                let (id, used) = varint(payload).ok_or(FRAME_CUT)?;
                // RFC 9218 section 7.2: requests are what a client opens
                if id % 4 != 0 {
                    return id_error("a priority of no request");
                }
                heed(Command::Priority(id, payload.slice(used..)))
            }
            PRIORITY_UPDATE_PUSH => id_error("a priority of a push that was not promised"),
            _ => Ok(()),
        }
    }

    /// RFC 9204 section 4.3: without a dynamic table its capacity can be set to 0, and that is all.
    fn encoder(&mut self, bytes: &[u8]) -> Result<(), StreamFault> {
        if bytes.iter().all(|byte| *byte == 0x20) {
            return Ok(());
        }
        Err(StreamFault::Connection(
            codes::QPACK_ENCODER_STREAM_ERROR,
            "an instruction for a table that there is not",
        ))
    }

    /// RFC 9204 section 4.4: stream cancellations may come all the same, and mean nothing.
    fn decoder(&mut self, bytes: &[u8]) -> Result<(), StreamFault> {
        self.held.extend_from_slice(bytes);
        while let Some(first) = self.held.first() {
            if first & 0xc0 != 0x40 {
                return Err(StreamFault::Connection(
                    codes::QPACK_DECODER_STREAM_ERROR,
                    "something is acknowledged that was never sent",
                ));
            }
            let mut rest = &self.held[..];
            match integer(&mut rest, 6) {
                Ok(_) => {
                    let used = self.held.len() - rest.len();
                    self.held.advance(used);
                }
                Err(_) if self.held.len() < 11 => return Ok(()),
                Err(_) => {
                    return Err(StreamFault::Connection(
                        codes::QPACK_DECODER_STREAM_ERROR,
                        "a number that is too large",
                    ));
                }
            }
        }
        Ok(())
    }
}

const FRAME_CUT: StreamFault = StreamFault::Connection(codes::FRAME_ERROR, "a frame that is cut off");

fn is_known(frame: u64) -> bool {
    matches!(
        frame,
        SETTINGS | GOAWAY | MAX_PUSH_ID | CANCEL_PUSH | PRIORITY_UPDATE_REQUEST | PRIORITY_UPDATE_PUSH
    )
}

/// The two integers of a frame header and their length.
fn header(bytes: &[u8]) -> Option<(u64, u64, usize)> {
    let (frame, used) = varint(bytes)?;
    let (length, more) = varint(&bytes[used..])?;
    Some((frame, length, used + more))
}

/// RFC 9114 section 7.1: a payload has the fields of its type and no more.
fn whole_varint(payload: &[u8]) -> Result<u64, StreamFault> {
    varint(payload).filter(|(_, used)| *used == payload.len()).map(|(value, _)| value).ok_or(FRAME_CUT)
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
