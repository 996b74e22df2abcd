//! One request's way through a cluster, for who has connections of his own.
//!
//! [`crate::Client`] speaks HTTP/1.1 and HTTP/2 over byte streams. What speaks something else to the same endpoints (HTTP/3) asks
//! here which of them a request goes to, and says how that went: balancing, health, outlier detection, bounds and the retry budget are
//! the cluster's as ever.

use std::sync::Arc;

use http::{StatusCode, request};

use crate::{
    Cluster, Endpoint, Error,
    balance::Tried,
    call::wish_of,
    cluster::{Ticket, Wish},
    health::FailureKind,
    state::EndpointState,
};

/// A request under way; it counts as one until it is dropped, which is when its response is over.
pub struct Turn {
    ticket: Ticket,
    wish: Wish,
    tried: Tried,
    retries: u32,
}

/// An endpoint that a request goes to, on which the request weighs until this is dropped.
#[derive(Debug)]
pub struct Picked {
    state: Arc<EndpointState>,
    shared: Arc<crate::cluster::Shared>,
}

impl Cluster {
    /// Begins a request, whose head says where it belongs. Waits for the first list of endpoints, as [`crate::Client`] does.
    ///
    /// # Errors
    /// [`Error::Overloaded`] at the bound on requests, [`Error::NoEndpoint`] where no list came in time.
    pub async fn turn(&self, parts: &request::Parts) -> Result<Turn, Error> {
        let begin = async {
            let ticket = Ticket::take(&self.shared)?;
            self.shared.first_list().await?;
            let wish = wish_of(parts, &self.shared.options);
            Ok(Turn { ticket, wish, tried: Tried::default(), retries: 0 })
        };
        begin.await.inspect_err(|error| self.shared.count_error(error))
    }
}

impl Turn {
    /// The endpoint for the next attempt.
    ///
    /// # Errors
    /// [`Error::NoEndpoint`] where none is available.
    pub fn pick(&mut self) -> Result<Picked, Error> {
        let shared = &self.ticket.shared;
        let picked = shared.with_pick(&self.wish, &self.tried, |index, state| (index, Arc::clone(state)));
        let (index, state) = picked.ok_or(Error::NoEndpoint)?;
        self.tried.insert(index);
        state.load.begin();
        Ok(Picked { state, shared: Arc::clone(shared) })
    }

    /// Whether one more attempt may be made: there is an endpoint that was not tried, and the count and the budget of
    /// [`crate::RetryOptions`] allow it. Counts it as made.
    pub fn may_retry(&mut self) -> bool {
        let shared = &self.ticket.shared;
        let may = self.retries + 1 < shared.options.retry.attempts
            && shared.has_untried(&self.tried)
            && shared.may_retry();
        if may {
            self.retries += 1;
            shared.count_retry();
        }
        may
    }

    /// Counts an error that the client is told of.
    pub fn failed(&self, error: &Error) {
        self.ticket.shared.count_error(error);
    }
}

impl std::fmt::Debug for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Turn").field("cluster", &self.ticket.shared.name).finish_non_exhaustive()
    }
}

impl Picked {
    /// The endpoint.
    pub fn endpoint(&self) -> &Endpoint {
        &self.state.endpoint
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.state.endpoint.name
    }

    /// It answered. A status that [`crate::ClusterOptions`] counts as a failure is one.
    pub fn answered(&self, status: StatusCode) {
        self.shared.answered(&self.state, status);
    }

    /// It could not be connected to, or gave no answer.
    pub fn failed(&self) {
        self.shared.failed(&self.state, FailureKind::Connection);
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        self.state.load.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ClusterOptions;

    fn cluster(options: ClusterOptions) -> Cluster {
        let endpoints = ["127.0.0.1:1", "127.0.0.1:2"].map(|endpoint| endpoint.parse().unwrap());
        Cluster::new("app", endpoints.to_vec(), options).unwrap()
    }

    fn parts() -> request::Parts {
        http::Request::new(()).into_parts().0
    }

    #[tokio::test]
    async fn each_endpoint_once_and_no_more_than_the_options_say() {
        let cluster = cluster(ClusterOptions::default());
        let parts = parts();
        let mut turn = cluster.turn(&parts).await.unwrap();
        let first = turn.pick().unwrap();
        first.failed();
        assert!(turn.may_retry());
        let second = turn.pick().unwrap();
        assert_ne!(first.endpoint().name, second.endpoint().name);
        assert!(!turn.may_retry());
        let stats = cluster.stats();
        assert_eq!((stats.requests, stats.active, stats.retries), (1, 1, 1));
        assert_eq!(stats.endpoints.iter().map(|endpoint| endpoint.busy).sum::<usize>(), 2);
        drop((first, second, turn));
        let stats = cluster.stats();
        assert_eq!(stats.active, 0);
        assert!(stats.endpoints.iter().all(|endpoint| endpoint.busy == 0));
        assert_eq!(stats.endpoints.iter().map(|endpoint| endpoint.failures).sum::<u64>(), 1);
    }

    #[tokio::test]
    async fn the_bound_on_requests_holds() {
        let cluster = cluster(ClusterOptions::default().with_max_requests(1));
        let parts = parts();
        let turn = cluster.turn(&parts).await.unwrap();
        assert!(matches!(cluster.turn(&parts).await, Err(Error::Overloaded { .. })));
        assert_eq!(cluster.stats().errors, 1);
        drop(turn);
        assert!(cluster.turn(&parts).await.is_ok());
    }
}
