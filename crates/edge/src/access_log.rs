//! From what the middleware records to lines of the access log.

use std::{
    sync::{Arc, Weak},
    thread,
    time::{Duration, Instant},
};

use http::HeaderValue;
use parking_lot::Mutex;
use portcullis_middleware::access_log::{
    AccessRecord, Details, LogSlot, Outcome, RecordOptions, RouteLog, Sampling, Sink, Upstream,
    UpstreamDetails, Waiting, Which,
};
use portcullis_telemetry::access_log::{
    AccessLine, LineOutcome, Writer, WriterError, WriterGuard, WriterOptions,
};
use portcullis_upstream::Trip;
use tokio::{runtime::Handle, sync::watch, time::timeout};

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
    open: Mutex<Option<Open>>,
}

/// What an output is open by.
struct Open {
    /// First, since the second says that it is gone.
    _guard: WriterGuard,
    _told: watch::Receiver<()>,
}

/// The sinks that something may still be written to: that of now, and those of plans before it, with which requests go on.
#[derive(Default)]
pub(crate) struct Sinks {
    /// The newest is the last.
    known: Mutex<Vec<Weak<[Output]>>>,
    /// Each output has a receiver until all that it was given is written.
    open: watch::Sender<()>,
}

/// Sinks that are opened anew and closed with the newest. Those before them are older than as many reloads.
const KNOWN: usize = 16;
/// How long the end waits for all outputs. Each gives up after two seconds.
const CLOSING: Duration = Duration::from_secs(3);

impl Sinks {
    /// `None` where the plan has no log. Opens files.
    pub(crate) fn open(&self, plan: &Plan) -> Result<Option<LogSink>, WriterError> {
        if plan.access_log.is_empty() {
            return Ok(None);
        }
        let output = |log| Output::open(log, self.open.subscribe());
        let outputs: Arc<[Output]> = plan.access_log.iter().map(output).collect::<Result<_, _>>()?;
        let mut known = self.known.lock();
        known.retain(|sink| sink.strong_count() > 0);
        let too_many = known.len().saturating_sub(KNOWN - 1);
        known.drain(..too_many);
        known.push(Arc::downgrade(&outputs));
        Ok(Some(LogSink { outputs, options: options(plan) }))
    }

    fn all(&self) -> Vec<Arc<[Output]>> {
        self.known.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// Opens files anew.
    pub(crate) fn reopen(&self) {
        self.all().iter().flat_map(|sink| sink.iter()).for_each(|output| output.writer.reopen());
    }

    /// Ready when everything is written, or can't be. Later lines are dropped.
    pub(crate) async fn end(&self) {
        self.all().iter().flat_map(|sink| sink.iter()).for_each(Output::close);
        let _ = timeout(CLOSING, self.open.closed()).await;
    }
}

/// What needs a [`Details`].
const DETAILS: [&str; 5] = ["request_id", "trace_id", "conn_request", "fault", "cache"];
/// What is told by a [`LogSlot`].
const TOLD: [&str; 7] = ["route", "cluster", "upstream", "attempts", "queue", "connect", "first_byte"];

impl LogSink {
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
    fn open(plan: &AccessLogPlan, told: watch::Receiver<()>) -> Result<Self, WriterError> {
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
        let open = Mutex::new(Some(Open { _guard: guard, _told: told }));
        Ok(Self { writer, sampling: plan.sampling.clone(), wait, open })
    }

    /// Has what is buffered written. Inside of a runtime that is waited for in a thread of its own: after a reload the last of those who go on with an
    /// output is as a rule a worker, and a pipe that nobody reads must not keep it from its other requests.
    fn close(&self) {
        let Some(open) = self.open.lock().take() else { return };
        if Handle::try_current().is_ok() {
            // where there is no thread it is dropped here
            let _ = thread::Builder::new().name("access-log-end".to_owned()).spawn(move || drop(open));
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.close();
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
        let pressed = self.outputs.iter().filter(|output| output.writer.is_pressed());
        let pressed = pressed.filter_map(|output| Some((output.writer.clone(), output.wait?)));
        // none, as a rule: nothing is allocated then
        let pressed: Vec<_> = pressed.collect();
        if pressed.is_empty() {
            return None;
        }
        let since = Instant::now();
        Some(Box::pin(async move {
            for (writer, most) in pressed {
                // all at once: what was waited for another counts; past it the request goes on
                let _ = timeout(most.saturating_sub(since.elapsed()), writer.room()).await;
            }
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

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{
            atomic::{AtomicBool, Ordering},
            mpsc,
        },
        time::SystemTime,
    };

    use super::*;

    /// Whose writes stand still until its other end is dropped.
    struct Gate(mpsc::Receiver<()>, Arc<AtomicBool>);

    impl io::Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1.store(true, Ordering::Release);
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The line of a client that was answered out of the cache says nothing of who is asked for the next one (RFC 5861 section 3).
    #[test]
    fn what_is_asked_in_the_background_is_on_nobodys_line() {
        for (slot, background, watched) in [(true, false, true), (true, true, false), (false, false, false)] {
            let mut request = http::Request::new(());
            if slot {
                request.extensions_mut().insert(LogSlot::default());
            }
            if background {
                request.extensions_mut().insert(portcullis_cache::InBackground);
            }
            watch(&mut request, &"app".into());
            let trip = request.extensions().get::<Arc<Trip>>();
            assert_eq!(trip.is_some(), watched, "{slot} {background}");
        }
    }

    /// An output that is pressed until the gate is dropped.
    fn pressed(sinks: &Sinks, most: Duration) -> (mpsc::Sender<()>, Output) {
        let ((gate, closed), began) = (mpsc::channel(), Arc::<AtomicBool>::default());
        let options = WriterOptions::default().with_buffer_bytes(0).with_flush_interval(Duration::ZERO);
        let (writer, guard) = Writer::to(Gate(closed, Arc::clone(&began)), &options).unwrap();
        let line = AccessLine::new(SystemTime::now(), "GET", "/", http::Version::HTTP_11);
        writer.write(&line);
        // what comes from here on stays
        while !began.load(Ordering::Acquire) {
            thread::yield_now();
        }
        while !writer.is_pressed() {
            writer.write(&line);
        }
        let open = Mutex::new(Some(Open { _guard: guard, _told: sinks.open.subscribe() }));
        (gate, Output { writer, sampling: Sampling::default(), wait: Some(most), open })
    }

    #[tokio::test]
    async fn every_full_output_is_waited_for() {
        const SOON: Duration = Duration::from_secs(10);
        let sinks = Sinks::default();
        let ((first, one), (second, two)) = (pressed(&sinks, SOON), pressed(&sinks, SOON));
        let sink = LogSink { outputs: [one, two].into(), options: RecordOptions::default() };
        let mut waiting = sink.wait().unwrap();
        drop(first);
        timeout(SOON, sink.outputs[0].writer.room()).await.unwrap();
        assert!(timeout(Duration::from_millis(20), &mut waiting).await.is_err(), "the other is full");
        drop(second);
        timeout(SOON, waiting).await.unwrap();
        assert!(sink.wait().is_none());
    }

    #[tokio::test]
    async fn outputs_are_waited_for_at_once_and_not_for_ever() {
        let sinks = Sinks::default();
        let most = Duration::from_millis(200);
        let ((_first, one), (_second, two)) = (pressed(&sinks, most), pressed(&sinks, most));
        let sink = LogSink { outputs: [one, two].into(), options: RecordOptions::default() };
        let since = Instant::now();
        sink.wait().unwrap().await;
        assert!((most..2 * most).contains(&since.elapsed()), "{:?}", since.elapsed());
    }

    #[tokio::test]
    async fn nobody_who_serves_waits_for_the_end_of_an_output() {
        let sinks = Sinks::default();
        let (gate, output) = pressed(&sinks, Duration::ZERO);
        let writer = output.writer.clone();
        let since = Instant::now();
        drop(output);
        assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
        // but the end does
        assert!(timeout(Duration::from_millis(20), sinks.end()).await.is_err());
        drop(gate);
        sinks.end().await;
        assert!(sinks.open.is_closed() && !writer.is_pressed());
    }
}
