//! A new process takes over from this one: SIGUSR2 starts the program anew, as its file is now, with the same arguments, and hands it all sockets.
//!
//! The new one's standard input is a socket pair, over which the two speak, and its environment says so.

use std::{
    env,
    ffi::OsString,
    os::{fd::AsFd, unix::net::UnixStream},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context;
use portcullis_config::ProcessOptions;
use portcullis_edge::{EdgeHandle, TakeOver, UpgradeError};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use crate::{chain, configuration::Running, notify};

/// Says to a process that its standard input is a socket pair to the one before it.
const VARIABLE: &str = "PORTCULLIS_UPGRADE";
/// How long each step of the process before may take: it only sends what it has.
const STEP: Duration = Duration::from_secs(30);
/// What systemd says of sockets that it made: for the first process, and no other.
const ACTIVATION: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// Whether this process was started to take over from another.
#[allow(clippy::disallowed_methods, reason = "a program reads its environment")]
pub(crate) fn is_one() -> bool {
    env::var_os(VARIABLE).is_some()
}

/// What the process before hands over, if there is one.
pub(crate) async fn take_over() -> anyhow::Result<Option<TakeOver>> {
    if !is_one() {
        return Ok(None);
    }
    let stream = std::io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from);
    let stream = stream.with_context(|| format!("{VARIABLE} is set, but there is no standard input"))?;
    let taken = TakeOver::receive(stream, STEP).await;
    taken.map(Some).context("could not take over from the process before")
}

/// Resolves with `stop`, or when a new process has taken over. Every SIGUSR2 starts one, if none is being started.
#[allow(clippy::disallowed_methods, reason = "a program asks for its own name and arguments")]
pub(crate) fn or_upgraded(
    edge: EdgeHandle,
    config: Option<Running>,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<impl Future<Output = ()>> {
    let mut signals = signal(SignalKind::user_defined2()).context("could not watch for SIGUSR2")?;
    // by its name of now: the file behind it may be another one when it is needed
    let program = env::current_exe().context("this program does not know its own file")?;
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let (done, upgraded) = tokio::sync::oneshot::channel::<()>();
    tokio::spawn(async move {
        let mut done = Some(done);
        while signals.recv().await.is_some() {
            let timeout =
                config.as_ref().map_or_else(ProcessOptions::default, Running::options).upgrade_timeout;
            let upgrade = upgrade(&edge, &program, &arguments, timeout);
            tokio::pin!(upgrade);
            let result = loop {
                tokio::select! {
                    result = &mut upgrade => break result,
                    Some(()) = signals.recv() => warn!(signal = "SIGUSR2", "an upgrade is under way already"),
                }
            };
            match result {
                Ok(process) => {
                    info!(process, "a new process has taken over");
                    notify::tell(&format!("MAINPID={process}\nREADY=1"));
                    if let Some(done) = done.take() {
                        // who waits has stopped already
                        let _ = done.send(());
                    }
                }
                Err(error) => error!("no upgrade, this process goes on: {}", chain(&error)),
            }
        }
    });
    Ok(async move {
        let upgraded = async {
            if upgraded.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = stop => {}
            () = upgraded => {}
        }
    })
}

/// The new process, when it serves.
async fn upgrade(
    edge: &EdgeHandle,
    program: &PathBuf,
    arguments: &[OsString],
    timeout: Duration,
) -> anyhow::Result<u32> {
    info!(signal = "SIGUSR2", program = %program.display(), "starting a new process that takes over");
    let (own, its) = UnixStream::pair().context("no connection to the new process could be made")?;
    let mut command = Command::new(program);
    command.args(arguments).env(VARIABLE, "1").stdin(Stdio::from(std::os::fd::OwnedFd::from(its)));
    for variable in ACTIVATION {
        command.env_remove(variable);
    }
    let child = command.spawn().with_context(|| format!("{} could not be started", program.display()))?;
    // with it goes this process's copy of the other end, so that its end shows
    drop(command);
    let process = child.id();
    match edge.hand_over(own, timeout).await {
        Ok(()) => {
            // so that it is not left as a zombie if it ends first
            std::thread::spawn(move || {
                let mut child = child;
                child.wait()
            });
            Ok(process)
        }
        Err(error) => {
            let ends = matches!(error, UpgradeError::Ended(_) | UpgradeError::Descriptors(_));
            let grace = if ends { Duration::from_secs(1) } else { Duration::ZERO };
            let status = reap(child, grace).await;
            let error = anyhow::Error::from(error);
            Err(match status {
                Some(status) => error.context(format!("the new process ended with {status}")),
                None => error,
            })
        }
    }
}

/// Waits for its end; one that has not ended by then is ended, as it must not come to serve later. `None` for such a one.
async fn reap(mut child: Child, grace: Duration) -> Option<ExitStatus> {
    let until = Instant::now() + grace;
    while Instant::now() < until {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) => tokio::time::sleep(Duration::from_millis(10)).await,
            Err(_) => break,
        }
    }
    // fails if it has ended
    let _ = child.kill();
    // and then it ends
    let _ = tokio::task::spawn_blocking(move || child.wait()).await;
    None
}
