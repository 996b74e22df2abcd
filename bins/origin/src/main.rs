//! `portcullis-origin`: a small, fast HTTP/1.1 origin for load runs and for trying a proxy out.
//!
//! One thread per core, each with its own `SO_REUSEPORT` socket and single-threaded runtime. The first line it
//! prints is `listening on http://ADDR`. See [`routes`] for what it serves; `--help` prints the same.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line program: its first line is its contract, and errors go to stderr"
)]

mod body;
mod routes;
mod serve;
mod websocket;

use std::{net::SocketAddr, num::NonZeroUsize, process::ExitCode, thread};

use lexopt::prelude::*;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const HELP: &str = "\
portcullis-origin: an HTTP/1.1 origin for load runs

Usage: portcullis-origin [--addr 127.0.0.1:0] [--threads N]

  --addr ADDR    where to listen; port 0 lets the system choose (default 127.0.0.1:0)
  --threads N    threads, each with its own socket (default: one per core)

It prints `listening on http://ADDR` first. Routes:
  /              1 KiB
  /bytes/N       N bytes with Content-Length
  /fresh/N       N bytes with Content-Length that caches may keep for an hour
  /chunked/N     N bytes in chunked coding
  /slow/MS       1 KiB after MS milliseconds (at most 600000)
  /headers       the request as it arrived
  /echo          the request's body
  /sink          POST, PUT: reads the body and answers its length
  /ws            a WebSocket that sends each frame back
";

struct Options {
    addr: SocketAddr,
    threads: NonZeroUsize,
}

fn options() -> Result<Option<Options>, lexopt::Error> {
    let mut options = Options {
        addr: SocketAddr::from(([127, 0, 0, 1], 0)),
        threads: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
    };
    let mut args = lexopt::Parser::from_env();
    while let Some(arg) = args.next()? {
        match arg {
            Long("addr") => options.addr = args.value()?.parse()?,
            Long("threads") => options.threads = args.value()?.parse()?,
            Short('h') | Long("help") => return Ok(None),
            _ => return Err(arg.unexpected()),
        }
    }
    Ok(Some(options))
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("portcullis-origin: {error}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("portcullis-origin: {}: {error}", options.addr);
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> std::io::Result<()> {
    // every socket is bound before anything is said, so that the line is true once it is read
    let first = serve::bind(options.addr)?;
    let addr = first.local_addr()?;
    let mut sockets = vec![first];
    for _ in 1..options.threads.get() {
        sockets.push(serve::bind(addr)?);
    }
    println!("listening on http://{addr}");
    let threads: Vec<_> =
        sockets.into_iter().map(|socket| thread::spawn(move || serve::thread(socket))).collect();
    for thread in threads {
        thread.join().map_err(|_| std::io::Error::other("a thread panicked"))??;
    }
    Ok(())
}
