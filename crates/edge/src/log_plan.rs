//! What a plan says of the access log.

use std::{path::PathBuf, time::Duration};

use portcullis_middleware::access_log::Sampling;
use portcullis_telemetry::access_log::{Format, Redaction};

/// One destination of the access log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AccessLogPlan {
    /// Where lines go.
    pub output: LogOutput,
    /// What they look like. Default: the combined format.
    pub format: Format,
    /// Which parameters of URIs are hidden. Default: those that are secrets more often than not.
    pub redaction: Redaction,
    /// Which requests are logged. Default: all. A route can say otherwise ([`crate::plan::RoutePlan::access_log`]).
    pub sampling: Sampling,
    /// What happens where lines come faster than they are written. Default [`Overflow::Drop`].
    pub overflow: Overflow,
    /// How many bytes of lines may wait to be written. Default 4 MiB, at least 512 KiB.
    pub buffer_bytes: usize,
}

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogOutput {
    /// To standard output.
    Stdout,
    /// Appended to a file.
    File(PathBuf),
    /// To a syslog daemon on this machine, by its socket.
    Syslog(PathBuf),
}

/// What happens where lines come faster than they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Overflow {
    /// Lines for which there is no room are dropped and counted: a slow disk slows nobody.
    #[default]
    Drop,
    /// Requests that come while a buffer is more than half full wait for room before they begin, for so long at most; then they go on, and a line
    /// for which there is still no room is dropped and counted. No thread waits: connections that don't ask for anything new go on.
    Wait(Duration),
}

impl AccessLogPlan {
    /// Lines in the combined format.
    pub fn new(output: LogOutput) -> Self {
        Self {
            output,
            format: Format::default(),
            redaction: Redaction::default(),
            sampling: Sampling::default(),
            overflow: Overflow::default(),
            buffer_bytes: 4 * 1024 * 1024,
        }
    }

    /// Sets [`AccessLogPlan::format`].
    #[must_use]
    pub fn with_format(mut self, format: Format) -> Self {
        self.format = format;
        self
    }
}
