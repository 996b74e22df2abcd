//! Where CONNECT and the connector of clusters meet: from an allowed target to a connection.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use portcullis_proxy::{
    ConnectHost, ConnectOptions, ConnectProxy, ConnectRefused, ConnectRules, ConnectTarget, Fault, Trust,
    Tunnels, UpstreamFault,
};
use portcullis_upstream::{Address, ConnectError, Connector, Stream};
use tower_service::Service;

use crate::plan::ConnectPlan;

/// Connects to targets that are on the list, at such of their addresses as may be.
#[derive(Clone, Debug)]
pub(crate) struct ToTarget {
    connector: Connector,
    rules: Arc<ConnectRules>,
}

/// What answers CONNECT. All workers share its bounds.
pub(crate) fn proxy(plan: &ConnectPlan, trust: &Arc<Trust>, tunnels: &Tunnels) -> ConnectProxy<ToTarget> {
    let rules = Arc::new(plan.allow.clone());
    let connector = Connector::default().with_timeout(plan.connect_timeout);
    let options = ConnectOptions::new(tunnels.clone())
        .with_rules(Arc::clone(&rules))
        .with_clients(Arc::new(Trust::new(plan.clients.iter().copied())))
        .with_trust(Arc::clone(trust))
        .with_bound(Tunnels::new(plan.max_tunnels))
        .with_relay(plan.relay);
    ConnectProxy::new(options, ToTarget { connector, rules })
}

impl Service<ConnectTarget> for ToTarget {
    type Response = Stream;
    type Error = Fault;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, Fault>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, target: ConnectTarget) -> Self::Future {
        let Self { connector, rules } = self.clone();
        Box::pin(async move {
            let port = target.port;
            let address = match &target.host {
                ConnectHost::Ip(ip) => Address::Socket((*ip, port).into()),
                ConnectHost::Name(name) => Address::Name { host: Arc::from(&**name), port },
            };
            let connecting =
                connector.connect_where(address, |found| rules.allows_address(found.ip(), found.port()));
            connecting.await.map_err(|error| to_fault(error, target))
        })
    }
}

fn to_fault(error: ConnectError, target: ConnectTarget) -> Fault {
    let fault = match &error {
        ConnectError::NotAllowed => return ConnectRefused::Address(target).into(),
        ConnectError::Resolve(_) => UpstreamFault::Dns,
        ConnectError::Timeout => UpstreamFault::ConnectTimeout,
        _ => UpstreamFault::ConnectFailed,
    };
    Fault::upstream(fault).with_source(error)
}
