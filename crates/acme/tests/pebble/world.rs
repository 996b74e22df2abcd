//! Pebble and its DNS server as children, and instances of an edge that they validate.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use portcullis_acme::{Acme, AcmeOptions, DirStorage, Directory};
use portcullis_testkit::{certs::TestCa, conn, ports::free_tcp_udp_port, process::ChildGuard};
use portcullis_tls::{
    Acceptor, AcceptorOptions, CertStore, ServerOptions, ServerTls, UnknownNames,
    client::{ClientOptions, Connector, Roots, client_config},
};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::{AbortHandle, JoinHandle},
};

const LIMIT: Duration = Duration::from_secs(40);

/// Asks again and again, for as long as any of it could take.
pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let asking = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(LIMIT, asking).await.is_err() {
        panic!("within {} s it did not come to be that {what}", LIMIT.as_secs());
    }
}

/// A directory of its own that goes with the test.
pub(crate) struct Temp(pub(crate) PathBuf);

impl Temp {
    pub(crate) fn new() -> Self {
        let port = free_tcp_udp_port();
        let path = std::env::temp_dir().join(format!("portcullis-pebble-{}-{port}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Where everything of one test is.
pub(crate) struct World {
    pub(crate) temp: Temp,
    pub(crate) ca: TestCa,
    /// The port of Pebble's directory.
    port: u16,
    /// Where Pebble looks by TLS-ALPN-01 and HTTP-01.
    pub(crate) tls: TcpListenerSlot,
    pub(crate) http: TcpListenerSlot,
    dns: u16,
    pub(crate) dns_management: u16,
    _dns: ChildGuard,
    pebble: Option<ChildGuard>,
    external_accounts: bool,
}

/// A listener that was bound before Pebble's configuration was written.
pub(crate) struct TcpListenerSlot {
    pub(crate) port: u16,
    listener: Option<TcpListener>,
}

impl TcpListenerSlot {
    async fn bind() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        Self { port: listener.local_addr().unwrap().port(), listener: Some(listener) }
    }

    pub(crate) fn take(&mut self) -> TcpListener {
        self.listener.take().expect("one server for each port")
    }
}

impl World {
    /// With Pebble running.
    pub(crate) async fn new() -> Self {
        let mut world = Self::without_pebble().await;
        world.start_pebble().await;
        world
    }

    pub(crate) async fn with_external_accounts() -> Self {
        let mut world = Self::without_pebble().await;
        world.external_accounts = true;
        world.start_pebble().await;
        world
    }

    /// With everything but Pebble.
    pub(crate) async fn without_pebble() -> Self {
        let (dns, dns_management) = (free_tcp_udp_port(), free_tcp_udp_port());
        let temp = Temp::new();
        let mut server = Command::new("pebble-challtestsrv");
        server
            .args(["-http01", "", "-https01", "", "-tlsalpn01", "", "-defaultIPv6", ""])
            .args(["-defaultIPv4", "127.0.0.1", "-dns01", &format!("127.0.0.1:{dns}")])
            .args(["-management", &format!("127.0.0.1:{dns_management}")]);
        let guard = spawn(&mut server, &temp.0.join("dns.log"));
        reachable(dns_management).await;
        Self {
            ca: TestCa::new(),
            port: free_tcp_udp_port(),
            tls: TcpListenerSlot::bind().await,
            http: TcpListenerSlot::bind().await,
            dns,
            dns_management,
            _dns: guard,
            pebble: None,
            external_accounts: false,
            temp,
        }
    }

    pub(crate) async fn start_pebble(&mut self) {
        drop(self.pebble.take());
        let cert = self.ca.issue(&["localhost", "127.0.0.1"]);
        let path = |name: &str| self.temp.0.join(name);
        fs::write(path("cert.pem"), cert.chain_pem()).unwrap();
        fs::write(path("key.pem"), cert.key_pem()).unwrap();
        let mut pebble = serde_json::json!({
            "listenAddress": format!("127.0.0.1:{}", self.port),
            "managementListenAddress": format!("127.0.0.1:{}", free_tcp_udp_port()),
            "certificate": path("cert.pem"),
            "privateKey": path("key.pem"),
            "httpPort": self.http.port,
            "tlsPort": self.tls.port,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": self.external_accounts,
        });
        if self.external_accounts {
            pebble["externalAccountMACKeys"] = serde_json::json!({ "kid-1": EXTERNAL_KEY });
        }
        fs::write(path("pebble.json"), serde_json::json!({ "pebble": pebble }).to_string()).unwrap();
        let mut command = Command::new("pebble");
        command
            .args(["-strict=false", "-dnsserver", &format!("127.0.0.1:{}", self.dns), "-config"])
            .arg(path("pebble.json"))
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_WFE_NONCEREJECT", "5")
            .env("PEBBLE_AUTHZREUSE", "0");
        self.pebble = Some(spawn(&mut command, &path("pebble.log")));
        reachable(self.port).await;
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.temp.0.join("pebble.log")).unwrap_or_default()
    }

    /// How many orders Pebble took.
    pub(crate) fn orders(&self) -> usize {
        self.log().matches("Added order").count()
    }

    pub(crate) fn roots(&self) -> Roots {
        Roots::Given(vec![self.ca.der()])
    }

    /// With short waits.
    pub(crate) fn options(&self) -> AcmeOptions {
        AcmeOptions::new(Directory::Url(format!("https://127.0.0.1:{}/dir", self.port)))
            .with_roots(self.roots())
            .with_contacts(["admin@example.com"])
            .with_poll(Duration::from_millis(200))
            .with_retry(Duration::from_millis(200), Duration::from_secs(1))
    }

    pub(crate) fn storage(&self) -> Arc<DirStorage> {
        Arc::new(DirStorage::new(self.temp.0.join("storage")))
    }
}

/// As the authority's shop would show it.
pub(crate) const EXTERNAL_KEY: &str = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";

fn spawn(command: &mut Command, log: &std::path::Path) -> ChildGuard {
    let program = command.get_program().to_string_lossy().into_owned();
    let log = File::create(log).unwrap();
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    match ChildGuard::spawn(command) {
        Ok(child) => child,
        Err(error) => panic!("{program} cannot be started ({error}): install Debian's package `pebble`"),
    }
}

async fn reachable(port: u16) {
    until(&format!("port {port} takes connections"), async || {
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_ok()
    })
    .await;
}

/// One instance: a store, an [`Acme`] in it, and a TLS listener in front.
pub(crate) struct Instance {
    pub(crate) acme: Acme,
    pub(crate) addr: SocketAddr,
    serving: AbortHandle,
    end: Option<oneshot::Sender<()>>,
    running: JoinHandle<()>,
}

impl Instance {
    /// Loads, serves TLS at the listener, and runs.
    pub(crate) async fn start(storage: Arc<DirStorage>, options: AcmeOptions, listener: TcpListener) -> Self {
        let store = Arc::new(CertStore::new());
        let acme = Acme::new(&store, storage, options).unwrap();
        let first = acme.clone();
        tokio::task::spawn_blocking(move || first.load()).await.unwrap().unwrap();
        let tls = ServerTls::new(store, &ServerOptions::default().with_unknown_names(UnknownNames::Refuse))
            .unwrap();
        let acceptor = tls.acceptor(AcceptorOptions::default().with_name_hook(acme.name_hook()));
        let addr = listener.local_addr().unwrap();
        let serving = tokio::spawn(serve(listener, acceptor)).abort_handle();
        let (end, ended) = oneshot::channel();
        let runs = acme.clone();
        let running = tokio::spawn(async move { runs.run(async { drop(ended.await) }).await });
        Self { acme, addr, serving, end: Some(end), running }
    }

    pub(crate) async fn stop(mut self) {
        drop(self.end.take());
        tokio::time::timeout(LIMIT, &mut self.running).await.expect("run ends in time").unwrap();
    }

    /// The fingerprint of what is served for a name, or why nothing is.
    pub(crate) async fn shows(&self, name: &str) -> Result<String, String> {
        let options = ClientOptions::default().with_roots(Roots::DangerouslyAcceptAnyCertificate);
        let connector = Connector::new(client_config(options).unwrap(), LIMIT);
        let io = TcpStream::connect(self.addr).await.map_err(|error| error.to_string())?;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let stream = connector.connect(name, io).await.map_err(|error| error.to_string())?;
        let chain = stream.get_ref().1.peer_certificates().ok_or("no certificate")?;
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &chain[0]);
        Ok(digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    pub(crate) async fn until_served(&self, name: &str) -> String {
        let mut shown = String::new();
        until(&format!("{name} is served; status {:?}", self.acme.status()), async || {
            match self.shows(name).await {
                Ok(fingerprint) => {
                    shown = fingerprint;
                    true
                }
                Err(_) => false,
            }
        })
        .await;
        shown
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.serving.abort();
        self.running.abort();
    }
}

async fn serve(listener: TcpListener, acceptor: Acceptor) {
    while let Ok((io, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            if let Ok(conn) = acceptor.accept(conn(io)).await {
                let (mut io, mut byte) = (conn.io, [0]);
                let _ = io.read(&mut byte).await;
                let _ = io.shutdown().await;
            }
        });
    }
}

pub(crate) async fn some_listener() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap()
}
