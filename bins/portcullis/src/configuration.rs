//! The configuration file: read at the start, and again while the edge runs.

use std::{
    fs,
    io::IsTerminal,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use portcullis_config::ProcessOptions;
use portcullis_edge::{EdgeHandle, plan::Plan};
use portcullis_tls::{ReloadOptions, Watch};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::chain;

/// Which route a request (`GET https://example.test/path`) takes, and why.
pub(crate) fn explained(plan: &Plan, request: &str) -> anyhow::Result<String> {
    let (method, uri) = request.split_once(' ').unwrap_or(("GET", request));
    let method = method.parse().with_context(|| format!("`{method}` is no method"))?;
    let uri = uri.trim().parse().with_context(|| format!("`{uri}` is no URI"))?;
    Ok(plan.explain(&method, &uri, None)?.to_string())
}

/// Reads a configuration; every mistake in it is on standard error when this fails.
pub(crate) fn load(path: &Path) -> Result<(Plan, ProcessOptions), ExitCode> {
    let color = std::io::stderr().is_terminal();
    let (warnings, result) = read(path, color);
    if let Some(warnings) = warnings {
        eprintln!("{warnings}");
    }
    result.map_err(|mistakes| {
        eprintln!("{mistakes}");
        ExitCode::FAILURE
    })
}

type Rendered = String;

/// What is probably not meant, and either a sound plan or everything that is wrong.
fn read(path: &Path, color: bool) -> (Option<Rendered>, Result<(Plan, ProcessOptions), Rendered>) {
    match portcullis_config::load(path) {
        Ok(config) => {
            let warnings = config.warnings();
            let warnings = (!warnings.is_empty()).then(|| warnings.render(color));
            let process = config.process();
            let plan = config.lower();
            let checked = plan.check().map(|()| (plan, process));
            let mistake = |error: portcullis_edge::EdgeError| {
                format!("error: {}: {}", path.display(), chain(&error.into()))
            };
            (warnings, checked.map_err(mistake))
        }
        Err(error) => (None, Err(error.render(color))),
    }
}

/// A configuration file that is run.
#[derive(Clone)]
pub(crate) struct Running {
    path: PathBuf,
    options: watch::Sender<ProcessOptions>,
}

impl Running {
    pub(crate) fn new(path: PathBuf, options: ProcessOptions) -> Self {
        Self { path, options: watch::Sender::new(options) }
    }

    /// As the file said when it was last read with success.
    pub(crate) fn options(&self) -> ProcessOptions {
        *self.options.borrow()
    }

    /// Reads it again and carries it out. What is wrong is logged, and leaves everything as it is.
    pub(crate) async fn reload(&self, edge: &EdgeHandle) {
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || read(&path, false)).await;
        let (warnings, result) = match read {
            Ok(read) => read,
            Err(error) => return error!(%error, "the configuration was not read"),
        };
        let config = self.path.display();
        if let Some(warnings) = warnings {
            warn!("{config} has warnings\n{warnings}");
        }
        let (plan, options) = match result {
            Ok(read) => read,
            Err(mistakes) => {
                edge.count_failed_reload();
                return error!(
                    "not reloaded, the configuration before stays: {config} has mistakes\n{mistakes}"
                );
            }
        };
        match edge.reload(plan).await {
            Ok(_) => {
                self.options.send_replace(options);
            }
            Err(error) => {
                let error = chain(&error.into());
                error!("not reloaded, the configuration before stays: {config}: {error}");
            }
        }
    }

    /// Reloads it as it changes, while it says so.
    pub(crate) async fn follow(self, edge: EdgeHandle) {
        let mut options = self.options.subscribe();
        while options.wait_for(|options| options.watch).await.is_ok() {
            let mut seen = fs::read(&self.path).ok();
            let mut watch = Watch::new(&ReloadOptions::default());
            let directory = self.path.parent().map(Path::to_owned).unwrap_or_default();
            info!(config = %self.path.display(), "following the configuration file");
            while self.options().watch {
                let path = self.path.clone();
                let directory = directory.clone();
                // on a thread of its own: it may be on a file system that hangs
                let looked = tokio::task::spawn_blocking(move || {
                    watch.follow(vec![directory]);
                    (watch, fs::read(path).ok())
                });
                let Ok((back, now)) = looked.await else { return };
                watch = back;
                // a file that is gone for a moment is being replaced
                if now.is_some() && now != seen {
                    seen = now;
                    Box::pin(self.reload(&edge)).await;
                    continue;
                }
                tokio::select! {
                    () = watch.changed() => {}
                    _ = options.changed() => {}
                }
            }
        }
    }
}
