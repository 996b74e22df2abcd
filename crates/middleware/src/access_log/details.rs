//! What a record knows beyond what every log shows, and how it gets to know it.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Request, Response};

use super::Sampling;
use crate::request_id::{RequestId, X_REQUEST_ID};

/// What records are to know beyond what every log shows. Nothing of it is looked for unless it is asked for here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordOptions {
    /// Whether there are [`Details`] at all: ids, timings, faults. Default `false`. One allocation for a request.
    pub details: bool,
    /// Whether bytes of request content are counted. Default `false`. One allocation for a request that has content.
    pub received: bool,
    /// Whether a [`LogSlot`] is put into requests. Default `false`. Two allocations for a request.
    pub slot: bool,
    /// Fields of requests that are kept, each of their lines, at most 32 of them all. Default none.
    pub request_fields: Vec<HeaderName>,
    /// Fields of responses, likewise.
    pub response_fields: Vec<HeaderName>,
}

/// The most lines of fields that are kept of a request, and as many of its response.
const MAX_LINES: usize = 32;

impl RecordOptions {
    /// Sets [`RecordOptions::details`].
    #[must_use]
    pub fn with_details(mut self, yes: bool) -> Self {
        self.details = yes;
        self
    }

    /// Sets [`RecordOptions::received`].
    #[must_use]
    pub fn with_received(mut self, yes: bool) -> Self {
        self.received = yes;
        self
    }

    /// Sets [`RecordOptions::slot`].
    #[must_use]
    pub fn with_slot(mut self, yes: bool) -> Self {
        self.slot = yes;
        self
    }

    /// Sets [`RecordOptions::request_fields`].
    #[must_use]
    pub fn with_request_fields(mut self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.request_fields = names.into_iter().collect();
        self
    }

    /// Sets [`RecordOptions::response_fields`].
    #[must_use]
    pub fn with_response_fields(mut self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.response_fields = names.into_iter().collect();
        self
    }

    fn wants_box(&self) -> bool {
        self.details
            || self.received
            || self.slot
            || !self.request_fields.is_empty()
            || !self.response_fields.is_empty()
    }
}

/// What became of a request at an upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UpstreamDetails {
    /// The cluster that it went to.
    pub cluster: Option<Arc<str>>,
    /// The endpoint of the last attempt.
    pub endpoint: Option<Arc<str>>,
    /// How many attempts were made at endpoints.
    pub attempts: u32,
    /// How long they waited for a place at one. `None` where nobody measured.
    pub queue: Option<Duration>,
    /// How long connecting took, TLS included; `None` where the connection was there.
    pub connect: Option<Duration>,
    /// From sending the request to the endpoint that answered until its response's head.
    pub first_byte: Option<Duration>,
}

/// Who knows what became of a request at an upstream; asked when the request is over.
pub trait Upstream: Send + Sync + 'static {
    /// What is known by now.
    fn details(&self) -> UpstreamDetails;
}

/// Why there was no answer of an upstream's, by its name: put into the extensions of the response that says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultReason(pub &'static str);

/// What the log is to know of a request's route, and what it is to do with such requests.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RouteLog {
    /// What the route is called.
    pub name: Arc<str>,
    /// Which of its requests are logged.
    pub which: Which,
}

impl RouteLog {
    /// A route of this name, logged like the others.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self { name: name.into(), which: Which::Usual }
    }

    /// Sets [`RouteLog::which`].
    #[must_use]
    pub fn with_which(mut self, which: Which) -> Self {
        self.which = which;
        self
    }
}

/// Which requests of a route are logged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Which {
    /// Those that are logged anyway.
    #[default]
    Usual,
    /// None.
    None,
    /// A sample of its own.
    Sample(Sampling),
}

/// Where whoever knows the route of a request, or sends it to an upstream, tells the log: among the request's extensions where [`RecordOptions::slot`] is
/// set. What is told is in the record even if there is never a response.
#[derive(Clone, Default)]
pub struct LogSlot(Arc<Told>);

#[derive(Default)]
struct Told {
    route: OnceLock<Arc<RouteLog>>,
    upstream: OnceLock<Box<dyn Upstream>>,
}

impl LogSlot {
    /// Tells the route. The first who does is right.
    pub fn set_route(&self, route: Arc<RouteLog>) {
        // a second one is a mistake of the caller's that a log can live with
        let _ = self.0.route.set(route);
    }

    /// Tells whom to ask about the upstream. The first who does is right.
    pub fn set_upstream(&self, upstream: impl Upstream) {
        let _ = self.0.upstream.set(Box::new(upstream));
    }
}

impl fmt::Debug for LogSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogSlot").field("route", &self.0.route).finish_non_exhaustive()
    }
}

/// What a record knows beyond what every log shows. What was not asked for by [`RecordOptions`] is empty.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Details {
    /// The request's id where one was given to it ([`crate::request_id::RequestId`]); else the response's `X-Request-Id`, or else the request's, which anybody
    /// may have made up.
    pub request_id: Option<HeaderValue>,
    /// Which request it is on its connection, from 1.
    pub conn_request: Option<u64>,
    /// Why there is none of an upstream's.
    pub fault: Option<&'static str>,
    /// Fields of the request that were asked for.
    pub request_fields: Vec<(HeaderName, HeaderValue)>,
    /// Fields of the response, likewise.
    pub response_fields: Vec<(HeaderName, HeaderValue)>,
    /// Whether the id was given to the request by a layer outside of this one: nobody else's takes its place.
    id_is_given: bool,
    trace_parent: Option<HeaderValue>,
    cache_status: Option<HeaderValue>,
    slot: Option<LogSlot>,
    received: Option<Arc<AtomicU64>>,
}

const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
/// What the edge calls its own cache in `Cache-Status`.
const OUR_CACHE: &str = "portcullis";

impl Details {
    pub(super) fn begin<B>(request: &mut Request<B>, options: &RecordOptions) -> Option<Box<Self>>
    where
        B: http_body::Body,
    {
        if !options.wants_box() {
            return None;
        }
        let mut details = Box::<Self>::default();
        let headers = request.headers();
        if options.details {
            details.request_id = headers.get(X_REQUEST_ID).cloned();
            details.id_is_given = request.extensions().get::<RequestId>().is_some();
            details.trace_parent = headers.get(TRACE_PARENT).cloned();
            details.conn_request = crate::conn_info(request.extensions()).map(|conn| conn.requests.next());
        }
        details.request_fields = keep(headers, &options.request_fields);
        details.received = (options.received && !request.body().is_end_stream()).then(Arc::default);
        if options.slot {
            let slot = LogSlot::default();
            request.extensions_mut().insert(slot.clone());
            details.slot = Some(slot);
        }
        Some(details)
    }

    pub(super) fn counter(&self) -> Option<Arc<AtomicU64>> {
        self.received.clone()
    }

    pub(super) fn head<B>(&mut self, response: &Response<B>, options: &RecordOptions) {
        let (headers, extensions) = (response.headers(), response.extensions());
        if options.details {
            if !self.id_is_given
                && let Some(id) = headers.get(X_REQUEST_ID)
            {
                self.request_id = Some(id.clone());
            }
            self.fault = fault(extensions);
            // whoever is nearer to the client comes later (RFC 9211 section 2)
            self.cache_status = headers.get_all(CACHE_STATUS).iter().next_back().cloned();
        }
        self.response_fields = keep(headers, &options.response_fields);
    }

    /// The id of the trace that the request is a part of: of a `traceparent` in the form of W3C trace context level 1, section 3.2.
    pub fn trace_id(&self) -> Option<&str> {
        let text = self.trace_parent.as_ref()?.to_str().ok()?;
        let mut parts = text.split('-');
        let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let hex = |text: &str, len: usize| {
            text.len() == len && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        // version ff is none; later ones may have more parts
        let sound = hex(version, 2)
            && version != "ff"
            && (version != "00" || parts.next().is_none())
            && hex(trace, 32)
            && trace.bytes().any(|byte| byte != b'0')
            && hex(parent, 16)
            && hex(flags, 2);
        sound.then_some(trace)
    }

    /// What the edge's own cache did, in a word: `hit`, or why it asked the upstream, as in `Cache-Status` (RFC 9211 section 2.2).
    pub fn cache(&self) -> Option<&str> {
        let text = self.cache_status.as_ref()?.to_str().ok()?;
        let mut parts = outside_quotes(last_member(text), ';').map(str::trim);
        if parts.next()? != OUR_CACHE {
            return None;
        }
        parts.find_map(|part| if part == "hit" { Some(part) } else { part.strip_prefix("fwd=") })
    }

    /// What is known of the route.
    pub fn route(&self) -> Option<&RouteLog> {
        self.slot.as_ref()?.0.route.get().map(|route| &**route)
    }

    /// What became of the request at an upstream; `None` where it came to none.
    pub fn upstream(&self) -> Option<UpstreamDetails> {
        self.slot.as_ref()?.0.upstream.get().map(|upstream| upstream.details())
    }

    /// Bytes of request content that were read so far; `None` where they were not counted.
    pub fn received(&self) -> Option<u64> {
        self.received.as_ref().map(|received| received.load(Ordering::Relaxed))
    }
}

/// The last member of a list (RFC 9651 section 3.1), whose strings may have commas in them.
fn last_member(list: &str) -> &str {
    outside_quotes(list, ',').last().unwrap_or_default().trim()
}

/// The parts between separators that stand outside of strings.
fn outside_quotes(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |c| {
        if escaped {
            escaped = false;
            return false;
        }
        match c {
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ => {}
        }
        !quoted && c == separator
    })
}

/// Looked for in every response of a record with details. Most have no extensions, or few: it costs a look at a small table.
fn fault(extensions: &Extensions) -> Option<&'static str> {
    extensions.get::<FaultReason>().map(|FaultReason(reason)| *reason)
}

fn keep(headers: &HeaderMap, names: &[HeaderName]) -> Vec<(HeaderName, HeaderValue)> {
    let lines = names.iter().flat_map(|name| headers.get_all(name).iter().map(move |value| (name, value)));
    lines.take(MAX_LINES).map(|(name, value)| (name.clone(), value.clone())).collect()
}
