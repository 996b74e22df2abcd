//! The project's own commands. `cargo xtask --help` lists them.
//!
//! This crate shells out and depends on no crate of the workspace, so that it compiles in seconds and works while
//! the rest does not.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line program: results go to stdout, errors go to stderr"
)]

mod cachetests;
mod certs;
mod ci;
mod fuzz;
mod interop;
mod loadtest;
mod lossy;
mod metadata;
mod sh;
mod sys;
mod test;
mod testssl;
mod tidy;
mod torture;

use std::{error::Error, ffi::OsString, process::ExitCode};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const HELP: &str = "\
cargo xtask COMMAND

  test [ARGS]       builds the binary that the end-to-end tests run, then `cargo test`; ARGS go to it
  ci                everything a change must pass: fmt, tidy, clippy, test, pebble, redis, interop, testssl, fuzz, doc, deny,
                    package
  tidy              the house rules that no compiler checks; `tidy --print-edges` prints the table of
                    workspace dependencies as it stands
  certs [DIR]       a local authority and a certificate for localhost in DIR (default: certs)
  torture accept    descriptors that run out, limits that are met: what must hold, shown as it happens
  pebble [ARGS]     certificates by ACME from Pebble (Debian: pebble): the suite of portcullis-acme; ARGS go to the tests
  redis [ARGS]      rates that instances share in a redis-server (Debian: redis-server): a suite of portcullis-middleware; ARGS
                    go to the tests
  interop [ARGS]    HTTP/3 with ngtcp2's client, aioquic and Chromium (Debian: ngtcp2-client, chromium); ARGS go to the
                    tests, but for `--full`: 100 MiB up and 1 GiB down
  lossy [...]       downloads over HTTP/3 through a path that is long and loses packets; see `lossy --help`
  testssl [--write] what testssl.sh finds in the default profile of TLS
  cachetests [...]  the public tests of HTTP caches, from a checkout of theirs; see `cachetests --help`
  fuzz [TARGET]     runs the fuzz targets for a minute each; see `fuzz --help`
  loadtest [...]    cost and latency of the proxy, alone or beside others; see `loadtest --help`
";

fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let command = if args.is_empty() { OsString::from("--help") } else { args.remove(0) };
    let done = match command.to_str() {
        Some("test") => test::run(&args),
        Some("ci") => ci::run(&args),
        Some("tidy") => tidy::run(&args),
        Some("certs") => certs::run(&args),
        Some("loadtest") => loadtest::run(args),
        Some("torture") => torture::run(&args),
        Some("pebble") => test::pebble(&args),
        Some("redis") => test::redis(&args),
        Some("interop") => interop::run(&args),
        Some("lossy") => lossy::run(&args),
        Some("testssl") => testssl::run(&args),
        Some("cachetests") => cachetests::run(&args),
        Some("fuzz") => fuzz::run(&args),
        Some("-h" | "--help" | "help") => {
            print!("{HELP}");
            Ok(())
        }
        _ => Err(format!("no command `{}`\n\n{HELP}", command.to_string_lossy()).into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}
