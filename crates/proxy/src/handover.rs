//! From the answer that opens a tunnel to the tunnel itself: the client's stream is waited for and relayed in a task of its own.

use std::error::Error;

use portcullis_conn::StreamHold;
use tokio::time::timeout;

use crate::client_stream::Downstream;
use crate::tunnel::{BoxIo, RelayEnd, RelayOptions, TunnelGuard};

/// What a tunnel takes along from the request that opened it.
pub(crate) struct Handover {
    /// The client's stream, once the driver has written its answer.
    pub(crate) downstream: Downstream,
    /// Keeps an HTTP/2 connection from being taken for idle.
    pub(crate) hold: Option<StreamHold>,
    /// Its place among the tunnels.
    pub(crate) guard: TunnelGuard,
    /// Its place under a narrower bound, where there is one.
    pub(crate) bound: Option<TunnelGuard>,
    pub(crate) relay: RelayOptions,
    /// What the log calls it.
    pub(crate) protocol: String,
    /// Where it leads, if the client said so.
    pub(crate) to: Option<String>,
    /// The protocol it is a stream of.
    pub(crate) over: &'static str,
}

impl Handover {
    /// Runs until both ends are done.
    pub(crate) async fn run(self, upstream: BoxIo) {
        let Self { downstream, hold, guard, bound, relay, protocol, to, over } = self;
        // the driver hands the client's stream over when it has written its answer
        let downstream = tokio::select! {
            downstream = timeout(relay.idle_timeout, downstream.wait()) => downstream,
            () = guard.aborted() => return,
        };
        let downstream = match downstream {
            Ok(Ok(downstream)) => downstream,
            Ok(Err(error)) => {
                tracing::debug!(
                    error = &*error as &dyn Error,
                    "the client went away before its tunnel began"
                );
                return;
            }
            Err(_) => {
                tracing::debug!("the client's connection was not handed over in time");
                return;
            }
        };
        let stats = guard.relay(downstream, upstream, relay).await;
        drop((hold, bound));
        let error = match &stats.end {
            RelayEnd::Failed(error) => Some(error as &dyn Error),
            _ => None,
        };
        tracing::info!(
            protocol,
            to,
            over,
            to_upstream = stats.a_to_b,
            to_downstream = stats.b_to_a,
            life = ?stats.life,
            end = stats.end.as_str(),
            error,
            "tunnel closed"
        );
    }
}
