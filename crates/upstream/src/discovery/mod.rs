//! Where the endpoints of a cluster come from when they are not written down: a source that is asked again and again.

#[cfg(feature = "dns")]
mod dns;
mod file;

use std::{convert::Infallible, fmt::Display, time::Duration};

use tracing::{info, warn};

use crate::{Endpoint, health::jitter};

#[cfg(feature = "dns")]
pub use dns::{DnsError, DnsFamily, DnsOptions, DnsRecords, DnsSource, MAX_ENDPOINTS};
pub use file::{FileError, FileSource, InvalidLine, parse};

/// A list, and how long it may be used before the source is asked again.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Found {
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
    /// Until the source is asked again.
    pub valid_for: Duration,
}

impl Found {
    /// These endpoints, in an order that depends on nothing but them, and each once.
    pub fn new(mut endpoints: Vec<Endpoint>, valid_for: Duration) -> Self {
        endpoints.sort_by(|a, b| (a.priority(), a.name()).cmp(&(b.priority(), b.name())));
        let mut seen = std::collections::HashSet::new();
        endpoints.retain(|endpoint| seen.insert(endpoint.name().to_owned()));
        Self { endpoints, valid_for }
    }
}

/// A source of endpoints.
pub trait Resolve {
    /// Why there is no list.
    type Error: Display;

    /// Asks the source.
    fn resolve(&self) -> impl Future<Output = Result<Found, Self::Error>> + Send;

    /// How long to wait after this many failures in a row: 1 s, doubled up to 30 s.
    fn retry_after(&self, failures: u32) -> Duration {
        Duration::from_secs(1_u64.checked_shl(failures.saturating_sub(1)).unwrap_or(u64::MAX).min(30))
    }
}

/// What an empty list means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Empty {
    /// A mistake of the source: the last list stays.
    #[default]
    Keep,
    /// A cluster without endpoints.
    Apply,
}

/// Asks a source for ever, and gives each list that differs from the one before to `apply`. A source that fails is
/// logged when it begins to, or fails differently; the last list stays for as long as that lasts.
pub async fn follow<S, A, E>(cluster: &str, source: S, empty: Empty, apply: A) -> Infallible
where
    S: Resolve,
    A: Fn(Vec<Endpoint>) -> Result<(), E>,
    E: Display,
{
    let (mut last, mut failures, mut said) = (None, 0_u32, None);
    loop {
        let result = match source.resolve().await {
            Ok(found) if found.endpoints.is_empty() && empty == Empty::Keep => {
                Err("the list is empty".to_owned())
            }
            Ok(found) if last.as_ref() == Some(&found.endpoints) => Ok(found.valid_for),
            Ok(found) => match apply(found.endpoints.clone()) {
                Ok(()) => {
                    info!(cluster, endpoints = found.endpoints.len(), "the cluster has other endpoints");
                    last = Some(found.endpoints);
                    Ok(found.valid_for)
                }
                Err(error) => Err(error.to_string()),
            },
            Err(error) => Err(error.to_string()),
        };
        let wait = match result {
            Ok(valid_for) => {
                if said.take().is_some() {
                    info!(cluster, "the source of the cluster's endpoints is well again");
                }
                failures = 0;
                valid_for
            }
            Err(why) => {
                if said.as_ref() != Some(&why) {
                    warn!(cluster, why, "no new endpoints for the cluster: the last ones stay");
                    said = Some(why);
                }
                failures = failures.saturating_add(1);
                source.retry_after(failures)
            }
        };
        tokio::time::sleep(jitter::around(wait, jitter::random())).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    struct Script(Mutex<Vec<Result<Vec<&'static str>, &'static str>>>);

    impl Resolve for Script {
        type Error = &'static str;

        async fn resolve(&self) -> Result<Found, Self::Error> {
            let mut steps = self.0.lock().unwrap();
            let step = if steps.len() > 1 { steps.remove(0) } else { steps[0].clone() };
            let listed = step?.iter().map(|text| text.parse::<Endpoint>().unwrap()).collect();
            Ok(Found::new(listed, Duration::from_secs(1)))
        }
    }

    async fn applied(empty: Empty) -> Vec<Vec<String>> {
        let script = Script(Mutex::new(vec![
            Err("down"),
            Ok(vec!["b:1", "a:1", "b:1"]),
            Ok(vec!["a:1", "b:1"]),
            Err("down"),
            Ok(vec![]),
            Ok(vec!["c:1"]),
        ]));
        let lists = Mutex::new(Vec::new());
        let apply = |list: Vec<Endpoint>| {
            lists.lock().unwrap().push(list.iter().map(|endpoint| endpoint.to_string()).collect::<Vec<_>>());
            Ok::<_, &str>(())
        };
        let _ = tokio::time::timeout(Duration::from_secs(60), follow("app", script, empty, apply)).await;
        lists.into_inner().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn what_differs_is_applied_and_failures_keep_the_last() {
        assert_eq!(applied(Empty::Keep).await, [vec!["a:1", "b:1"], vec!["c:1"]]);
        assert_eq!(applied(Empty::Apply).await, [vec!["a:1", "b:1"], vec![], vec!["c:1"]]);
    }

    #[test]
    fn waits_double_up_to_their_bound() {
        let script = Script(Mutex::new(vec![]));
        for (failures, seconds) in [(1, 1), (2, 2), (5, 16), (6, 30), (1000, 30)] {
            assert_eq!(script.retry_after(failures), Duration::from_secs(seconds));
        }
    }
}
