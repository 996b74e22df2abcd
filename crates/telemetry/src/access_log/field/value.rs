//! What a field says of a line, in the form of where it stands.

use std::time::Duration;

use http::{HeaderName, HeaderValue, header::COOKIE};

use super::{
    super::{
        AccessLine, LineOutcome, Redaction,
        escape::{Style, escape},
        number::{display, push_millis, push_number, push_seconds},
        protocol_name,
        subject::push_subject,
        time, tls_name, transport_name, version_name,
    },
    Field, Kind, MAX_OTHER, MAX_REFERER, MAX_TARGET, MAX_USER_AGENT, Plain, Timing,
};

impl Field {
    /// Appends the value: text in quotes where the style is JSON's, and as it is elsewhere. `false` where there is none, and nothing is appended.
    pub(in super::super) fn push(
        &self,
        line: &AccessLine<'_>,
        out: &mut Vec<u8>,
        redaction: &Redaction,
        style: Style,
    ) -> bool {
        let mut put = Put { out, redaction, style };
        match &self.0 {
            Kind::Plain(plain) => put.plain(*plain, line),
            Kind::Time(timing, millis) => put.time(timing.of(line), *millis),
            Kind::RequestField(name) => put.header(line.request_fields, name),
            Kind::ResponseField(name) => put.header(line.response_fields, name),
            Kind::Cookie(name) => put.cookie(line, name),
        }
    }
}

impl Timing {
    fn of(self, line: &AccessLine<'_>) -> Option<Duration> {
        match self {
            Self::Duration => Some(line.duration),
            Self::TimeToHead => line.time_to_head,
            Self::Queue => line.queue,
            Self::Connect => line.connect,
            Self::FirstByte => line.first_byte,
        }
    }
}

/// Where a value goes, and in what form.
struct Put<'a> {
    out: &'a mut Vec<u8>,
    redaction: &'a Redaction,
    style: Style,
}

impl Put<'_> {
    fn plain(mut self, plain: Plain, line: &AccessLine<'_>) -> bool {
        let tls = line.conn.and_then(|conn| conn.tls.as_deref());
        match plain {
            Plain::Time | Plain::TimeLocal | Plain::TimeUnix => self.moment(plain, line),
            Plain::Client => self.shown(line.client),
            Plain::Peer => self.shown(line.conn.map(|conn| conn.peer)),
            Plain::Local => self.shown(line.conn.map(|conn| conn.local)),
            Plain::Method => self.text(Some(line.method.as_bytes()), MAX_OTHER),
            Plain::Scheme => self.word(line.conn.map(|conn| if conn.is_secure() { "https" } else { "http" })),
            Plain::Host => {
                let host = line.host.map(|host| self.redaction.authority(host));
                self.text(host.as_deref(), MAX_OTHER)
            }
            Plain::Target => {
                let target = self.redaction.target(line.target.as_bytes());
                self.text(Some(&target), MAX_TARGET)
            }
            Plain::Path => {
                let path = line.target.split(['?', '#']).next().unwrap_or_default();
                let path = self.redaction.target(path.as_bytes());
                self.text(Some(&path), MAX_TARGET)
            }
            Plain::Query => self.query(line.target),
            Plain::Protocol => self.word(Some(protocol_name(line.version))),
            Plain::Version => self.word(Some(version_name(line.version))),
            Plain::Request => self.request(line),
            Plain::Status => self.number(line.status.map(u64::from)),
            Plain::Bytes => self.number(Some(line.bytes)),
            Plain::Received => self.number(line.received),
            Plain::Referer => self.uri(line.referer, MAX_REFERER),
            Plain::UserAgent => self.uri(line.user_agent, MAX_USER_AGENT),
            Plain::Route => self.text(line.route.map(str::as_bytes), MAX_OTHER),
            Plain::User => self.text(line.user.map(str::as_bytes), MAX_OTHER),
            Plain::Upstream => self.text(line.upstream.map(str::as_bytes), MAX_OTHER),
            Plain::Cluster => self.text(line.cluster.map(str::as_bytes), MAX_OTHER),
            Plain::Attempts => self.number(line.attempts.map(u64::from)),
            Plain::Fault => self.text(line.fault.map(str::as_bytes), MAX_OTHER),
            Plain::Cache => self.text(line.cache.map(str::as_bytes), MAX_OTHER),
            Plain::Outcome => self.word(Some(line.outcome.name())),
            Plain::Aborted => self.boolean(Some(line.outcome != LineOutcome::Complete)),
            Plain::RequestId => self.uri(line.request_id, MAX_OTHER),
            Plain::TraceId => self.text(line.trace_id.map(str::as_bytes), MAX_OTHER),
            Plain::Conn => self.number(line.conn.map(|conn| conn.id.get())),
            Plain::ConnRequest => self.number(line.conn_request),
            Plain::Transport => self.word(line.conn.and_then(|conn| transport_name(conn.transport))),
            Plain::Tls => self.word(tls.and_then(|tls| tls.version).and_then(tls_name)),
            Plain::TlsCipher => self.word(tls.and_then(|tls| tls.cipher_suite)),
            Plain::TlsGroup => self.word(tls.and_then(|tls| tls.group)),
            Plain::TlsResumed => self.boolean(tls.map(|tls| tls.resumed)),
            Plain::TlsEarly => self.boolean(tls.map(|tls| tls.early_data.is_some())),
            Plain::Sni => {
                self.text(tls.and_then(|tls| tls.server_name.as_deref()).map(str::as_bytes), MAX_OTHER)
            }
            Plain::Alpn => self.text(tls.and_then(|tls| tls.alpn.as_deref()), MAX_OTHER),
            Plain::ClientSubject => {
                let mut subject = Vec::new();
                let chain = tls.and_then(|tls| tls.peer_chain.first());
                let read = chain.and_then(|leaf| push_subject(&mut subject, leaf));
                self.text(read.map(|()| subject.as_slice()), MAX_OTHER)
            }
        }
    }

    fn quote(&mut self) {
        if self.style == Style::Json {
            self.out.push(b'"');
        }
    }

    fn text(&mut self, text: Option<&[u8]>, limit: usize) -> bool {
        let Some(text) = text else { return false };
        self.quote();
        escape(self.out, text, limit, self.style);
        self.quote();
        true
    }

    /// Text that may be a URI, or a part of one, with something in it that nobody is to see.
    fn uri(&mut self, text: Option<&[u8]>, limit: usize) -> bool {
        let redaction = self.redaction;
        match text {
            Some(text) => self.text(Some(&redaction.apply(text)), limit),
            None => false,
        }
    }

    /// A word that is fit for every style as it is.
    fn word(&mut self, word: Option<&str>) -> bool {
        let Some(word) = word else { return false };
        self.quote();
        self.out.extend_from_slice(word.as_bytes());
        self.quote();
        true
    }

    fn shown(&mut self, value: Option<impl std::fmt::Display>) -> bool {
        let Some(value) = value else { return false };
        self.quote();
        display(self.out, value);
        self.quote();
        true
    }

    fn number(&mut self, number: Option<u64>) -> bool {
        let Some(number) = number else { return false };
        push_number(self.out, number);
        true
    }

    fn boolean(&mut self, value: Option<bool>) -> bool {
        let Some(value) = value else { return false };
        self.out.extend_from_slice(if value { b"true" } else { b"false" });
        true
    }

    fn time(self, duration: Option<Duration>, millis: bool) -> bool {
        let Some(duration) = duration else { return false };
        if millis {
            push_millis(self.out, duration);
        } else {
            push_seconds(self.out, duration);
        }
        true
    }

    fn moment(&mut self, plain: Plain, line: &AccessLine<'_>) -> bool {
        if plain == Plain::TimeUnix {
            time::push_unix(self.out, line.time);
            return true;
        }
        self.quote();
        if plain == Plain::Time {
            time::push_rfc3339(self.out, line.time);
        } else {
            time::push_clf(self.out, line.time);
        }
        self.quote();
        true
    }

    fn query(&mut self, target: &str) -> bool {
        let Some(at) = target.find('?') else { return false };
        // with its question mark, by which parameters are known
        let redacted = self.redaction.apply(&target.as_bytes()[at..]);
        self.text(redacted.get(1..), MAX_TARGET)
    }

    fn request(&mut self, line: &AccessLine<'_>) -> bool {
        self.quote();
        escape(self.out, line.method.as_bytes(), MAX_OTHER, self.style);
        self.space();
        escape(self.out, &self.redaction.target(line.target.as_bytes()), MAX_TARGET, self.style);
        self.space();
        self.out.extend_from_slice(version_name(line.version).as_bytes());
        self.quote();
        true
    }

    fn space(&mut self) {
        self.out.extend_from_slice(if self.style == Style::Bare { b"\\x20" } else { b" " });
    }

    /// Several lines of a field are one, with commas in between (RFC 9110 section 5.3).
    fn header(&mut self, fields: &[(HeaderName, HeaderValue)], name: &HeaderName) -> bool {
        let mut values = fields.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_bytes());
        let Some(first) = values.next() else { return false };
        match values.next() {
            None => self.uri(Some(first), MAX_OTHER),
            Some(second) => {
                let redacted = |line| self.redaction.apply(line);
                let all: Vec<_> = [first, second].into_iter().chain(values).map(redacted).collect();
                self.text(Some(&all.join(&b", "[..])), MAX_OTHER)
            }
        }
    }

    /// RFC 6265 section 5.4.
    fn cookie(&mut self, line: &AccessLine<'_>, name: &str) -> bool {
        let fields = line.request_fields.iter().filter(|(known, _)| *known == COOKIE);
        let value = fields
            .flat_map(|(_, value)| value.as_bytes().split(|byte| *byte == b';'))
            .find_map(|pair| pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"="));
        self.uri(value, MAX_OTHER)
    }
}
