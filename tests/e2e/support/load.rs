//! Requests without a pause from several clients, each over one protocol, while something is done to the edge.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::Method;
use tokio::{sync::watch, task::JoinSet};

use super::client::{Client, Protocol, Reply, empty};
use super::{SOON, tls, within};

/// What became of them.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) answered: usize,
    /// Whose connection was closing and brought no part of an answer: sent again on a new one, as RFC 9110 section 9.2.2 lets a client do with a GET.
    pub(crate) again: usize,
    pub(crate) connections: usize,
    pub(crate) failed: Vec<String>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.answered += other.answered;
        self.again += other.again;
        self.connections += other.connections;
        self.failed.extend(other.failed);
    }

    /// Fails the test if any failed, or none was answered.
    pub(crate) fn check(&self) {
        let first = &self.failed[..self.failed.len().min(5)];
        assert!(self.failed.is_empty(), "{} of {} failed: {first:#?}", self.failed.len(), self.answered);
        assert!(self.answered > 0, "{self:?}");
    }
}

type Check = Arc<dyn Fn(&Reply) -> bool + Send + Sync>;

/// The clients.
pub(crate) struct Load {
    stop: watch::Sender<bool>,
    clients: JoinSet<Tally>,
}

impl Load {
    /// So many for each protocol. `check` says whether an answer to this path is right.
    pub(crate) fn start(
        addr: SocketAddr,
        protocols: &[Protocol],
        clients: usize,
        path: &'static str,
        check: impl Fn(&Reply) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self::begin(addr, protocols, clients, path, check, true)
    }

    /// The same, each request on a connection of its own.
    pub(crate) fn start_anew(
        addr: SocketAddr,
        protocols: &[Protocol],
        clients: usize,
        path: &'static str,
        check: impl Fn(&Reply) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self::begin(addr, protocols, clients, path, check, false)
    }

    fn begin(
        addr: SocketAddr,
        protocols: &[Protocol],
        clients: usize,
        path: &'static str,
        check: impl Fn(&Reply) -> bool + Send + Sync + 'static,
        keep: bool,
    ) -> Self {
        let check: Check = Arc::new(check);
        let mut all = JoinSet::new();
        let stop = watch::Sender::new(false);
        for protocol in protocols {
            for _ in 0..clients {
                all.spawn(client(*protocol, addr, path, Arc::clone(&check), stop.subscribe(), keep));
            }
        }
        Self { stop, clients: all }
    }

    /// Lets each end its request, and adds up.
    pub(crate) async fn end(mut self) -> Tally {
        self.stop.send_replace(true);
        let mut sum = Tally::default();
        while let Some(tally) = within(SOON, "the end of a client", self.clients.join_next()).await {
            sum.add(tally.unwrap());
        }
        sum
    }
}

async fn client(
    protocol: Protocol,
    addr: SocketAddr,
    path: &'static str,
    check: Check,
    stop: watch::Receiver<bool>,
    keep: bool,
) -> Tally {
    let mut tally = Tally::default();
    let mut kept: Option<Client> = None;
    while !*stop.borrow() {
        let fresh = kept.is_none();
        let mut client = match kept.take() {
            Some(client) => client,
            None => {
                tally.connections += 1;
                let config = tls::config(None, &[protocol.alpn()]);
                match Client::try_connect(protocol, addr, "localhost", config).await {
                    Ok(client) => client,
                    Err(error) => {
                        tally.failed.push(format!("{protocol:?}: no connection: {error:?}"));
                        continue;
                    }
                }
            }
        };
        let request = client.request(Method::GET, path).body(empty()).unwrap();
        let response = match client.send(request).await {
            Ok(response) => response,
            // a server that lets somebody in serves at least once
            Err(error) if fresh => {
                tally.failed.push(format!("{protocol:?}: the first request of a connection: {error:?}"));
                continue;
            }
            Err(_) => {
                tally.again += 1;
                continue;
            }
        };
        let closes = response.headers().get("connection").is_some_and(|value| value == "close");
        match Reply::read(response).await {
            Ok(reply) if check(&reply) => tally.answered += 1,
            Ok(reply) => tally.failed.push(format!("{protocol:?}: {reply:?}")),
            Err(error) => tally.failed.push(format!("{protocol:?}: cut: {error:?}")),
        }
        if keep && !closes {
            kept = Some(client);
        }
        // two cores serve origin, edge and clients
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tally
}
