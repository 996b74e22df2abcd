//! From what the middleware records to lines of the access log.

use std::{sync::Arc, time::Duration};

use http::HeaderValue;
use portcullis_middleware::access_log::{
    AccessRecord, Details, LogSlot, Outcome, RecordOptions, RouteLog, Sampling, Sink, Upstream,
    UpstreamDetails, Waiting, Which,
};
use portcullis_telemetry::access_log::{
    AccessLine, LineOutcome, Writer, WriterError, WriterGuard, WriterOptions,
};
use portcullis_upstream::Trip;

use crate::plan::{AccessLogPlan, LogOutput, Overflow, Plan, Setting};

/// Hands records to the log's writers. Clones share them; with the last one what is buffered is written.
#[derive(Clone)]
pub(crate) struct LogSink {
    outputs: Arc<[Output]>,
    options: RecordOptions,
}

struct Output {
    writer: Writer,
    sampling: Sampling,
    wait: Option<Duration>,
    _guard: WriterGuard,
}

/// What needs a [`Details`].
const DETAILS: [&str; 5] = ["request_id", "trace_id", "conn_request", "fault", "cache"];
/// What is told by a [`LogSlot`].
const TOLD: [&str; 6] = ["route", "cluster", "attempts", "queue", "connect", "first_byte"];

impl LogSink {
    /// `None` where the plan has no log. Opens files.
    pub(crate) fn open(plan: &Plan) -> Result<Option<Self>, WriterError> {
        if plan.access_log.is_empty() {
            return Ok(None);
        }
        let outputs = plan.access_log.iter().map(Output::open).collect::<Result<_, _>>()?;
        Ok(Some(Self { outputs, options: options(plan) }))
    }

    /// The same writers for another plan of routes.
    pub(crate) fn for_plan(&self, plan: &Plan) -> Self {
        Self { outputs: Arc::clone(&self.outputs), options: options(plan) }
    }

    /// What records are to know.
    pub(crate) fn options(&self) -> &RecordOptions {
        &self.options
    }

    /// Whether it asks what became of requests at upstreams, and for their routes.
    pub(crate) fn wants_slot(&self) -> bool {
        self.options.slot
    }

    pub(crate) fn reopen(&self) {
        self.outputs.iter().for_each(|output| output.writer.reopen());
    }

    /// Lines that were dropped so far.
    pub(crate) fn dropped(&self) -> u64 {
        self.outputs.iter().map(|output| output.writer.dropped()).sum()
    }
}

/// What records have to know for all formats and samples.
fn options(plan: &Plan) -> RecordOptions {
    let has =
        |names: &[&str]| plan.access_log.iter().any(|log| names.iter().any(|name| log.format.has(name)));
    let one_of_many = |sampling: &Sampling| *sampling != Sampling::default();
    let sampled = plan.access_log.iter().any(|log| one_of_many(&log.sampling))
        || plan.routes.iter().filter_map(|route| route.access_log.own()).any(one_of_many);
    let by_route = plan.routes.iter().any(|route| !route.access_log.is_inherit());
    let headers = || plan.access_log.iter().flat_map(|log| log.format.headers());
    RecordOptions::default()
        .with_details(has(&DETAILS) || sampled)
        .with_received(has(&["received"]))
        .with_slot(has(&TOLD) || by_route)
        .with_request_fields(once(headers().filter(|(_, response)| !response).map(|(name, _)| name)))
        .with_response_fields(once(headers().filter(|(_, response)| *response).map(|(name, _)| name)))
}

fn once<T: PartialEq>(all: impl Iterator<Item = T>) -> Vec<T> {
    all.fold(Vec::new(), |mut known, one| {
        if !known.contains(&one) {
            known.push(one);
        }
        known
    })
}

impl Output {
    fn open(plan: &AccessLogPlan) -> Result<Self, WriterError> {
        let options = WriterOptions::default()
            .with_format(plan.format.clone())
            .with_redaction(plan.redaction.clone())
            .with_buffer_bytes(plan.buffer_bytes);
        let (writer, guard) = match &plan.output {
            LogOutput::Stdout => Writer::stdout(&options)?,
            LogOutput::File(path) => Writer::file(path, &options)?,
            #[cfg(unix)]
            LogOutput::Syslog(path) => Writer::syslog(path, &options)?,
            #[cfg(not(unix))]
            LogOutput::Syslog(path) => {
                let source = std::io::ErrorKind::Unsupported.into();
                return Err(WriterError::Syslog { path: path.clone(), source });
            }
        };
        let wait = match plan.overflow {
            Overflow::Drop => None,
            Overflow::Wait(most) => Some(most),
        };
        Ok(Self { writer, sampling: plan.sampling.clone(), wait, _guard: guard })
    }
}

impl Sink for LogSink {
    fn record(&self, record: &AccessRecord) {
        let details = record.details.as_deref();
        let sampling = match details.and_then(Details::route).map(|route| &route.which) {
            Some(Which::None) => return,
            Some(Which::Sample(own)) if !own.keeps(record) => return,
            Some(Which::Sample(_)) => None,
            _ => Some(()),
        };
        let mut outputs = self
            .outputs
            .iter()
            .filter(|output| sampling.is_none() || output.sampling.keeps(record))
            .peekable();
        if outputs.peek().is_none() {
            return;
        }
        let upstream = details.and_then(Details::upstream);
        let line = line(record, details, upstream.as_ref());
        outputs.for_each(|output| output.writer.write(&line));
    }

    fn wait(&self) -> Option<Waiting> {
        let pressed = |output: &&Output| output.wait.is_some() && output.writer.is_pressed();
        let output = self.outputs.iter().find(pressed)?;
        let (writer, most) = (output.writer.clone(), output.wait?);
        Some(Box::pin(async move {
            // past it the request goes on
            let _ = tokio::time::timeout(most, writer.room()).await;
        }))
    }
}

fn line<'r>(
    record: &'r AccessRecord,
    details: Option<&'r Details>,
    upstream: Option<&'r UpstreamDetails>,
) -> AccessLine<'r> {
    let bytes = |value: &'r Option<HeaderValue>| value.as_ref().map(HeaderValue::as_bytes);
    let mut line = AccessLine::new(record.time(), record.method.as_str(), record.target(), record.version);
    line.client = record.client_ip;
    line.conn = record.conn.as_deref();
    line.host = record.host();
    line.status = record.status.map(|status| status.as_u16());
    line.bytes = record.bytes_sent;
    line.duration = record.duration;
    line.time_to_head = record.time_to_head;
    line.referer = bytes(&record.referer);
    line.user_agent = bytes(&record.user_agent);
    line.user = record.user.as_deref();
    line.upstream = record.upstream.as_deref();
    line.outcome = match record.outcome {
        Outcome::Complete => LineOutcome::Complete,
        Outcome::Aborted => LineOutcome::Aborted,
        _ => LineOutcome::Failed,
    };
    if let Some(details) = details {
        line.conn_request = details.conn_request;
        line.received = details.received();
        line.route = details.route().map(|route| &*route.name);
        line.fault = details.fault;
        line.cache = details.cache();
        line.request_id = bytes(&details.request_id);
        line.trace_id = details.trace_id();
        line.request_fields = &details.request_fields;
        line.response_fields = &details.response_fields;
    }
    if let Some(upstream) = upstream {
        line.upstream = line.upstream.or(upstream.endpoint.as_deref());
        line.cluster = upstream.cluster.as_deref();
        line.attempts = Some(upstream.attempts);
        line.queue = upstream.queue;
        line.connect = upstream.connect;
        line.first_byte = upstream.first_byte;
    }
    line
}

/// What the log is to know of a route.
pub(crate) fn route_log(route: &crate::plan::RoutePlan) -> Arc<RouteLog> {
    let name = route.label();
    let which = match &route.access_log {
        Setting::Inherit => Which::Usual,
        Setting::Off => Which::None,
        Setting::Own(sampling) => Which::Sample(sampling.clone()),
    };
    Arc::new(RouteLog::new(name).with_which(which))
}

/// Puts what a cluster tells of a request where the log finds it. Nothing where no log asks.
pub(crate) fn watch<B>(request: &mut http::Request<B>, cluster: &Arc<str>) {
    let Some(slot) = request.extensions().get::<LogSlot>() else { return };
    // The slot is of the client that had its answer out of the cache.
    if request.extensions().get::<portcullis_cache::InBackground>().is_some() {
        return;
    }
    let trip = Arc::<Trip>::default();
    slot.set_upstream(Watched { cluster: Arc::clone(cluster), trip: Arc::clone(&trip) });
    request.extensions_mut().insert(trip);
}

struct Watched {
    cluster: Arc<str>,
    trip: Arc<Trip>,
}

impl Upstream for Watched {
    fn details(&self) -> UpstreamDetails {
        let mut details = UpstreamDetails::default();
        details.cluster = Some(Arc::clone(&self.cluster));
        details.endpoint = self.trip.endpoint();
        details.attempts = self.trip.attempts();
        details.queue = Some(self.trip.queue());
        details.connect = self.trip.connect();
        details.first_byte = self.trip.first_byte();
        details
    }
}
