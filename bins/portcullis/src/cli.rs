//! The command line.

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum, error::ErrorKind};

/// Edge server and reverse proxy for HTTP/1.1, HTTP/2 and HTTP/3.
///
/// Without a command: makes a local certificate, serves all three protocols on one port and proxies to a demo origin
/// inside, so that there is something to try.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version)]
pub(crate) struct Cli {
    /// What to log: a level, or levels by module such as `info,portcullis_tls=debug`.
    #[arg(long, global = true, env = "PORTCULLIS_LOG", default_value = "info", value_name = "LEVELS")]
    pub(crate) log: String,

    /// The form of a log line.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,

    #[command(flatten)]
    pub(crate) demo: DemoArgs,

    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

impl Cli {
    /// The demo's options mean nothing to a command. (The parser's own rule for this would refuse `--log` before a command
    /// too.)
    pub(crate) fn check(&self) -> Result<(), clap::Error> {
        let demo = self.demo.port.is_some() || self.demo.address.is_some();
        if demo && self.command.is_some() {
            let message =
                "--port and --address are for portcullis without a command; put options after the command";
            return Err(Self::command().error(ErrorKind::ArgumentConflict, message));
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Args, Debug)]
pub(crate) struct DemoArgs {
    /// The port, TCP and UDP; 8443 if it is not given. 0 lets the system choose.
    #[arg(long)]
    pub(crate) port: Option<u16>,

    /// The address to listen on. Without it: loopback, by IPv4 and, if the system has it, by IPv6.
    #[arg(long)]
    pub(crate) address: Option<IpAddr>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Puts HTTPS in front of a web application, in one line.
    Proxy(ProxyArgs),
    /// Runs a configuration file.
    Run {
        /// The file.
        #[arg(long, short, value_name = "FILE")]
        config: PathBuf,
    },
    /// Reads a configuration file, says everything that is wrong with it, and opens nothing.
    Check {
        /// The file.
        #[arg(long, short, value_name = "FILE")]
        config: PathBuf,

        /// As `portcullis explain`, once the file is checked: a method and an absolute URI, such as `GET https://example.test/path`.
        #[arg(long, value_name = "REQUEST")]
        explain: Option<String>,
    },
    /// Says which route a request would take and why, what it would pass on its way, and what would be done with it.
    Explain {
        /// An absolute URI, such as `https://example.test/path`.
        uri: http::Uri,

        /// The file.
        #[arg(long, short, value_name = "FILE")]
        config: PathBuf,

        /// The request's method.
        #[arg(long, short, default_value = "GET")]
        method: http::Method,

        /// The client's address, where routes go by it.
        #[arg(long, value_name = "ADDRESS")]
        client: Option<IpAddr>,
    },
    /// Makes a certificate for tests and development, by a local authority that is kept.
    Certs(CertsArgs),
    /// Says what a QUIC connection id tells: instance, worker, generation.
    Cid(CidArgs),
    /// Hashes a password, the first line of standard input, for the file of users that `[basic_auth]` names.
    HashPassword,
}

#[derive(Args, Debug)]
pub(crate) struct CidArgs {
    /// The id in hexadecimal digits, as in a packet capture.
    #[arg(value_name = "HEX")]
    pub(crate) id: String,

    /// The configuration file of an instance that issues such ids.
    #[arg(long, short, value_name = "FILE", conflicts_with_all = ["server_id_length", "nonce_length", "key_file"])]
    pub(crate) config: Option<PathBuf>,

    /// Bytes of the server id. Without this and without --config: ids that name no instance.
    #[arg(long, value_name = "N", requires = "nonce_length")]
    pub(crate) server_id_length: Option<u8>,

    /// Bytes of the nonce.
    #[arg(long, value_name = "N", requires = "server_id_length")]
    pub(crate) nonce_length: Option<u8>,

    /// A file with the key: 32 hexadecimal digits.
    #[arg(long, value_name = "FILE", requires = "server_id_length")]
    pub(crate) key_file: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct ProxyArgs {
    /// The host that is served, with the port to listen on if it is not 8443: `example.test`, `example.test:443`.
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) from: String,

    /// Where requests go; give it more than once for several endpoints of one application.
    #[arg(long, required = true, value_name = "HOST:PORT")]
    pub(crate) to: Vec<String>,

    /// The address to listen on: all of them by default, IPv6 and IPv4.
    #[arg(long, default_value = "::")]
    pub(crate) address: IpAddr,

    /// Certificate chain in PEM, leaf first. Without one a self-signed certificate is made at start.
    #[arg(long, requires = "key", value_name = "FILE")]
    pub(crate) cert: Option<PathBuf>,

    /// The certificate's private key in PEM.
    #[arg(long, requires = "cert", value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,

    /// Listens for plain HTTP on this port too and redirects it to HTTPS. (On the HTTPS port itself it is redirected
    /// in any case.)
    #[arg(long, value_name = "PORT")]
    pub(crate) redirect_from: Option<u16>,

    /// Serves `/metrics` and `/health` in plain HTTP here, such as 127.0.0.1:9090.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) admin: Option<std::net::SocketAddr>,

    /// Writes no access log.
    #[arg(long)]
    pub(crate) quiet: bool,
}

#[derive(Args, Debug)]
pub(crate) struct CertsArgs {
    /// The folder to write `cert.pem` and `key.pem` to; made if it is not there. The authority (`ca.pem`, `ca-key.pem`) is made
    /// with the first certificate and used again.
    #[arg(long, default_value = "certs", value_name = "DIR")]
    pub(crate) out: PathBuf,

    /// Names and IP addresses of the certificate.
    #[arg(default_values_t = ["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()], value_name = "NAME")]
    pub(crate) names: Vec<String>,
}
