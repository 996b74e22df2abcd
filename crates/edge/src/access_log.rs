//! From what the middleware records to a line of the access log.

use std::sync::Arc;

use portcullis_conn::TlsVersion;
use portcullis_middleware::access_log::{AccessRecord, Outcome, Sink};
use portcullis_telemetry::access_log::{AccessLine, Format, Writer, WriterError, WriterGuard, WriterOptions};

use crate::plan::{AccessLogFormat, AccessLogPlan};

/// Hands records to the log's writer. Clones share it; with the last one what is buffered is written.
#[derive(Clone)]
pub(crate) struct LogSink {
    writer: Writer,
    _guard: Arc<WriterGuard>,
}

impl LogSink {
    pub(crate) fn open(plan: &AccessLogPlan) -> Result<Option<Self>, WriterError> {
        let options = |format: &AccessLogFormat| {
            WriterOptions::default().with_format(match format {
                AccessLogFormat::Combined => Format::Combined,
                AccessLogFormat::Json => Format::Json,
            })
        };
        let (writer, guard) = match plan {
            AccessLogPlan::Off => return Ok(None),
            AccessLogPlan::Stdout(format) => Writer::stdout(&options(format))?,
            AccessLogPlan::File(path, format) => Writer::file(path, &options(format))?,
        };
        Ok(Some(Self { writer, _guard: Arc::new(guard) }))
    }

    pub(crate) fn writer(&self) -> &Writer {
        &self.writer
    }
}

impl Sink for LogSink {
    fn record(&self, record: &AccessRecord) {
        let mut line =
            AccessLine::new(record.time(), record.method.as_str(), record.target(), record.version);
        line.client = record.client_ip;
        line.host = record.host();
        line.status = record.status.map(|status| status.as_u16());
        line.bytes = record.bytes_sent;
        line.duration = record.duration;
        line.time_to_head = record.time_to_head;
        line.referer = record.referer.as_ref().map(http::HeaderValue::as_bytes);
        line.user_agent = record.user_agent.as_ref().map(http::HeaderValue::as_bytes);
        line.upstream = record.upstream.as_deref();
        line.tls = record.tls_version().map(|version| match version {
            TlsVersion::Tls13 => "TLSv1.3",
            _ => "TLSv1.2",
        });
        line.conn_id = record.conn_id().map(portcullis_conn::ConnId::get);
        line.aborted = record.outcome != Outcome::Complete;
        self.writer.write(&line);
    }
}
