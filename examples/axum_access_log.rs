//! `portcullis-middleware`'s access log around an axum app, written by `portcullis-telemetry`: lines of one's own form, off the hot
//! path, without the secrets of URIs. Try `curl 'http://127.0.0.1:7011/?token=secret'`.
#![allow(clippy::print_stderr)]

use std::sync::Arc;

use axum::{Router, routing::get};
use portcullis_middleware::access_log::{AccessLogLayer, AccessRecord};
use portcullis_telemetry::access_log::{AccessLine, Format, Template, Writer, WriterOptions};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let template =
        Template::parse("$time \"$method $target\" $status $bytes ${duration_ms}ms \"$user_agent\"")?;
    let options = WriterOptions::default().with_format(Format::Template(template));
    // what is buffered is written when the guard is dropped
    let (writer, _guard) = Writer::stdout(&options)?;
    let sink = move |record: &AccessRecord| {
        let (method, target) = (record.method.as_str(), record.target());
        let mut line = AccessLine::new(record.time(), method, target, record.version);
        line.status = record.status.map(|status| status.as_u16());
        line.bytes = record.bytes_sent;
        line.duration = record.duration;
        line.user_agent = record.user_agent.as_ref().map(|agent| agent.as_bytes());
        writer.write(&line);
    };
    let app = Router::new().route("/", get(async || "hello\n")).layer(AccessLogLayer::new(Arc::new(sink)));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:7011").await?;
    eprintln!("http://{}", listener.local_addr()?);
    axum::serve(listener, app).with_graceful_shutdown(async { drop(tokio::signal::ctrl_c().await) }).await?;
    Ok(())
}
