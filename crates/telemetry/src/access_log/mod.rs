//! Access log lines and who writes them.
//!
//! [`AccessLine`] is plain data with two forms; [`Writer`] takes lines from any thread and writes them in one of its
//! own. Access lines don't go through `tracing`, which is made for events with open sets of fields.

mod escape;
mod time;

pub use time::rfc3339;
mod writer;

use std::{
    io::Write,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use http::Version;

use self::escape::{Style, escape};
pub use self::writer::{Writer, WriterError, WriterGuard, WriterOptions};

/// The form of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Format {
    /// The combined log format, with the duration in seconds, the upstream and the protocol appended:
    /// `CLIENT - - [TIME] "METHOD TARGET VERSION" STATUS BYTES "REFERER" "AGENT" SECONDS "UPSTREAM" PROTOCOL`.
    #[default]
    Combined,
    /// One JSON object (RFC 8259) per line, with the same keys on each.
    Json,
}

/// One request, as it stands in a log.
///
/// What the client chose is escaped when it is written: no line break, quote, control character or terminal escape of
/// its gets into the log. Each such field is also cut where its escaped form gets too long, and `...` put in place of the
/// rest: the target at 4 KiB, Referer at 2 KiB, User-Agent at 1 KiB, others at 256 bytes. A line is under 9 KiB.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct AccessLine<'a> {
    /// When the request came. Written in UTC.
    pub time: SystemTime,
    /// The client's address.
    pub client: Option<IpAddr>,
    /// The request's method.
    pub method: &'a str,
    /// The request's target.
    pub target: &'a str,
    /// The protocol the request came by.
    pub version: Version,
    /// The host that was asked for. In JSON only.
    pub host: Option<&'a [u8]>,
    /// The response's status. `None` where the client went away before there was one: JSON has `null`, the combined format
    /// 499, by which log analysers know it.
    pub status: Option<u16>,
    /// Bytes of response content.
    pub bytes: u64,
    /// From the request's coming until the response was over.
    pub duration: Duration,
    /// From the request's coming until the response's head. In JSON only.
    pub time_to_head: Option<Duration>,
    /// The Referer field.
    pub referer: Option<&'a [u8]>,
    /// The User-Agent field.
    pub user_agent: Option<&'a [u8]>,
    /// Who made the response.
    pub upstream: Option<&'a str>,
    /// The TLS version. In JSON only.
    pub tls: Option<&'a str>,
    /// The connection's name in logs. In JSON only.
    pub conn_id: Option<u64>,
    /// Whether the response was given up before its end. In JSON only.
    pub aborted: bool,
}

const MAX_TARGET: usize = 4096;
const MAX_REFERER: usize = 2048;
const MAX_USER_AGENT: usize = 1024;
const MAX_OTHER: usize = 256;

impl<'a> AccessLine<'a> {
    /// A line with nothing but these; set what else is known.
    pub fn new(time: SystemTime, method: &'a str, target: &'a str, version: Version) -> Self {
        Self {
            time,
            client: None,
            method,
            target,
            version,
            host: None,
            status: None,
            bytes: 0,
            duration: Duration::ZERO,
            time_to_head: None,
            referer: None,
            user_agent: None,
            upstream: None,
            tls: None,
            conn_id: None,
            aborted: false,
        }
    }

    /// Appends the line in this form, with its line break.
    pub fn write(&self, format: Format, out: &mut Vec<u8>) {
        match format {
            Format::Combined => self.write_combined(out),
            Format::Json => self.write_json(out),
        }
    }

    /// Appends the line in the combined form, with its line break.
    pub fn write_combined(&self, out: &mut Vec<u8>) {
        match self.client {
            Some(client) => display(out, client),
            None => out.push(b'-'),
        }
        out.extend_from_slice(b" - - [");
        time::push_clf(out, self.time);
        out.extend_from_slice(b"] \"");
        escape(out, self.method.as_bytes(), MAX_OTHER, Style::Quoted);
        out.push(b' ');
        escape(out, self.target.as_bytes(), MAX_TARGET, Style::Quoted);
        out.push(b' ');
        out.extend_from_slice(version_name(self.version).as_bytes());
        out.extend_from_slice(b"\" ");
        push_number(out, u64::from(self.status.unwrap_or(499)));
        out.push(b' ');
        push_number(out, self.bytes);
        for (field, limit) in [(self.referer, MAX_REFERER), (self.user_agent, MAX_USER_AGENT)] {
            out.extend_from_slice(b" \"");
            escape(out, field.unwrap_or(b"-"), limit, Style::Quoted);
            out.push(b'"');
        }
        out.push(b' ');
        push_seconds(out, self.duration);
        out.extend_from_slice(b" \"");
        escape(out, self.upstream.unwrap_or("-").as_bytes(), MAX_OTHER, Style::Quoted);
        out.extend_from_slice(b"\" ");
        out.extend_from_slice(protocol_name(self.version).as_bytes());
        out.push(b'\n');
    }

    /// Appends the line as JSON, with its line break. Bytes that aren't UTF-8 become U+FFFD.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"time\":\"");
        time::push_rfc3339(out, self.time);
        out.extend_from_slice(b"\",\"client\":");
        match self.client {
            Some(client) => {
                out.push(b'"');
                display(out, client);
                out.push(b'"');
            }
            None => out.extend_from_slice(b"null"),
        }
        push_string(out, "method", Some(self.method.as_bytes()), MAX_OTHER);
        push_string(out, "host", self.host, MAX_OTHER);
        push_string(out, "target", Some(self.target.as_bytes()), MAX_TARGET);
        push_string(out, "protocol", Some(protocol_name(self.version).as_bytes()), MAX_OTHER);
        push_value(out, "status", self.status, |out, status| push_number(out, status.into()));
        push_value(out, "bytes", Some(self.bytes), push_number);
        push_value(out, "duration", Some(self.duration), push_seconds);
        push_value(out, "time_to_head", self.time_to_head, push_seconds);
        push_string(out, "referer", self.referer, MAX_REFERER);
        push_string(out, "user_agent", self.user_agent, MAX_USER_AGENT);
        push_string(out, "upstream", self.upstream.map(str::as_bytes), MAX_OTHER);
        push_string(out, "tls", self.tls.map(str::as_bytes), MAX_OTHER);
        push_value(out, "conn", self.conn_id, push_number);
        let aborted = if self.aborted { "true" } else { "false" };
        push_value(out, "aborted", Some(aborted), |out, text| out.extend_from_slice(text.as_bytes()));
        out.extend_from_slice(b"}\n");
    }
}

fn push_string(out: &mut Vec<u8>, key: &str, text: Option<&[u8]>, limit: usize) {
    push_value(out, key, text, |out, text| {
        out.push(b'"');
        escape(out, text, limit, Style::Json);
        out.push(b'"');
    });
}

fn push_value<T>(out: &mut Vec<u8>, key: &str, value: Option<T>, push: impl FnOnce(&mut Vec<u8>, T)) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b"\":");
    match value {
        Some(value) => push(out, value),
        None => out.extend_from_slice(b"null"),
    }
}

fn display(out: &mut Vec<u8>, value: impl std::fmt::Display) {
    // a write into a Vec doesn't fail
    let _ = write!(out, "{value}");
}

/// Decimal digits without the formatting machinery, which costs more than the rest of the line.
fn push_number(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Seconds with microseconds.
fn push_seconds(out: &mut Vec<u8>, duration: Duration) {
    push_number(out, duration.as_secs());
    out.push(b'.');
    push_padded(out, duration.subsec_micros(), 6);
}

/// The last `width` decimal digits, with leading zeros.
fn push_padded(out: &mut Vec<u8>, mut number: u32, width: usize) {
    let start = out.len();
    out.resize(start + width, b'0');
    for digit in out[start..].iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// As request lines of HTTP/1 have it (RFC 9112 section 2.3), and logs of the others.
fn version_name(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_11 => "HTTP/1.1",
        Version::HTTP_2 => "HTTP/2.0",
        Version::HTTP_3 => "HTTP/3.0",
        _ => "-",
    }
}

/// The protocol by its ALPN name (RFC 7301 section 6).
fn protocol_name(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "http/1.0",
        Version::HTTP_11 => "http/1.1",
        Version::HTTP_2 => "h2",
        Version::HTTP_3 => "h3",
        _ => "-",
    }
}

#[cfg(test)]
mod tests;
