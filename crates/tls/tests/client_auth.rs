//! Clients that show certificates, and policies by name.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::sync::Arc;

use portcullis_conn::{Conn, TlsInfo};
use portcullis_testkit::certs::{TestCa, TestCert};
use portcullis_tls::{
    Acceptor, AcceptorOptions, CertStore, ClientAuth, ClientCas, FailureReason, HostPolicy, Resumption,
    ServerOptions, ServerTls, TicketKeys,
    client::{ClientOptions, Connector, Roots, client_config},
};
use rustls_pki_types::{CertificateRevocationListDer, ServerName, pem::PemObject};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const KEYS: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

struct World {
    ca: TestCa,
    clients: TestCa,
    store: Arc<CertStore>,
}

impl World {
    fn new() -> Self {
        let world = Self { ca: TestCa::new(), clients: TestCa::new(), store: Arc::new(CertStore::new()) };
        let cert = world.ca.issue(&["a.example.com", "admin.example.com", "a.b.example.com"]);
        world.store.add_pem(cert.pem().as_bytes(), cert.key_pem().as_bytes()).unwrap();
        world
    }

    fn cas(&self) -> ClientCas {
        ClientCas::from_pem(self.clients.pem().as_bytes()).unwrap()
    }

    fn acceptor(&self, options: &ServerOptions) -> Acceptor {
        ServerTls::new(Arc::clone(&self.store), options).unwrap().acceptor(AcceptorOptions::default())
    }

    fn client(&self, identity: Option<&TestCert>) -> Connector {
        let mut options = ClientOptions::default()
            .with_roots(Roots::from_pem(self.ca.pem().as_bytes()).unwrap())
            .with_alpn(["h2"]);
        if let Some(cert) = identity {
            options = options.with_identity_pem(cert.pem().as_bytes(), cert.key_pem().as_bytes()).unwrap();
        }
        Connector::new(client_config(options).unwrap(), std::time::Duration::from_secs(10))
    }
}

/// What the server knows, or why it refused. One byte each way, so that tickets are read.
async fn shake(
    acceptor: &Acceptor,
    client: &Connector,
    name: &'static str,
) -> Result<Arc<TlsInfo>, FailureReason> {
    let (near, far) = tokio::io::duplex(1 << 16);
    let name = ServerName::try_from(name).unwrap();
    let (client, server) =
        tokio::join!(client.connect(name, near), acceptor.clone().accept(portcullis_testkit::conn(far)));
    let Conn { mut io, info } = server.map_err(|error| error.reason())?;
    io.write_all(b"x").await.unwrap();
    io.flush().await.unwrap();
    client.unwrap().read_exact(&mut [0]).await.unwrap();
    Ok(info.tls.unwrap())
}

#[tokio::test]
async fn required_and_optional() {
    let world = World::new();
    let (good, stranger) = (world.clients.issue_client("alice"), TestCa::new().issue_client("mallory"));
    let required =
        world.acceptor(&ServerOptions::default().with_client_auth(ClientAuth::Required(world.cas())));
    let optional =
        world.acceptor(&ServerOptions::default().with_client_auth(ClientAuth::Optional(world.cas())));
    let refused = Err(FailureReason::ClientCertificate);
    for (identity, by_required, by_optional) in
        [(Some(&good), Ok(1), Ok(1)), (Some(&stranger), refused, refused), (None, refused, Ok(0))]
    {
        let client = world.client(identity);
        for (acceptor, want) in [(&required, by_required), (&optional, by_optional)] {
            let shown = shake(acceptor, &client, "a.example.com").await.map(|tls| tls.peer_chain.len());
            assert_eq!(shown, want);
        }
    }
}

#[tokio::test]
async fn a_client_is_judged_anew_each_time() {
    let world = World::new();
    let cas = world.cas();
    let acceptor =
        world.acceptor(&ServerOptions::default().with_client_auth(ClientAuth::Required(cas.clone())));
    let alice = world.clients.issue_client("alice");
    let client = world.client(Some(&alice));
    assert!(!shake(&acceptor, &client, "a.example.com").await.unwrap().resumed);
    let again = shake(&acceptor, &client, "a.example.com").await.unwrap();
    assert!(!again.resumed && again.peer_chain.len() == 1, "what is resumed is not looked at");
    cas.replace_crls(world.clients.revoke(&[&alice]).as_bytes()).unwrap();
    let outcome = shake(&acceptor, &client, "a.example.com").await;
    assert_eq!(outcome.unwrap_err(), FailureReason::ClientCertificate);
    assert!(cas.replace_crls(b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n").is_err());
    assert!(shake(&acceptor, &client, "a.example.com").await.is_err(), "the good list stays");
}

#[tokio::test]
async fn a_name_has_a_policy_of_its_own_and_a_ticket_does_not_lead_around_it() {
    let world = World::new();
    let keys = TicketKeys::from_text(KEYS).unwrap();
    let host = HostPolicy::new(["admin.example.com"], ClientAuth::Required(world.cas()));
    let options = ServerOptions::default().with_resumption(Resumption::SharedTickets(keys)).with_host(host);
    let (here, there) = (world.acceptor(&options), world.acceptor(&options));
    let client = world.client(None);
    assert!(!shake(&here, &client, "a.example.com").await.unwrap().resumed);
    assert!(
        shake(&there, &client, "a.example.com").await.unwrap().resumed,
        "another instance, the same keys"
    );
    assert_eq!(
        shake(&here, &client, "admin.example.com").await.unwrap_err(),
        FailureReason::ClientCertificate
    );
    let alice = world.clients.issue_client("alice");
    let known = world.client(Some(&alice));
    assert_eq!(shake(&here, &known, "admin.example.com").await.unwrap().peer_chain.len(), 1);
    let again = shake(&there, &known, "admin.example.com").await.unwrap();
    assert!(!again.resumed && again.peer_chain.len() == 1, "who is asked shows it each time");
}

#[tokio::test]
async fn a_wildcard_policy_is_for_every_name_below() {
    let world = World::new();
    let host = HostPolicy::new(["*.example.com"], ClientAuth::Required(world.cas()));
    let acceptor = world.acceptor(&ServerOptions::default().with_host(host));
    let client = world.client(None);
    for name in ["a.example.com", "a.b.example.com"] {
        let outcome = shake(&acceptor, &client, name).await;
        assert_eq!(outcome.unwrap_err(), FailureReason::ClientCertificate, "{name}");
    }
}

#[test]
fn files_without_a_list_are_no_lists() {
    let world = World::new();
    let (cas, dir) =
        (world.cas(), std::env::temp_dir().join(format!("portcullis-crls-{}", std::process::id())));
    std::fs::create_dir_all(&dir).unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let pem = world.clients.revoke(&[]);
    let list: CertificateRevocationListDer<'_> = PemObject::from_pem_slice(pem.as_bytes()).unwrap();
    let (good, der) = (file("good.pem", pem.as_bytes()), file("good.der", &list));
    let (empty, wrong) = (file("empty.pem", b""), file("wrong.pem", world.ca.pem().as_bytes()));
    for files in [vec![&empty], vec![&good, &empty], vec![&wrong]] {
        let error = cas.replace_crls_from_files(&files).unwrap_err().to_string();
        assert!(error.contains("there is no revocation list in"), "{error}");
    }
    assert!(cas.replace_crls_from_files(&[&der]).unwrap());
    assert!(!cas.replace_crls_from_files(&[&good]).unwrap(), "the same list in another form");
    std::fs::remove_dir_all(dir).unwrap();
}

#[tokio::test]
async fn verification_is_off_only_by_its_name() {
    let world = World::new();
    let acceptor = world.acceptor(&ServerOptions::default());
    let connect = |roots| {
        let config = client_config(ClientOptions::default().with_roots(roots)).unwrap();
        Connector::new(config, std::time::Duration::from_secs(10))
    };
    let stranger = Roots::from_pem(TestCa::new().pem().as_bytes()).unwrap();
    assert_eq!(
        shake(&acceptor, &connect(stranger), "a.example.com").await.unwrap_err(),
        FailureReason::Alert
    );
    shake(&acceptor, &connect(Roots::DangerouslyAcceptAnyCertificate), "other.example").await.unwrap();
    assert!(Roots::from_pem(b"").is_err());
}
