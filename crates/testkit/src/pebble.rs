//! Pebble, an ACME server for tests, and the DNS server that it asks: two programs of Debian's package `pebble`.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::{certs::TestCa, ports::free_tcp_udp_port, process::ChildGuard};

/// Where Pebble comes to validate names, and how it is set up.
#[derive(Clone, Debug, Default)]
pub struct PebbleOptions {
    /// The port for HTTP-01.
    pub http_port: u16,
    /// The port for TLS-ALPN-01.
    pub tls_port: u16,
    /// For how long its certificates are good; `None` is what Pebble has.
    pub validity: Option<Duration>,
    /// Key identifiers and keys (base64url) of external accounts; with any, each account must have one.
    pub external_accounts: Vec<(String, String)>,
}

/// A running Pebble, for which every name is 127.0.0.1. It ends when this is dropped.
#[derive(Debug)]
pub struct Pebble {
    addr: SocketAddr,
    management: SocketAddr,
    dns_management: SocketAddr,
    /// In PEM.
    roots: PathBuf,
    log: PathBuf,
    _pebble: ChildGuard,
    _dns: ChildGuard,
}

impl Pebble {
    /// Starts it in a directory, which it fills with its files, and waits until it answers.
    ///
    /// # Panics
    /// When the programs are not installed, or do not start.
    pub fn start(directory: &Path, options: &PebbleOptions) -> Self {
        Self::start_on(directory, options, free_tcp_udp_port())
    }

    /// Writes what Pebble's own HTTPS takes, so that [`Pebble::roots`] of this directory can be believed before it is started.
    pub fn prepare(directory: &Path) {
        fs::create_dir_all(directory).expect("the directory can be made");
        let ca = TestCa::new();
        let cert = ca.issue(&["localhost", "127.0.0.1"]);
        write(directory, ROOTS, &ca.pem());
        write(directory, CERT, &cert.chain_pem());
        write(directory, KEY, &cert.key_pem());
    }

    /// The same on a port that the caller chose, and with what was [prepared](Pebble::prepare) if something was.
    pub fn start_on(directory: &Path, options: &PebbleOptions, port: u16) -> Self {
        if !directory.join(KEY).exists() {
            Self::prepare(directory);
        }
        let [management, dns, dns_management] = [(); 3].map(|()| free_tcp_udp_port());
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let config =
            write(directory, "pebble.json", &config(directory, options, local(port), local(management)));
        let log = directory.join("pebble.log");
        let mut dns_server = quiet("pebble-challtestsrv", &directory.join("dns.log"));
        let address = |port| local(port).to_string();
        dns_server.args(["-defaultIPv4", "127.0.0.1", "-defaultIPv6", "", "-http01", "", "-https01", ""]);
        dns_server.args(["-tlsalpn01", "", "-dns01", &address(dns), "-management", &address(dns_management)]);
        let mut pebble = quiet("pebble", &log);
        pebble.arg("-config").arg(&config).args(["-dnsserver", &address(dns)]);
        // it would wait some seconds before each look, and refuse nonces and reuse authorizations at random
        pebble.env("PEBBLE_VA_NOSLEEP", "1").env("PEBBLE_WFE_NONCEREJECT", "0").env("PEBBLE_AUTHZREUSE", "0");
        let started = Self {
            addr: local(port),
            management: local(management),
            dns_management: local(dns_management),
            roots: directory.join(ROOTS),
            log,
            _dns: spawn(&mut dns_server),
            _pebble: spawn(&mut pebble),
        };
        for addr in [started.addr, started.management, started.dns_management] {
            wait_for(addr, &started);
        }
        started
    }

    /// Where its directory is.
    pub fn directory_url(&self) -> String {
        format!("https://localhost:{}/dir", self.addr.port())
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.addr.port()
    }

    /// A PEM file with the authority of its own HTTPS.
    pub fn roots(&self) -> &Path {
        &self.roots
    }

    /// Where its management answers over HTTPS, with the root certificate of what it issues at `/roots/0`.
    pub fn management(&self) -> SocketAddr {
        self.management
    }

    /// Where the DNS server's management answers over HTTP: `/set-txt` and `/clear-txt`.
    pub fn dns_management(&self) -> SocketAddr {
        self.dns_management
    }

    /// What it said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// How many certificates it issued.
    pub fn issued(&self) -> usize {
        self.log().matches("Issued certificate serial").count()
    }

    /// How many orders were begun.
    pub fn orders(&self) -> usize {
        self.log().matches("Added order").count()
    }
}

const ROOTS: &str = "roots.pem";
const CERT: &str = "cert.pem";
const KEY: &str = "key.pem";

fn write(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, text).expect("a file can be written");
    path
}

fn config(directory: &Path, options: &PebbleOptions, addr: SocketAddr, management: SocketAddr) -> String {
    let accounts: Vec<_> =
        options.external_accounts.iter().map(|(id, key)| format!("\"{id}\": \"{key}\"")).collect();
    let validity = options.validity.map(|v| format!("\"certificateValidityPeriod\": {},", v.as_secs()));
    format!(
        "{{\"pebble\": {{\"listenAddress\": \"{addr}\", \"managementListenAddress\": \"{management}\", \
         \"certificate\": {:?}, \"privateKey\": {:?}, \"httpPort\": {}, \"tlsPort\": {}, {} \
         \"ocspResponderURL\": \"\", \"externalAccountBindingRequired\": {}, \"externalAccountMACKeys\": {{{}}}}}}}",
        directory.join(CERT),
        directory.join(KEY),
        options.http_port,
        options.tls_port,
        validity.unwrap_or_default(),
        !accounts.is_empty(),
        accounts.join(", ")
    )
}

fn quiet(program: &str, log: &Path) -> Command {
    let file = fs::File::create(log).expect("a log can be written");
    let twin = file.try_clone().expect("a descriptor can be had twice");
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(file).stderr(twin);
    command
}

fn spawn(command: &mut Command) -> ChildGuard {
    ChildGuard::spawn(command).unwrap_or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => panic!("{command:?} is not installed: Debian's package `pebble` has it"),
        _ => panic!("{command:?} does not start: {error}"),
    })
}

fn wait_for(addr: SocketAddr, pebble: &Pebble) {
    let end = Instant::now() + Duration::from_secs(10);
    #[allow(clippy::disallowed_methods, reason = "another process is waited for; a test thread may block")]
    while TcpStream::connect(addr).is_err() {
        assert!(Instant::now() < end, "{addr} does not answer:\n{}", pebble.log());
        #[allow(
            clippy::disallowed_methods,
            reason = "another process is waited for; a test thread may block"
        )]
        std::thread::sleep(Duration::from_millis(10));
    }
}
