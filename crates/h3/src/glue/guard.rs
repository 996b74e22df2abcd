//! Reads along a stream, frame by frame, before the HTTP/3 layer may see the bytes.
//!
//! That layer buffers a whole frame before it looks at its length, keeps reading while it has frames to hand out,
//! takes an empty DATA frame for the end of a body, and a DATA frame that was cut off for a clean one. So the
//! guard refuses a frame by its announced length (RFC 9114 section 10.5), tells where an incomplete frame begins
//! so that it is held back until it is whole, counts what was handed on, and knows whether the stream ends
//! between frames.

/// RFC 9114 section 7.2.1.
const DATA: u64 = 0x00;
/// RFC 9114 section 7.2.2.
const HEADERS: u64 = 0x01;
/// A WebTransport stream signal: it has no length, so it cannot be skipped as a frame.
const WEBTRANSPORT: u64 = 0x41;
/// The stream type of the control stream, RFC 9114 section 6.2.1.
const CONTROL_STREAM: u64 = 0x00;
/// Two integers of 8 bytes at most (RFC 9000 section 16).
const HEADER_MAX: usize = 16;
/// Frames without payload (empty DATA, unknown types) that may follow each other on a request stream before some
/// payload must come. Padding and grease stay far below.
const IDLE_FRAMES_MAX: u32 = 256;

/// Why a stream is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// A frame is longer than allowed, or there are too many without payload.
    Excessive,
    /// A frame stands where it must not.
    Unexpected,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// HEADERS, DATA, and at most one more HEADERS (RFC 9114 section 4.1).
    Request,
    /// The same with any number of interim HEADERS ahead.
    #[cfg(feature = "client")]
    Response,
    /// A unidirectional stream whose type has not been read yet.
    Untyped,
    /// The control stream.
    Control,
    /// A stream without frames that we can check.
    Opaque,
}

/// The state of the check between two chunks.
#[derive(Clone, Debug)]
pub(crate) struct FrameGuard {
    kind: Kind,
    max: u64,
    /// What is left of the payload of the current frame.
    left: u64,
    in_data: bool,
    header: [u8; HEADER_MAX],
    have: usize,
    idle_frames: u32,
    /// HEADERS frames seen.
    pub(crate) heads: u32,
    /// Payload bytes of DATA frames seen.
    pub(crate) payload: u64,
    /// Empty DATA frames seen.
    pub(crate) empties: u32,
}

impl FrameGuard {
    /// For a request stream read by a server; `max` bounds the payload of every frame but DATA.
    pub(crate) fn request(max: u64) -> Self {
        Self::new(Kind::Request, max)
    }

    /// For a request stream read by a client.
    #[cfg(feature = "client")]
    pub(crate) fn response(max: u64) -> Self {
        Self::new(Kind::Response, max)
    }

    /// For a unidirectional stream.
    pub(crate) fn unidirectional(max: u64) -> Self {
        Self::new(Kind::Untyped, max)
    }

    fn new(kind: Kind, max: u64) -> Self {
        Self {
            kind,
            max,
            left: 0,
            in_data: false,
            header: [0; HEADER_MAX],
            have: 0,
            idle_frames: 0,
            heads: 0,
            payload: 0,
            empties: 0,
        }
    }

    /// Whether the stream may end here: not inside a frame.
    pub(crate) fn at_boundary(&self) -> bool {
        self.kind == Kind::Opaque || (self.left == 0 && self.have == 0)
    }

    /// Reads the next chunk and returns how much of it may be handed on; what is behind that belongs to a frame
    /// header or a frame other than DATA that is not complete.
    pub(crate) fn feed(&mut self, chunk: &[u8]) -> Result<usize, Refusal> {
        if self.kind == Kind::Opaque {
            return Ok(chunk.len());
        }
        let mut at = 0;
        // where the frame began that we are in: before this chunk, unless the loop comes to a new one
        let mut begin = 0;
        while at < chunk.len() {
            if self.left > 0 {
                let step = self.left.min((chunk.len() - at) as u64);
                self.left -= step;
                if self.in_data {
                    self.payload += step;
                    self.idle_frames = 0;
                }
                // cannot truncate: `step` is at most what is left of the chunk
                at += step as usize;
                continue;
            }
            if self.have == 0 {
                begin = at;
            }
            match self.read_header(&chunk[at..])? {
                Some(used) => at += used,
                None => return Ok(begin),
            }
            if self.kind == Kind::Opaque {
                return Ok(chunk.len());
            }
        }
        Ok(if self.left > 0 && !self.in_data { begin } else { chunk.len() })
    }

    /// Takes a frame header (or the stream type) from the start of `bytes`; `None` if all of them were kept as the
    /// first part of one.
    fn read_header(&mut self, bytes: &[u8]) -> Result<Option<usize>, Refusal> {
        if self.have == 0
            && let Some((first, second, used)) = self.parse(bytes)
        {
            self.begin_frame(first, second)?;
            return Ok(Some(used));
        }
        for (used, byte) in bytes.iter().enumerate() {
            self.header[self.have] = *byte;
            self.have += 1;
            if let Some((first, second, _)) = self.parse(&self.header[..self.have]) {
                self.have = 0;
                self.begin_frame(first, second)?;
                return Ok(Some(used + 1));
            }
        }
        Ok(None)
    }

    /// The integers of a header and their length; a stream type and a WebTransport signal stand alone.
    fn parse(&self, bytes: &[u8]) -> Option<(u64, u64, usize)> {
        let (first, used) = varint(bytes)?;
        if self.kind == Kind::Untyped || first == WEBTRANSPORT {
            return Some((first, 0, used));
        }
        let (second, more) = varint(&bytes[used..])?;
        Some((first, second, used + more))
    }

    fn begin_frame(&mut self, frame: u64, length: u64) -> Result<(), Refusal> {
        match self.kind {
            Kind::Untyped => {
                self.kind = if frame == CONTROL_STREAM { Kind::Control } else { Kind::Opaque };
                return Ok(());
            }
            Kind::Request => self.check_order(frame)?,
            _ => {}
        }
        if frame == WEBTRANSPORT {
            return Err(Refusal::Unexpected);
        }
        self.in_data = frame == DATA;
        self.left = length;
        if frame == HEADERS {
            self.heads += 1;
        }
        if self.in_data && length == 0 {
            self.empties = self.empties.wrapping_add(1);
        }
        if !self.in_data && length > self.max {
            return Err(Refusal::Excessive);
        }
        if self.kind != Kind::Control && frame != HEADERS && (length == 0 || !self.in_data) {
            self.idle_frames += 1;
            if self.idle_frames > IDLE_FRAMES_MAX {
                return Err(Refusal::Excessive);
            }
        }
        Ok(())
    }

    /// RFC 9114 section 4.1: a request is HEADERS, then DATA, then at most one HEADERS with the trailers.
    fn check_order(&self, frame: u64) -> Result<(), Refusal> {
        let wrong = match frame {
            HEADERS => self.heads >= 2,
            DATA => self.heads != 1,
            // frames for the control stream (sections 7.2.3 to 7.2.7), and those that only HTTP/2 has (7.2.8)
            0x02..=0x09 | 0x0d => true,
            _ => false,
        };
        if wrong { Err(Refusal::Unexpected) } else { Ok(()) }
    }
}

/// A variable-length integer and its length, RFC 9000 section 16.
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let length = 1 << (first >> 6);
    let rest = bytes.get(1..length)?;
    let value = rest.iter().fold(u64::from(first & 0x3f), |value, byte| (value << 8) | u64::from(*byte));
    Some((value, length))
}

#[cfg(test)]
#[path = "guard_tests.rs"]
mod tests;
