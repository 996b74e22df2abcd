//! Readers of what reached an origin: one that takes nothing but the grammar, and some as lax as servers have been. Bytes
//! that they read alike have one reading.

/// One request as a reader understood it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) line: String,
    pub(crate) host: String,
    pub(crate) body: Vec<u8>,
}

/// All requests on a connection.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Reading {
    pub(crate) messages: Vec<Message>,
    /// What stands behind them and has no end: its request line.
    pub(crate) cut: Option<String>,
}

/// The one reading of these bytes, or how they can be read in two ways.
pub(crate) fn one_reading(bytes: &[u8]) -> Result<Reading, String> {
    let strict = strict(bytes)?;
    for how in [
        Lax { coding_wins: true, last_length: false, cr_ends: false },
        Lax { coding_wins: false, last_length: true, cr_ends: false },
        Lax { coding_wins: true, last_length: true, cr_ends: true },
    ] {
        let lax = how.read(bytes);
        if lax != strict {
            return Err(format!("{how:?} reads {lax:?}, where the grammar has {strict:?}"));
        }
    }
    Ok(strict)
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
}

/// RFC 9112, with nothing of what it merely tolerates.
fn strict(mut bytes: &[u8]) -> Result<Reading, String> {
    let mut reading = Reading::default();
    while !bytes.is_empty() {
        let Some(end) = find(bytes, b"\r\n\r\n") else {
            reading.cut = Some(first_line(bytes));
            break;
        };
        let head = Head::parse(&bytes[..end])?;
        let rest = &bytes[end + 4..];
        let Some((body, used)) = head.body(rest)? else {
            reading.cut = Some(head.line);
            break;
        };
        reading.messages.push(Message { line: head.line, host: head.host, body });
        bytes = &rest[used..];
    }
    Ok(reading)
}

fn first_line(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| b"\r\n".contains(b)).unwrap_or(bytes.len());
    text(&bytes[..end])
}

struct Head {
    line: String,
    host: String,
    chunked: bool,
    length: Option<usize>,
}

impl Head {
    fn parse(head: &[u8]) -> Result<Self, String> {
        let bad = |what: &str| Err(format!("{what} in {:?}", text(head)));
        if head.split(|b| *b == b'\n').rev().skip(1).any(|line| !line.ends_with(b"\r")) {
            return bad("a bare LF");
        }
        let lines: Vec<&[u8]> =
            head.split(|b| *b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line)).collect();
        if lines.iter().any(|line| line.iter().any(|b| (*b < b' ' && *b != b'\t') || *b == 0x7f)) {
            return bad("a control character");
        }
        let parts: Vec<&[u8]> = lines[0].split(|b| *b == b' ').collect();
        let [method, target, b"HTTP/1.1"] = parts[..] else { return bad("no request line") };
        if !is_token(method) || !(target.starts_with(b"/") || target == b"*") || target.contains(&b'#') {
            return bad("a bad method or target");
        }
        let mut found = Self { line: text(lines[0]), host: String::new(), chunked: false, length: None };
        let mut hosts = 0;
        for line in &lines[1..] {
            let Some(colon) = line.iter().position(|b| *b == b':') else { return bad("no colon") };
            let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
            if !is_token(name) {
                return bad("a bad field name");
            }
            match &*text(name).to_ascii_lowercase() {
                "host" => (hosts, found.host) = (hosts + 1, text(value)),
                "transfer-encoding" if value == b"chunked" && !found.chunked => found.chunked = true,
                "transfer-encoding" => return bad("a bad transfer-encoding"),
                "content-length" => match text(value).parse() {
                    Ok(length) if found.length.is_none() && value.iter().all(u8::is_ascii_digit) => {
                        found.length = Some(length);
                    }
                    _ => return bad("a bad content-length"),
                },
                _ => {}
            }
        }
        if hosts != 1 || found.host.bytes().any(|b| b" ,/@?#\t".contains(&b)) {
            return bad("not one good host");
        }
        if found.chunked && found.length.is_some() {
            return bad("two framings");
        }
        Ok(found)
    }

    /// The body and its length on the wire; `None` while it is not whole.
    fn body(&self, bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, String> {
        if !self.chunked {
            let length = self.length.unwrap_or(0);
            return Ok(bytes.get(..length).map(|body| (body.to_vec(), length)));
        }
        let (mut at, mut body) = (0, Vec::new());
        loop {
            let Some(end) = find(&bytes[at..], b"\r\n") else { return Ok(None) };
            let size = &bytes[at..at + end];
            let hex = size.len() <= 16 && size.iter().all(u8::is_ascii_hexdigit);
            let Some(size) = usize::from_str_radix(&text(size), 16).ok().filter(|_| hex) else {
                return Err(format!("a bad chunk size {:?}", text(size)));
            };
            at += end + 2;
            if size == 0 {
                break;
            }
            let Some(data) = bytes.get(at..at + size) else { return Ok(None) };
            body.extend_from_slice(data);
            match bytes.get(at + size..at + size + 2) {
                None => return Ok(None),
                Some(b"\r\n") => at += size + 2,
                Some(_) => return Err("no CRLF behind a chunk".into()),
            }
        }
        // trailers
        loop {
            let Some(end) = find(&bytes[at..], b"\r\n") else { return Ok(None) };
            let line = &bytes[at..at + end];
            at += end + 2;
            if line.is_empty() {
                return Ok(Some((body, at)));
            }
            let name = line.split(|b| *b == b':').next().unwrap_or_default();
            let frames = ["transfer-encoding", "content-length", "host", "trailer", "te", "connection"];
            if !is_token(name) || frames.contains(&&*text(name).to_ascii_lowercase()) {
                return Err(format!("a bad trailer {:?}", text(line)));
            }
        }
    }
}

/// What servers have been seen to do.
#[derive(Debug)]
struct Lax {
    /// With both framings, the coding counts.
    coding_wins: bool,
    /// Of several lengths, the last counts.
    last_length: bool,
    /// A bare CR ends a line, too.
    cr_ends: bool,
}

impl Lax {
    /// The next line and what is behind it.
    fn line<'a>(&self, bytes: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
        let end = bytes.iter().position(|b| *b == b'\n' || (self.cr_ends && *b == b'\r'))?;
        let skip = if bytes[end] == b'\r' && bytes.get(end + 1) == Some(&b'\n') { 2 } else { 1 };
        let line = &bytes[..end];
        Some((line.strip_suffix(b"\r").unwrap_or(line), &bytes[end + skip..]))
    }

    fn read(&self, mut bytes: &[u8]) -> Reading {
        let mut reading = Reading::default();
        loop {
            while let [b'\r' | b'\n', rest @ ..] = bytes {
                bytes = rest;
            }
            if bytes.is_empty() {
                return reading;
            }
            let Some((message, rest)) = self.message(bytes) else {
                reading.cut = Some(first_line(bytes));
                return reading;
            };
            reading.messages.push(message);
            bytes = rest;
        }
    }

    fn message<'a>(&self, bytes: &'a [u8]) -> Option<(Message, &'a [u8])> {
        let (line, mut rest) = self.line(bytes)?;
        let (mut host, mut coding, mut lengths) = (String::new(), false, Vec::new());
        let mut fields: Vec<Vec<u8>> = Vec::new();
        loop {
            let (field, behind) = self.line(rest)?;
            rest = behind;
            match (field, fields.last_mut()) {
                ([], _) => break,
                ([b' ' | b'\t', folded @ ..], Some(last)) => last.extend_from_slice(folded),
                _ => fields.push(field.to_vec()),
            }
        }
        for field in fields {
            let field = text(&field);
            let (name, value) = field.split_once(':').unwrap_or((&field, ""));
            // as CGI does and what came after it
            let name = name.to_ascii_lowercase().replace('_', "-");
            match name.trim_matches(|c: char| c.is_ascii_whitespace() || c.is_ascii_control()) {
                "host" => host = value.trim().to_owned(),
                "transfer-encoding" => coding |= value.to_ascii_lowercase().contains("chunked"),
                "content-length" => {
                    let digits: String = value
                        .chars()
                        .skip_while(|c| !c.is_ascii_digit())
                        .take_while(char::is_ascii_digit)
                        .collect();
                    lengths.push(digits.parse().unwrap_or(0));
                }
                _ => {}
            }
        }
        let length = if self.last_length { lengths.last() } else { lengths.first() };
        let (body, rest) = match length {
            _ if coding && (self.coding_wins || lengths.is_empty()) => self.chunks(rest)?,
            Some(length) => (rest.get(..*length)?.to_vec(), &rest[*length..]),
            None => (Vec::new(), rest),
        };
        Some((Message { line: text(line), host, body }, rest))
    }

    fn chunks<'a>(&self, mut rest: &'a [u8]) -> Option<(Vec<u8>, &'a [u8])> {
        let mut body = Vec::new();
        loop {
            let (line, behind) = self.line(rest)?;
            rest = behind;
            let size = text(line).to_ascii_lowercase();
            let size = size.trim().trim_start_matches("0x");
            let digits: String = size.chars().take_while(char::is_ascii_hexdigit).collect();
            let size = usize::from_str_radix(&digits, 16).unwrap_or(0);
            if size == 0 {
                break;
            }
            body.extend_from_slice(rest.get(..size)?);
            rest = &rest[size..];
            rest = rest.strip_prefix(b"\r").unwrap_or(rest);
            rest = rest.strip_prefix(b"\n").unwrap_or(rest);
            if rest.is_empty() {
                return None;
            }
        }
        loop {
            let (line, behind) = self.line(rest)?;
            rest = behind;
            if line.is_empty() {
                return Some((body, rest));
            }
        }
    }
}

#[test]
fn the_judges_agree_where_they_should_and_only_there() {
    let good = b"POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx: y\r\n\r\nGET /b HTTP/1.1\r\nhost: b\r\n\r\n";
    let reading = one_reading(good).unwrap();
    let lines: Vec<_> = reading.messages.iter().map(|message| &*message.line).collect();
    assert_eq!(lines, ["POST /a HTTP/1.1", "GET /b HTTP/1.1"]);
    assert_eq!((reading.messages[0].body.as_slice(), reading.cut), (&b"abc"[..], None));
    let cut = one_reading(b"POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nabc").unwrap();
    assert_eq!((cut.messages.len(), cut.cut.as_deref()), (0, Some("POST /a HTTP/1.1")));
    for two_ways in [
        "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        "POST /a HTTP/1.1\r\nhost: a\r\ncontent_length: 3\r\n\r\n",
        "POST /a HTTP/1.1\r\nhost: a\r\ntransfer_encoding: chunked\r\n\r\n",
        "POST /a HTTP/1.1\r\nhost: a\r\nx: y\rcontent-length: 3\r\n\r\nabc",
        "POST /a HTTP/1.1\r\nhost: a\nx: y\r\n\r\n",
        "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\n\r\n",
        "GET /a#b HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /a HTTP/1.1\r\nhost: a, b\r\n\r\n",
    ] {
        assert!(one_reading(two_ways.as_bytes()).is_err(), "{two_ways:?}");
    }
}
