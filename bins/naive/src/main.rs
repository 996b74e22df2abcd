//! `portcullis-naive`: what anyone has after an afternoon of gluing published crates together, to measure beside.
//!
//! h3 over h3-quinn over quinn on tokio's work-stealing runtime, and hyper-util's pooling client to the origins, all
//! with their defaults. Bodies stream both ways, hop-by-hop fields are dropped, `X-Forwarded-For` is added. It has no
//! deadlines, no bounds of its own, no metrics and no drain.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line program: its first line is its contract, and errors go to stderr"
)]

mod proxy;

use std::{error::Error, net::SocketAddr, num::NonZeroUsize, path::PathBuf, process::ExitCode, sync::Arc};

use lexopt::prelude::*;
use quinn::crypto::rustls::QuicServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

const HELP: &str = "\
portcullis-naive: an HTTP/3 proxy of an afternoon, to measure beside

Usage: portcullis-naive --cert FILE --key FILE --origin HOST:PORT [--origin ...] [--addr 127.0.0.1:0] [--threads 2]

It prints `listening on https://ADDR` first.
";

struct Options {
    addr: SocketAddr,
    threads: usize,
    cert: PathBuf,
    key: PathBuf,
    origins: Vec<String>,
}

fn options() -> Result<Option<Options>, lexopt::Error> {
    let (mut addr, mut threads) = (SocketAddr::from(([127, 0, 0, 1], 0)), 2);
    let (mut cert, mut key, mut origins) = (None, None, Vec::new());
    let mut args = lexopt::Parser::from_env();
    while let Some(arg) = args.next()? {
        match arg {
            Long("addr") => addr = args.value()?.parse()?,
            Long("threads") => threads = args.value()?.parse::<NonZeroUsize>()?.get(),
            Long("cert") => cert = Some(args.value()?.into()),
            Long("key") => key = Some(args.value()?.into()),
            Long("origin") => origins.push(args.value()?.string()?),
            Short('h') | Long("help") => return Ok(None),
            _ => return Err(arg.unexpected()),
        }
    }
    match (cert, key) {
        (Some(cert), Some(key)) if !origins.is_empty() => {
            Ok(Some(Options { addr, threads, cert, key, origins }))
        }
        _ => Err("--cert, --key and --origin are needed".into()),
    }
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("portcullis-naive: {error}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("portcullis-naive: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> Result<(), Box<dyn Error>> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(options.threads).enable_all().build()?;
    runtime.block_on(async move {
        let config = quinn::ServerConfig::with_crypto(Arc::new(tls(&options)?));
        let endpoint = quinn::Endpoint::server(config, options.addr)?;
        println!("listening on https://{}", endpoint.local_addr()?);
        let proxy = Arc::new(proxy::Proxy::new(options.origins));
        while let Some(incoming) = endpoint.accept().await {
            tokio::spawn(Arc::clone(&proxy).connection(incoming));
        }
        Ok(())
    })
}

fn tls(options: &Options) -> Result<QuicServerConfig, Box<dyn Error>> {
    let certs = CertificateDer::pem_file_iter(&options.cert)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(&options.key)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(certs, key)?;
    config.alpn_protocols = vec![b"h3".to_vec()];
    Ok(QuicServerConfig::try_from(config)?)
}
