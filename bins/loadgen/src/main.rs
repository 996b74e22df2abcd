//! `portcullis-loadgen`: an open- and closed-loop load generator for HTTP/1.1, HTTP/2 and HTTP/3, and `get`, which
//! makes one request and shows the answer.
//!
//! It must cost little itself, or it measures itself: one single-threaded runtime per thread, no locks between
//! them, one histogram per thread merged at the end, an HTTP/1 codec that reuses its buffers and is driven inside
//! the slot's own task, and HTTP/2 straight on the `h2` crate. Load goes to loopback only, unless the caller says
//! that the host is theirs.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line program: the report goes to stdout, errors go to stderr"
)]

mod cli;
mod clock;
mod error;
mod get;
mod h1;
mod h2load;
mod h3load;
mod io;
mod pacer;
mod report;
mod run;
mod shared;
mod stats;
mod target;
mod tls;
mod worker;
mod ws;

use std::process::ExitCode;

use cli::Command;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let command = match cli::parse(std::env::args_os().skip(1)) {
        Ok(command) => command,
        Err(error) => {
            eprintln!("portcullis-loadgen: {error}\n\n`portcullis-loadgen --help` shows the options");
            return ExitCode::from(2);
        }
    };
    let done = match command {
        Command::Help => {
            print!("{}", cli::HELP);
            Ok(())
        }
        Command::Get(options) => get::run(*options),
        Command::Load(options) => run::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("portcullis-loadgen: {}", error::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
