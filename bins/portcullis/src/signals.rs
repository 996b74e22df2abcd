//! SIGTERM, Ctrl-C, SIGHUP and SIGUSR1.

use anyhow::Context;
use portcullis_edge::EdgeHandle;
use tracing::{info, warn};

use crate::configuration::Running;

/// Resolves at the first signal. At the second the process ends at once: somebody is in a hurry.
pub(crate) fn shutdown() -> anyhow::Result<impl Future<Output = ()>> {
    let mut signals = Signals::new()?;
    Ok(async move {
        let name = signals.next().await;
        info!(signal = name, "shutting down; another one ends the process at once");
        tokio::spawn(async move {
            let name = signals.next().await;
            warn!(signal = name, "ended at once");
            exit();
        });
    })
}

/// At every SIGHUP: opens the access log anew, as a rotation asks for, and reads the configuration again, if there is a file. Without this
/// the signal would end the process.
#[cfg(unix)]
pub(crate) fn on_hangup(edge: EdgeHandle, config: Option<Running>) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut hangup = signal(SignalKind::hangup()).context("could not watch for SIGHUP")?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            info!(signal = "SIGHUP", "opening the access log anew");
            edge.reopen_access_log();
            if let Some(config) = &config {
                Box::pin(config.reload(&edge)).await;
            }
        }
    });
    Ok(())
}

/// At every SIGUSR1: opens the access log anew, and nothing else, as a rotation asks for. Without this the signal would end the process.
#[cfg(unix)]
pub(crate) fn on_rotation(edge: EdgeHandle) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut rotated = signal(SignalKind::user_defined1()).context("could not watch for SIGUSR1")?;
    tokio::spawn(async move {
        while rotated.recv().await.is_some() {
            info!(signal = "SIGUSR1", "opening the access log anew");
            edge.reopen_access_log();
        }
    });
    Ok(())
}

/// There is no such signal here.
#[cfg(not(unix))]
pub(crate) fn on_rotation(_: EdgeHandle) -> anyhow::Result<()> {
    Ok(())
}

/// There is no such signal here.
#[cfg(not(unix))]
pub(crate) fn on_hangup(_: EdgeHandle, _: Option<Running>) -> anyhow::Result<()> {
    Ok(())
}

/// There is nothing left to unwind: the drain was given up.
#[allow(clippy::disallowed_methods)]
fn exit() -> ! {
    std::process::exit(1)
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> anyhow::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("could not watch for SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("could not watch for SIGTERM")?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) -> &'static str {
        if tokio::signal::ctrl_c().await.is_err() {
            // no signal can come: wait for ever
            std::future::pending::<()>().await;
        }
        "Ctrl-C"
    }
}
