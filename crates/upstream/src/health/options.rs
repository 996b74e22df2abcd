//! What is checked, how often, and what counts.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, uri::PathAndQuery};

/// How the endpoints of a cluster are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HealthOptions {
    /// What one check does.
    pub check: Check,
    /// From the end of a check to the next one, give or take a tenth by chance so that several instances do not
    /// check in step. Default 5 s.
    pub interval: Duration,
    /// The same for endpoints that are unhealthy. Default: as [`HealthOptions::interval`].
    pub unhealthy_interval: Option<Duration>,
    /// The most that one check takes, connecting included. Default 2 s.
    pub timeout: Duration,
    /// Checks in a row that must pass for an unhealthy endpoint to become healthy. Default 2; 0 is taken as 1.
    pub healthy_threshold: u32,
    /// Checks in a row that must fail for a healthy endpoint to become unhealthy. Default 3; 0 is taken as 1.
    pub unhealthy_threshold: u32,
    /// What an endpoint is before its first check. Default [`InitialHealth::Healthy`].
    pub initial: InitialHealth,
    /// Checks of one cluster that are under way at once; others wait for their turn. Default 32; 0 is taken as 1.
    pub max_concurrent: usize,
}

/// What an endpoint is before its first check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum InitialHealth {
    /// Requests go to it until checks fail. Its first check comes at a random moment within the first interval.
    #[default]
    Healthy,
    /// No request goes to it until a check passes: the first one comes at once, and is enough if it passes.
    Unhealthy,
}

/// What one check does. Each uses a connection of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Check {
    /// A request over HTTP/1.1.
    Http(HttpCheck),
    /// A connection, and bytes if told so.
    Tcp(TcpCheck),
    /// The call `grpc.health.v1.Health/Check` over HTTP/2.
    Grpc(GrpcCheck),
}

/// A request over HTTP/1.1. Redirects are not followed: they pass if their status is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HttpCheck {
    /// GET or HEAD. Default GET.
    pub method: Method,
    /// The path, and the query if there is one. Default `/`.
    pub path: PathAndQuery,
    /// The value of Host. Default: the endpoint's name, or `localhost` if that is none of a host.
    pub host: Option<HeaderValue>,
    /// Fields beside Host, User-Agent and Connection, which the check sets itself.
    pub headers: HeaderMap,
    /// Statuses that pass. Default 200 to 299.
    pub statuses: Vec<RangeInclusive<u16>>,
    /// What the body must contain within its first 64 KiB, which is the most that is read. Without it the body is
    /// not read. Default none.
    pub body_contains: Option<Bytes>,
}

/// A connection, and bytes if told so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TcpCheck {
    /// What is sent first. Default nothing.
    pub send: Bytes,
    /// What the endpoint's bytes must begin with. Default nothing: the connection is enough.
    pub expect: Bytes,
}

/// The call `grpc.health.v1.Health/Check`, which passes with the answer SERVING.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GrpcCheck {
    /// The service that is asked about. Default empty: the server as a whole.
    pub service: Arc<str>,
    /// The value of `:authority`. Default: the endpoint's name, or `localhost` if that is none of a host.
    pub authority: Option<Arc<str>>,
}

/// Options that contradict themselves.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidHealthOptions {
    /// No time between checks.
    #[error("the interval of health checks is zero")]
    Interval,
    /// No time for a check.
    #[error("the timeout of health checks is zero")]
    Timeout,
    /// Neither GET nor HEAD.
    #[error("health checks use GET or HEAD, not {0}")]
    Method(Method),
    /// No status passes.
    #[error("no status passes the health check")]
    Statuses,
    /// HEAD has no body.
    #[error("the answer to HEAD has no body for a health check to look into")]
    HeadBody,
    /// More text than is read.
    #[error("a health check looks for more than the 64 KiB of a body that it reads")]
    BodyLength,
    /// A field that the check sets.
    #[error("health checks set the field {0} themselves")]
    Field(&'static str),
    /// Not an authority.
    #[error("`{0}` is no authority for a health check")]
    Authority(Arc<str>),
    /// A service's name that is too long.
    #[error("the service's name of a health check is longer than 1024 bytes")]
    Service,
}

impl Default for HttpCheck {
    fn default() -> Self {
        Self {
            method: Method::GET,
            path: PathAndQuery::from_static("/"),
            host: None,
            headers: HeaderMap::new(),
            statuses: vec![200..=299],
            body_contains: None,
        }
    }
}

impl HttpCheck {
    /// A GET of this path.
    pub fn new(path: PathAndQuery) -> Self {
        Self { path, ..Self::default() }
    }

    /// Sets [`HttpCheck::method`].
    #[must_use]
    pub fn with_method(mut self, method: Method) -> Self {
        self.method = method;
        self
    }

    /// Sets [`HttpCheck::host`].
    #[must_use]
    pub fn with_host(mut self, host: HeaderValue) -> Self {
        self.host = Some(host);
        self
    }

    /// Sets [`HttpCheck::headers`].
    #[must_use]
    pub fn with_headers(mut self, headers: HeaderMap) -> Self {
        self.headers = headers;
        self
    }

    /// Sets [`HttpCheck::statuses`].
    #[must_use]
    pub fn with_statuses(mut self, statuses: Vec<RangeInclusive<u16>>) -> Self {
        self.statuses = statuses;
        self
    }

    /// Sets [`HttpCheck::body_contains`].
    #[must_use]
    pub fn with_body_contains(mut self, text: impl Into<Bytes>) -> Self {
        self.body_contains = Some(text.into());
        self
    }
}

impl TcpCheck {
    /// Sets [`TcpCheck::send`].
    #[must_use]
    pub fn with_send(mut self, bytes: impl Into<Bytes>) -> Self {
        self.send = bytes.into();
        self
    }

    /// Sets [`TcpCheck::expect`].
    #[must_use]
    pub fn with_expect(mut self, bytes: impl Into<Bytes>) -> Self {
        self.expect = bytes.into();
        self
    }
}

impl GrpcCheck {
    /// Sets [`GrpcCheck::service`].
    #[must_use]
    pub fn with_service(mut self, service: impl Into<Arc<str>>) -> Self {
        self.service = service.into();
        self
    }

    /// Sets [`GrpcCheck::authority`].
    #[must_use]
    pub fn with_authority(mut self, authority: impl Into<Arc<str>>) -> Self {
        self.authority = Some(authority.into());
        self
    }
}

impl HealthOptions {
    /// This check, and the defaults beside it.
    pub fn new(check: Check) -> Self {
        Self {
            check,
            interval: Duration::from_secs(5),
            unhealthy_interval: None,
            timeout: Duration::from_secs(2),
            healthy_threshold: 2,
            unhealthy_threshold: 3,
            initial: InitialHealth::Healthy,
            max_concurrent: 32,
        }
    }

    /// Sets [`HealthOptions::interval`].
    #[must_use]
    pub fn with_interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Sets [`HealthOptions::unhealthy_interval`].
    #[must_use]
    pub fn with_unhealthy_interval(mut self, interval: Duration) -> Self {
        self.unhealthy_interval = Some(interval);
        self
    }

    /// Sets [`HealthOptions::timeout`].
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets [`HealthOptions::healthy_threshold`].
    #[must_use]
    pub fn with_healthy_threshold(mut self, checks: u32) -> Self {
        self.healthy_threshold = checks;
        self
    }

    /// Sets [`HealthOptions::unhealthy_threshold`].
    #[must_use]
    pub fn with_unhealthy_threshold(mut self, checks: u32) -> Self {
        self.unhealthy_threshold = checks;
        self
    }

    /// Sets [`HealthOptions::initial`].
    #[must_use]
    pub fn with_initial(mut self, initial: InitialHealth) -> Self {
        self.initial = initial;
        self
    }

    /// Sets [`HealthOptions::max_concurrent`].
    #[must_use]
    pub fn with_max_concurrent(mut self, checks: usize) -> Self {
        self.max_concurrent = checks;
        self
    }

    /// Whether they can be followed.
    pub fn validate(&self) -> Result<(), InvalidHealthOptions> {
        if self.interval.is_zero() || self.unhealthy_interval.is_some_and(|interval| interval.is_zero()) {
            return Err(InvalidHealthOptions::Interval);
        }
        if self.timeout.is_zero() {
            return Err(InvalidHealthOptions::Timeout);
        }
        match &self.check {
            Check::Http(check) => check.validate(),
            Check::Tcp(_) => Ok(()),
            Check::Grpc(check) => check.validate(),
        }
    }
}

impl HttpCheck {
    fn validate(&self) -> Result<(), InvalidHealthOptions> {
        if self.method != Method::GET && self.method != Method::HEAD {
            return Err(InvalidHealthOptions::Method(self.method.clone()));
        }
        if self.statuses.iter().all(RangeInclusive::is_empty) {
            return Err(InvalidHealthOptions::Statuses);
        }
        if let Some(text) = &self.body_contains {
            if self.method == Method::HEAD {
                return Err(InvalidHealthOptions::HeadBody);
            }
            if text.len() > super::probe::MAX_BODY {
                return Err(InvalidHealthOptions::BodyLength);
            }
        }
        let own = ["host", "user-agent", "connection", "content-length", "transfer-encoding"];
        match own.into_iter().find(|name| self.headers.contains_key(*name)) {
            Some(name) => Err(InvalidHealthOptions::Field(name)),
            None => Ok(()),
        }
    }
}

impl GrpcCheck {
    fn validate(&self) -> Result<(), InvalidHealthOptions> {
        if let Some(authority) = &self.authority
            && authority.parse::<http::uri::Authority>().is_err()
        {
            return Err(InvalidHealthOptions::Authority(Arc::clone(authority)));
        }
        if self.service.len() > 1024 { Err(InvalidHealthOptions::Service) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contradictions_are_refused() {
        let http = |check| HealthOptions::new(Check::Http(check));
        let fields = HeaderMap::from_iter([(http::header::HOST, HeaderValue::from_static("a"))]);
        for (options, error) in [
            (http(HttpCheck::default()), None),
            (http(HttpCheck::default().with_method(Method::HEAD)), None),
            (http(HttpCheck::default()).with_interval(Duration::ZERO), Some(InvalidHealthOptions::Interval)),
            (
                http(HttpCheck::default()).with_unhealthy_interval(Duration::ZERO),
                Some(InvalidHealthOptions::Interval),
            ),
            (http(HttpCheck::default()).with_timeout(Duration::ZERO), Some(InvalidHealthOptions::Timeout)),
            (
                http(HttpCheck::default().with_method(Method::POST)),
                Some(InvalidHealthOptions::Method(Method::POST)),
            ),
            (http(HttpCheck::default().with_statuses(vec![])), Some(InvalidHealthOptions::Statuses)),
            (
                http(HttpCheck::default().with_method(Method::HEAD).with_body_contains("ok")),
                Some(InvalidHealthOptions::HeadBody),
            ),
            (
                http(HttpCheck::default().with_body_contains(vec![b'x'; 65_537])),
                Some(InvalidHealthOptions::BodyLength),
            ),
            (http(HttpCheck::default().with_headers(fields)), Some(InvalidHealthOptions::Field("host"))),
            (
                HealthOptions::new(Check::Grpc(GrpcCheck::default().with_authority("a b"))),
                Some(InvalidHealthOptions::Authority("a b".into())),
            ),
            (
                HealthOptions::new(Check::Grpc(GrpcCheck::default().with_service("s".repeat(1025)))),
                Some(InvalidHealthOptions::Service),
            ),
        ] {
            assert_eq!(options.validate().err(), error, "{options:?}");
        }
    }
}
