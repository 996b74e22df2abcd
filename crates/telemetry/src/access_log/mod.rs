//! Access log lines and who writes them.
//!
//! [`AccessLine`] is plain data with several forms ([`Format`]); [`Writer`] takes lines from any thread and writes them in one of its
//! own. Access lines don't go through `tracing`, which is made for events with open sets of fields.

mod escape;
mod field;
mod number;
mod redact;
mod subject;
mod template;
mod time;
mod writer;

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use http::{HeaderName, HeaderValue, Version};
use portcullis_conn::{ConnInfo, TlsVersion, Transport};

use self::{
    escape::{Style, escape},
    field::{MAX_OTHER, MAX_REFERER, MAX_TARGET, MAX_USER_AGENT},
    number::{display, push_number, push_seconds},
};
pub use self::{
    field::{FIELDS, Field, FieldError},
    redact::{Redaction, SECRET_PARAMETERS},
    template::{JsonFields, JsonFieldsError, Template, TemplateError, TemplateFault},
    time::rfc3339,
    writer::{Writer, WriterError, WriterGuard, WriterOptions},
};

/// More than the longest line in any form.
const MAX_LINE: usize = 16 * 1024;

/// The form of a line.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Format {
    /// The common log format: `CLIENT - USER [TIME] "METHOD TARGET VERSION" STATUS BYTES`.
    Common,
    /// The combined log format, with the duration in seconds, the upstream and the protocol appended:
    /// `CLIENT - USER [TIME] "METHOD TARGET VERSION" STATUS BYTES "REFERER" "AGENT" SECONDS "UPSTREAM" PROTOCOL`.
    #[default]
    Combined,
    /// One JSON object (RFC 8259) per line, with the same keys on each.
    Json(JsonFields),
    /// Text with fields in it.
    Template(Template),
}

impl Format {
    /// Whether lines have this field.
    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::Common => COMMON.contains(&name),
            Self::Combined => COMMON.contains(&name) || COMBINED.contains(&name),
            Self::Json(json) => json.fields().any(|field| field.is(name)),
            Self::Template(template) => template.fields().any(|field| field.is(name)),
        }
    }

    /// The fields of messages that have to be kept for it; of responses where the second is `true`.
    pub fn headers(&self) -> Vec<(HeaderName, bool)> {
        let headers = match self {
            Self::Common | Self::Combined => Vec::new(),
            Self::Json(json) => json.fields().filter_map(Field::header).collect(),
            Self::Template(template) => template.fields().filter_map(Field::header).collect::<Vec<_>>(),
        };
        let mut once: Vec<(HeaderName, bool)> = Vec::new();
        for header in headers {
            if !once.contains(&header) {
                once.push(header);
            }
        }
        once
    }
}

/// Beside those that every line has.
const COMMON: [&str; 1] = ["user"];
const COMBINED: [&str; 3] = ["referer", "user_agent", "upstream"];

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum LineOutcome {
    /// The response was taken to its end.
    #[default]
    Complete,
    /// The client gave it up.
    Aborted,
    /// It broke off.
    Failed,
}

impl LineOutcome {
    fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Aborted => "aborted",
            Self::Failed => "failed",
        }
    }
}

/// One request, as it stands in a log. What each form shows of it is said by [`FIELDS`].
///
/// What the client chose is escaped when it is written: no line break, quote, control character or terminal escape of
/// its gets into the log. Each such field is also cut where its escaped form gets too long, and `...` put in place of the
/// rest: the target at 4 KiB, Referer at 2 KiB, User-Agent at 1 KiB, others at 256 bytes. A line is under 16 KiB. Secrets in URIs are taken out
/// ([`Redaction`]).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct AccessLine<'a> {
    /// When the request came. Written in UTC.
    pub time: SystemTime,
    /// The client's address.
    pub client: Option<IpAddr>,
    /// The connection.
    pub conn: Option<&'a ConnInfo>,
    /// Which request it is on its connection, from 1.
    pub conn_request: Option<u64>,
    /// The request's method.
    pub method: &'a str,
    /// The request's target: path and query.
    pub target: &'a str,
    /// The protocol the request came by.
    pub version: Version,
    /// The host that was asked for.
    pub host: Option<&'a [u8]>,
    /// The response's status. `None` where the client went away before there was one: JSON has `null`, the common and combined formats
    /// 499, by which log analysers know it.
    pub status: Option<u16>,
    /// Bytes of response content.
    pub bytes: u64,
    /// Bytes of request content.
    pub received: Option<u64>,
    /// From the request's coming until the response was over.
    pub duration: Duration,
    /// From the request's coming until the response's head.
    pub time_to_head: Option<Duration>,
    /// Waiting for a place at an endpoint.
    pub queue: Option<Duration>,
    /// Connecting to endpoints.
    pub connect: Option<Duration>,
    /// From sending the request to an endpoint until its response's head.
    pub first_byte: Option<Duration>,
    /// The Referer field.
    pub referer: Option<&'a [u8]>,
    /// The User-Agent field.
    pub user_agent: Option<&'a [u8]>,
    /// The name of the route.
    pub route: Option<&'a str>,
    /// Who the client is.
    pub user: Option<&'a str>,
    /// Who made the response: an endpoint.
    pub upstream: Option<&'a str>,
    /// The cluster that it belongs to.
    pub cluster: Option<&'a str>,
    /// How many attempts were made at endpoints.
    pub attempts: Option<u32>,
    /// Why there was no answer of an endpoint's.
    pub fault: Option<&'a str>,
    /// What the cache did.
    pub cache: Option<&'a str>,
    /// How the request ended.
    pub outcome: LineOutcome,
    /// The request's id.
    pub request_id: Option<&'a [u8]>,
    /// The id of the trace that the request is a part of.
    pub trace_id: Option<&'a str>,
    /// Fields of the request that the format asks for ([`Format::headers`]), every line of each.
    pub request_fields: &'a [(HeaderName, HeaderValue)],
    /// Fields of the response, likewise.
    pub response_fields: &'a [(HeaderName, HeaderValue)],
}

impl<'a> AccessLine<'a> {
    /// A line with nothing but these; set what else is known.
    pub fn new(time: SystemTime, method: &'a str, target: &'a str, version: Version) -> Self {
        Self {
            time,
            client: None,
            conn: None,
            conn_request: None,
            method,
            target,
            version,
            host: None,
            status: None,
            bytes: 0,
            received: None,
            duration: Duration::ZERO,
            time_to_head: None,
            queue: None,
            connect: None,
            first_byte: None,
            referer: None,
            user_agent: None,
            route: None,
            user: None,
            upstream: None,
            cluster: None,
            attempts: None,
            fault: None,
            cache: None,
            outcome: LineOutcome::Complete,
            request_id: None,
            trace_id: None,
            request_fields: &[],
            response_fields: &[],
        }
    }

    /// Appends the line in this form, with its line break.
    pub fn write(&self, format: &Format, redaction: &Redaction, out: &mut Vec<u8>) {
        match format {
            Format::Common => {
                self.write_common(redaction, out);
                out.push(b'\n');
            }
            Format::Combined => self.write_combined(redaction, out),
            Format::Json(json) => json.write(self, redaction, out),
            Format::Template(template) => template.write(self, redaction, out),
        }
    }

    fn write_common(&self, redaction: &Redaction, out: &mut Vec<u8>) {
        match self.client {
            Some(client) => display(out, client),
            None => out.push(b'-'),
        }
        out.extend_from_slice(b" - ");
        match self.user {
            Some(user) if !user.is_empty() => escape(out, user.as_bytes(), MAX_OTHER, Style::Bare),
            _ => out.push(b'-'),
        }
        out.extend_from_slice(b" [");
        time::push_clf(out, self.time);
        out.extend_from_slice(b"] \"");
        escape(out, self.method.as_bytes(), MAX_OTHER, Style::Quoted);
        out.push(b' ');
        escape(out, &redaction.target(self.target.as_bytes()), MAX_TARGET, Style::Quoted);
        out.push(b' ');
        out.extend_from_slice(version_name(self.version).as_bytes());
        out.extend_from_slice(b"\" ");
        push_number(out, u64::from(self.status.unwrap_or(499)));
        out.push(b' ');
        push_number(out, self.bytes);
    }

    fn write_combined(&self, redaction: &Redaction, out: &mut Vec<u8>) {
        self.write_common(redaction, out);
        out.extend_from_slice(b" \"");
        escape(out, &redaction.apply(self.referer.unwrap_or(b"-")), MAX_REFERER, Style::Quoted);
        out.extend_from_slice(b"\" \"");
        escape(out, &redaction.apply(self.user_agent.unwrap_or(b"-")), MAX_USER_AGENT, Style::Quoted);
        out.extend_from_slice(b"\" ");
        push_seconds(out, self.duration);
        out.extend_from_slice(b" \"");
        escape(out, self.upstream.unwrap_or("-").as_bytes(), MAX_OTHER, Style::Quoted);
        out.extend_from_slice(b"\" ");
        out.extend_from_slice(protocol_name(self.version).as_bytes());
        out.push(b'\n');
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

fn tls_name(version: TlsVersion) -> Option<&'static str> {
    match version {
        TlsVersion::Tls13 => Some("TLSv1.3"),
        TlsVersion::Tls12 => Some("TLSv1.2"),
        _ => None,
    }
}

fn transport_name(transport: Transport) -> Option<&'static str> {
    match transport {
        Transport::Tcp => Some("tcp"),
        Transport::Unix => Some("unix"),
        Transport::Quic => Some("quic"),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
