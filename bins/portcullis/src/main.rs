//! `portcullis`: an edge server and reverse proxy for HTTP/1.1, HTTP/2 and HTTP/3.
//!
//! The binary reads the command line, the environment and files, installs what is process-wide (allocator, log
//! subscriber, signal handlers) and leaves everything else to `portcullis-edge`.
// A program talks to the person who started it.
#![allow(clippy::print_stdout, clippy::print_stderr)]

#[cfg(feature = "mimalloc")]
mod allocator;
mod certs;
mod cid;
mod cli;
mod configuration;
mod demo;
mod notify;
mod password;
mod plans;
mod signals;
#[cfg(unix)]
mod upgrade;

use std::{io::IsTerminal, process::ExitCode};

use anyhow::Context;
use clap::Parser;
use portcullis_edge::{Edge, listener::raise_descriptor_limit, plan::Plan};
use portcullis_telemetry::subscriber::{self, LogOptions};
use tracing::warn;

use cli::{Cli, Command, LogFormat};

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(conflict) = cli.check() {
        conflict.exit();
    }
    let result = init_log(&cli).and_then(|()| dispatch(cli));
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes, one a line, without what is said twice.
fn chain(error: &anyhow::Error) -> String {
    let mut lines: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if lines.last().is_none_or(|last| !last.contains(&text)) {
            lines.push(text);
        }
    }
    lines.join("\n  caused by: ")
}

fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        None => demo::run(&cli.demo),
        Some(Command::Proxy(args)) => run(plans::proxy(&args)?, None, &[]),
        Some(Command::Run { config }) => match configuration::load(&config) {
            Ok((plan, options)) => run(plan, Some(configuration::Running::new(config, options)), &[]),
            Err(code) => Ok(code),
        },
        Some(Command::Check { config, explain }) => Ok(match configuration::load(&config) {
            Ok((plan, _)) => {
                if let Some(request) = explain {
                    print!("{}", configuration::explained(&plan, &request)?);
                    return Ok(ExitCode::SUCCESS);
                }
                println!(
                    "{}: ok ({} listeners, {} routes, {} clusters)",
                    config.display(),
                    plan.listeners.len(),
                    plan.routes.len(),
                    plan.clusters.len()
                );
                ExitCode::SUCCESS
            }
            Err(code) => code,
        }),
        Some(Command::Explain { uri, config, method, client }) => Ok(match configuration::load(&config) {
            Ok((plan, _)) => {
                print!("{}", plan.explain(&method, &uri, client)?);
                ExitCode::SUCCESS
            }
            Err(code) => code,
        }),
        Some(Command::Certs(args)) => certs::make(&args),
        Some(Command::Cid(args)) => cid::explain(&args),
        Some(Command::HashPassword) => password::hash(),
    }
}

/// Binds, says where, and serves until told to stop. `hints` are printed below the addresses.
fn run(mut plan: Plan, config: Option<configuration::Running>, hints: &[String]) -> anyhow::Result<ExitCode> {
    if let Err(error) = raise_descriptor_limit() {
        warn!(%error, "the limit of open files could not be raised");
    }
    #[cfg(feature = "mimalloc")]
    {
        plan.give_back = Some(allocator::give_back);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("could not start the main runtime")?;
    let edge = build(plan, &runtime)?;
    // whoever reads that we listen may send a signal at once
    let shutdown = runtime.block_on(async {
        signals::on_hangup(edge.handle(), config.clone())?;
        signals::on_rotation(edge.handle())?;
        let stop = signals::shutdown()?;
        #[cfg(unix)]
        let stop = upgrade::or_upgraded(edge.handle(), config.clone(), stop)?;
        if let Some(config) = config {
            tokio::spawn(config.follow(edge.handle()));
        }
        tokio::spawn(notify::when_serving(edge.handle()));
        anyhow::Ok(stop)
    })?;
    for listening in edge.listening() {
        println!("listening on {listening}");
    }
    if let Some(admin) = edge.admin_address() {
        println!("admin on http://{admin} (/metrics, /health)");
    }
    for hint in hints {
        println!("{hint}");
    }
    runtime.block_on(edge.run(shutdown))?;
    Ok(ExitCode::SUCCESS)
}

/// With the sockets of the process before, or those that systemd made for this one, if there are any.
#[cfg(unix)]
#[allow(clippy::disallowed_methods, reason = "a program reads its environment")]
fn build(plan: Plan, runtime: &tokio::runtime::Runtime) -> anyhow::Result<Edge> {
    use portcullis_edge::{
        EdgeBuilder,
        listener::{SystemdEnv, systemd_sockets},
    };
    let builder = EdgeBuilder::from_plan(plan).hand_over();
    if let Some(taken) = runtime.block_on(upgrade::take_over())? {
        return Ok(builder.take_over(taken).build()?);
    }
    let [pid, fds, names] =
        ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"].map(|name| std::env::var(name).ok());
    let env = SystemdEnv {
        listen_pid: pid.as_deref(),
        listen_fds: fds.as_deref(),
        listen_fdnames: names.as_deref(),
    };
    let sockets = systemd_sockets(env).context("the sockets from systemd can't be used")?;
    Ok(builder.inherit(sockets).build()?)
}

#[cfg(not(unix))]
fn build(plan: Plan, _: &tokio::runtime::Runtime) -> anyhow::Result<Edge> {
    Ok(Edge::new(plan)?)
}

fn init_log(cli: &Cli) -> anyhow::Result<()> {
    let format = match cli.log_format {
        LogFormat::Text => subscriber::LogFormat::Text,
        LogFormat::Json => subscriber::LogFormat::Json,
    };
    let options = LogOptions::default()
        .with_levels(cli.log.as_str())
        .with_format(format)
        .with_color(std::io::stderr().is_terminal());
    let (subscriber, _levels) = subscriber::build(&options)?;
    tracing::subscriber::set_global_default(subscriber).context("could not install the log")
}
