//! Certificates for names that clients ask for.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use portcullis_tls::client::Roots;

use crate::{
    client::{self, Client},
    dns::BoxFuture,
    error::OptionsError,
    seldom::Seldom,
};

/// Says for which names a certificate may be issued. Without it, anybody could point names here and use up the
/// authority's limits.
pub trait AskPolicy: Send + Sync + 'static {
    /// Whether a certificate may be issued, or renewed, for this name: a DNS name in lower case. After 5 s without an
    /// answer the name is refused.
    fn allows<'a>(&'a self, name: &'a str) -> BoxFuture<'a, bool>;
}

impl<F, Fut> AskPolicy for F
where
    F: Fn(String) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = bool> + Send + 'static,
{
    fn allows<'a>(&'a self, name: &'a str) -> BoxFuture<'a, bool> {
        Box::pin(self(name.to_owned()))
    }
}

impl fmt::Debug for dyn AskPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AskPolicy")
    }
}

/// Asks over HTTP: `GET URL?domain=NAME`, and status 200 is a yes. Everything else, errors and redirections included,
/// is a no.
pub struct HttpAsk {
    url: String,
    client: Client,
    told: Seldom,
}

impl HttpAsk {
    /// With a URL, `http` or `https`. `roots` are whom to believe for the latter; for
    /// `http` they are not looked at.
    ///
    /// # Errors
    /// When the URL can't be used, or the roots.
    pub fn new(url: impl Into<String>, roots: Roots) -> Result<Self, OptionsError> {
        let url = url.into();
        client::check_url(&url, "the URL to ask", &["http", "https"])?;
        if url.contains('#') {
            return Err(OptionsError::Url { url, what: "the URL to ask", reason: "it has a fragment" });
        }
        let is_plain = url.to_ascii_lowercase().starts_with("http:");
        let client = if is_plain { Client::without_tls() } else { Client::new(roots)? };
        Ok(Self { url, client, told: Seldom::default() })
    }
}

/// A query may have a secret in it.
fn without_query(text: &str) -> String {
    match text.split_once('?') {
        None => text.to_owned(),
        Some((before, query)) => {
            let rest = query.find(": ").map_or("", |at| &query[at..]);
            format!("{before}{rest}")
        }
    }
}

impl fmt::Debug for HttpAsk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpAsk").field("url", &without_query(&self.url)).finish_non_exhaustive()
    }
}

impl AskPolicy for HttpAsk {
    fn allows<'a>(&'a self, name: &'a str) -> BoxFuture<'a, bool> {
        let between = if self.url.contains('?') { '&' } else { '?' };
        // a DNS name needs no escaping
        let url = format!("{}{between}domain={name}", self.url);
        Box::pin(async move {
            match self.client.status(&url).await {
                Ok(status) => status == http::StatusCode::OK,
                Err(error) => {
                    if let Some(others) = self.told.now() {
                        tracing::warn!(
                            name,
                            error = without_query(&error),
                            url = without_query(&self.url),
                            others,
                            "could not ask whether a certificate may be issued"
                        );
                    }
                    false
                }
            }
        })
    }
}

/// Certificates on demand: who may have one, and how much of it at once.
///
/// A handshake for a name that no certificate has waits while the policy is asked and the certificate issued. What
/// strangers can make grow is bounded by each of the options; beyond a bound handshakes go on at once with what the
/// store has.
#[derive(Clone)]
#[non_exhaustive]
pub struct OnDemand {
    /// Asked before every issuance, and before every renewal.
    pub ask: Arc<dyn AskPolicy>,
    /// How many first orders are begun at most in any stretch of `per`. Default 10 in 10 minutes, far below what
    /// authorities allow an account. Counted in each instance for itself.
    pub max_issued: usize,
    /// See `max_issued`. Default 10 min.
    pub per: Duration,
    /// How many names may have certificates on demand. Default 10,000, which take about 100 MiB.
    pub max_names: usize,
    /// How many names may be asked about or waited for at once. Default 64.
    pub max_pending: usize,
    /// How long a name that was refused is not asked about again; one for which issuance failed longer each time, up to a day, and never before
    /// the authority wants it. Default 5 min. The
    /// 10,000 latest are remembered, in about 1 MiB.
    pub refused_for: Duration,
    /// How long a handshake waits. Default 8 s, which is under the acceptor's default deadline of 10 s.
    pub wait: Duration,
}

impl OnDemand {
    /// With a policy, as a closure from a name (`String`) to a future of `bool`, an [`HttpAsk`], or one's own.
    pub fn new(ask: impl AskPolicy) -> Self {
        Self {
            ask: Arc::new(ask),
            max_issued: 10,
            per: Duration::from_secs(600),
            max_names: 10_000,
            max_pending: 64,
            refused_for: Duration::from_secs(300),
            wait: Duration::from_secs(8),
        }
    }

    /// Sets [`OnDemand::max_issued`] and [`OnDemand::per`].
    #[must_use]
    pub fn with_max_issued_per(mut self, max_issued: usize, per: Duration) -> Self {
        self.max_issued = max_issued;
        self.per = per;
        self
    }

    /// Sets [`OnDemand::max_names`].
    #[must_use]
    pub fn with_max_names(mut self, max_names: usize) -> Self {
        self.max_names = max_names;
        self
    }

    /// Sets [`OnDemand::max_pending`].
    #[must_use]
    pub fn with_max_pending(mut self, max_pending: usize) -> Self {
        self.max_pending = max_pending;
        self
    }

    /// Sets [`OnDemand::refused_for`].
    #[must_use]
    pub fn with_refused_for(mut self, refused_for: Duration) -> Self {
        self.refused_for = refused_for;
        self
    }

    /// Sets [`OnDemand::wait`].
    #[must_use]
    pub fn with_wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }
}

impl fmt::Debug for OnDemand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnDemand")
            .field("max_issued", &self.max_issued)
            .field("per", &self.per)
            .field("max_names", &self.max_names)
            .field("max_pending", &self.max_pending)
            .field("refused_for", &self.refused_for)
            .field("wait", &self.wait)
            .finish_non_exhaustive()
    }
}

const DAY: Duration = Duration::from_secs(86_400);

/// Names that are not asked about again for a while; the oldest make room.
#[derive(Debug)]
pub(crate) struct Refused {
    most: usize,
    keep: Duration,
    /// Until when, since the moment that all times are counted from, and how often it failed.
    names: HashMap<Box<str>, (Duration, u32)>,
}

impl Refused {
    pub(crate) fn new(most: usize, keep: Duration) -> Self {
        Self { most, keep, names: HashMap::new() }
    }

    pub(crate) fn has(&self, name: &str, now: Duration) -> bool {
        self.names.get(name).is_some_and(|(until, _)| now < *until)
    }

    /// The policy refused it.
    pub(crate) fn insert(&mut self, name: &str, now: Duration) {
        self.put(name, now, self.keep, 0);
    }

    /// It could not be issued, and is not to be tried again within `wait`; longer each time, up to a day.
    pub(crate) fn insert_failed(&mut self, name: &str, now: Duration, wait: Duration) {
        let failures = self.names.get(name).map_or(0, |(_, failures)| *failures).saturating_add(1);
        let longer = self.keep.saturating_mul(1 << (failures - 1).min(16)).min(DAY);
        self.put(name, now, longer.max(wait), failures);
    }

    fn put(&mut self, name: &str, now: Duration, keep: Duration, failures: u32) {
        if self.names.len() >= self.most {
            self.names.retain(|_, (until, _)| now < *until);
        }
        if self.names.len() >= self.most {
            // rarely, so looking at all of them is no matter: an eighth goes
            let mut times: Vec<_> = self.names.values().map(|(until, _)| *until).collect();
            times.sort_unstable();
            let bound = times[times.len() / 8];
            self.names.retain(|_, (until, _)| *until > bound);
        }
        if self.names.len() < self.most {
            self.names.insert(name.into(), (now.saturating_add(keep), failures));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_forgotten_in_time() {
        let s = Duration::from_secs;
        let mut refused = Refused::new(10, s(300));
        refused.insert("a.example", s(5));
        assert!(refused.has("a.example", s(304)) && !refused.has("a.example", s(305)));
        assert!(!refused.has("b.example", s(5)));
    }

    #[test]
    fn who_fails_waits_longer_each_time() {
        let s = Duration::from_secs;
        let mut refused = Refused::new(10, s(300));
        let mut now = s(0);
        for (wait, until) in [(s(60), 300), (s(60), 600), (s(7200), 7200), (s(60), 2400)] {
            refused.insert_failed("a.example", now, wait);
            assert!(
                refused.has("a.example", now + s(until - 1)) && !refused.has("a.example", now + s(until))
            );
            now += s(until);
        }
    }

    #[test]
    fn refusals_have_a_bound_and_the_latest_stay() {
        let mut refused = Refused::new(64, Duration::from_secs(300));
        for n in 0..1000_u32 {
            refused.insert(&format!("{n}.example"), Duration::from_millis(u64::from(n)));
            assert!(refused.names.len() <= 64);
            assert!(refused.has(&format!("{n}.example"), Duration::from_secs(1)));
        }
        assert!(!refused.has("0.example", Duration::from_secs(1)));
        // all of one moment: there is nothing older than the rest
        let mut refused = Refused::new(4, Duration::from_secs(300));
        for n in 0..20 {
            refused.insert(&n.to_string(), Duration::ZERO);
            assert!(refused.names.len() <= 4);
        }
    }

    #[tokio::test]
    async fn a_policy_over_http() {
        use portcullis_testkit::origin::{Answer, RawOrigin};
        let said = |status: &str| Answer::raw(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n"));
        let moved = Answer::raw("HTTP/1.1 302 Found\r\nLocation: /yes\r\nContent-Length: 0\r\n\r\n");
        let answers =
            vec![Answer::ok("no"), said("204 No Content"), said("403 Forbidden"), moved, Answer::Close];
        let origin = RawOrigin::script(answers).await;
        let roots = Roots::DangerouslyAcceptAnyCertificate;
        let ask = HttpAsk::new(format!("http://{}/ask?key=1", origin.addr()), roots).unwrap();
        assert!(ask.allows("a.example").await, "the status says it, not the text");
        for what in ["another success", "a refusal", "a redirection", "no answer"] {
            assert!(!ask.allows("a.example").await, "{what}");
        }
        assert!(origin.received_text().starts_with("GET /ask?key=1&domain=a.example HTTP/1.1\r\n"));
    }

    #[test]
    fn a_query_is_not_logged() {
        for (text, want) in [
            ("http://a.example/ask", "http://a.example/ask"),
            ("http://a.example/ask?key=1&domain=b", "http://a.example/ask"),
            (
                "http://a.example/ask?key=1: connection refused: why?",
                "http://a.example/ask: connection refused: why?",
            ),
        ] {
            assert_eq!(without_query(text), want);
        }
    }

    #[test]
    fn an_ask_url_is_checked() {
        for url in ["ftp://a.example/", "a.example", "http:///x", "http://a.example/#x"] {
            assert!(HttpAsk::new(url, Roots::Given(Vec::new())).is_err(), "{url}");
        }
    }
}
