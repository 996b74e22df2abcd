//! Reading HTTP/1.1 responses: pure functions over bytes that keep no body.

use http::Method;

use crate::stats::Failure;

const MAX_FIELDS: usize = 100;
/// Longest chunk-size line with extensions, and longest trailer section.
const MAX_LINE: usize = 8 * 1024;

/// What a response's head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) status: u16,
    /// Its length in bytes.
    pub(crate) len: usize,
    pub(crate) body: Framing,
    /// The connection ends after this response.
    pub(crate) close: bool,
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Length(u64),
    Chunked(Chunked),
    UntilClose,
}

/// Parses a head; `None` means that it is not complete yet.
pub(crate) fn head(bytes: &[u8], method: &Method) -> Result<Option<Head>, Failure> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let len = match response.parse(bytes) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(Failure::new("protocol", format_args!("response head: {error}"))),
    };
    let status = response.code.unwrap_or(0);
    let mut close = response.version == Some(0);
    let (mut length, mut chunked) = (None, false);
    for field in response.headers.iter() {
        let value = field.value.trim_ascii();
        if field.name.eq_ignore_ascii_case("content-length") {
            let parsed = std::str::from_utf8(value).ok().and_then(|value| value.parse::<u64>().ok());
            let parsed = parsed.ok_or_else(|| Failure::new("protocol", "Content-Length is no number"))?;
            if length.replace(parsed).is_some_and(|earlier| earlier != parsed) {
                return Err(Failure::new("protocol", "two values of Content-Length"));
            }
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            chunked = value.eq_ignore_ascii_case(b"chunked");
            if !chunked {
                return Err(Failure::new("protocol", "a transfer coding that was not asked for"));
            }
        } else if field.name.eq_ignore_ascii_case("connection") {
            let names = |name: &[u8]| {
                value.split(|byte| *byte == b',').any(|token| token.trim_ascii().eq_ignore_ascii_case(name))
            };
            close = names(b"close") || (close && !names(b"keep-alive"));
        }
    }
    // RFC 9112 section 6.3: which responses have a body, and where it ends
    let body = if *method == Method::HEAD || status < 200 || status == 204 || status == 304 {
        Framing::Length(0)
    } else if chunked {
        Framing::Chunked(Chunked::default())
    } else if let Some(length) = length {
        Framing::Length(length)
    } else {
        close = true;
        Framing::UntilClose
    };
    Ok(Some(Head { status, len, body, close }))
}

/// RFC 9112 section 7.1, without keeping the data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chunked {
    state: State,
    /// Bytes of the current size line or of the trailer section.
    line: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size { value: u64, digits: bool },
    Extension { value: u64 },
    SizeEnd { value: u64 },
    Data(u64),
    DataCr,
    DataLf,
    Trailer { empty: bool },
    TrailerLf { empty: bool },
    Done,
}

impl Default for State {
    fn default() -> Self {
        Self::Size { value: 0, digits: false }
    }
}

impl Chunked {
    /// Takes bytes; returns how many it took and how many of them were data. It takes all of them until the end.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<(usize, u64), Failure> {
        let (mut at, mut data) = (0, 0_u64);
        while at < bytes.len() && self.state != State::Done {
            if let State::Data(left) = self.state {
                let here = usize::try_from(left).map_or(bytes.len() - at, |left| left.min(bytes.len() - at));
                at += here;
                data += here as u64;
                let left = left - here as u64;
                self.state = if left == 0 { State::DataCr } else { State::Data(left) };
                continue;
            }
            self.line += 1;
            if self.line > MAX_LINE {
                return Err(Failure::new("protocol", "a chunk-size line or trailer section without end"));
            }
            self.state = self.step(bytes[at])?;
            at += 1;
        }
        Ok((at, data))
    }

    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    fn step(&mut self, byte: u8) -> Result<State, Failure> {
        let wrong = || Failure::new("protocol", "malformed chunked coding");
        Ok(match (self.state, byte) {
            (State::Size { value, .. }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = (byte as char).to_digit(16).map_or(0, u64::from);
                let value =
                    value.checked_mul(16).and_then(|value| value.checked_add(digit)).ok_or_else(wrong)?;
                State::Size { value, digits: true }
            }
            (State::Size { value, digits: true }, b'\r') => State::SizeEnd { value },
            (State::Size { value, digits: true }, b';' | b' ' | b'\t') => State::Extension { value },
            (State::Extension { value }, b'\r') => State::SizeEnd { value },
            (State::Extension { value }, other) if other != b'\n' => State::Extension { value },
            (State::SizeEnd { value }, b'\n') => {
                self.line = 0;
                if value == 0 { State::Trailer { empty: true } } else { State::Data(value) }
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => {
                self.line = 0;
                State::default()
            }
            (State::Trailer { empty }, b'\r') => State::TrailerLf { empty },
            (State::Trailer { .. }, other) if other != b'\n' => State::Trailer { empty: false },
            (State::TrailerLf { empty: true }, b'\n') => State::Done,
            (State::TrailerLf { empty: false }, b'\n') => State::Trailer { empty: true },
            _ => return Err(wrong()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Head {
        head(text.as_bytes(), &Method::GET).unwrap().unwrap()
    }

    #[test]
    fn heads_and_their_framing() {
        for (text, status, body, close) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 200, Framing::Length(5), false),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: x, Close\r\n\r\n",
                200,
                Framing::Length(5),
                true,
            ),
            ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", 200, Framing::Length(5), true),
            (
                "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\n",
                200,
                Framing::Length(5),
                false,
            ),
            ("HTTP/1.1 200 OK\r\n\r\n", 200, Framing::UntilClose, true),
            ("HTTP/1.1 204 No Content\r\n\r\n", 204, Framing::Length(0), false),
            ("HTTP/1.1 103 Early Hints\r\n\r\n", 103, Framing::Length(0), false),
            (
                "HTTP/1.1 502 Bad\r\ntransfer-encoding: CHUNKED\r\n\r\n",
                502,
                Framing::Chunked(Chunked::default()),
                false,
            ),
        ] {
            assert_eq!(parse(text), Head { status, len: text.len(), body, close }, "{text}");
        }
        let to_head = head(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", &Method::HEAD).unwrap().unwrap();
        assert_eq!(to_head.body, Framing::Length(0));
    }

    #[test]
    fn incomplete_and_wrong_heads() {
        assert!(head(b"HTTP/1.1 200 OK\r\nContent-Le", &Method::GET).unwrap().is_none());
        for text in [
            "SMTP\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        ] {
            assert!(head(text.as_bytes(), &Method::GET).is_err(), "{text}");
        }
    }

    #[test]
    fn chunked_at_every_split() {
        let text = b"5;a=b\r\nhello\r\nA\r\n0123456789\r\n0\r\nX: y\r\n\r\nrest";
        for split in 0..text.len() - 4 {
            let mut chunked = Chunked::default();
            let (taken, first) = chunked.take(&text[..split]).unwrap();
            assert_eq!(taken, split);
            let (taken, second) = chunked.take(&text[split..]).unwrap();
            assert!(chunked.is_done(), "split at {split}");
            assert_eq!(first + second, 15);
            assert_eq!(split + taken, text.len() - 4, "the rest is left alone");
        }
    }

    #[test]
    fn malformed_chunked() {
        for text in ["\r\n", "x\r\n", "5\r\nhelloX", "5\n", "fffffffffffffffff\r\n", "0\r\n\n"] {
            assert!(Chunked::default().take(text.as_bytes()).is_err(), "{text:?}");
        }
        let endless = vec![b'a'; MAX_LINE + 10];
        let mut chunked = Chunked::default();
        assert!(chunked.take(b"1;").and_then(|_| chunked.take(&endless)).is_err());
    }
}
