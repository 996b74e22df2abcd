//! The client's side: TLS to upstream servers, as plain options.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    version::{TLS12, TLS13},
};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, UnixTime,
    pem::{self, PemObject},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

pub use rustls_pki_types::ServerName;
pub use tokio_rustls::client::TlsStream;

use crate::{Versions, pair::provider};

/// Which servers are believed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Roots {
    /// Those of whom an authority of the system's store vouches.
    Native,
    /// Those of whom one of these authorities vouches, in DER.
    Given(Vec<CertificateDer<'static>>),
    /// Every server, whoever it is: who stands in between reads and changes everything. For tests alone.
    DangerouslyAcceptAnyCertificate,
}

impl Roots {
    /// Authorities from PEM text.
    ///
    /// # Errors
    /// When the text is damaged or has no certificate.
    pub fn from_pem(pem: &[u8]) -> Result<Self, ClientConfigError> {
        let roots = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(ClientConfigError::Pem)?;
        if roots.is_empty() { Err(ClientConfigError::NoRoots) } else { Ok(Self::Given(roots)) }
    }

    /// Authorities from a PEM file. Blocks.
    ///
    /// # Errors
    /// As [`Roots::from_pem`], and when the file can't be read.
    pub fn from_file(path: &Path) -> Result<Self, ClientConfigError> {
        let read = |source| ClientConfigError::Read { path: path.to_owned(), source };
        Self::from_pem(&fs::read(path).map_err(read)?)
    }
}

/// How TLS is spoken to a server.
#[derive(Debug)]
#[non_exhaustive]
pub struct ClientOptions {
    /// Which servers are believed. Default [`Roots::Native`].
    pub roots: Roots,
    /// The protocols that are offered by ALPN (RFC 7301), the preferred one first. Default none.
    pub alpn: Vec<Vec<u8>>,
    /// The protocol versions. Default [`Versions::Tls12AndUp`]: many servers behind a proxy are old.
    pub versions: Versions,
    /// The chain (leaf first) and key to show where the server asks for one. Default none.
    pub identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self { roots: Roots::Native, alpn: Vec::new(), versions: Versions::Tls12AndUp, identity: None }
    }
}

impl ClientOptions {
    /// Sets [`ClientOptions::roots`].
    #[must_use]
    pub fn with_roots(mut self, roots: Roots) -> Self {
        self.roots = roots;
        self
    }

    /// Sets [`ClientOptions::alpn`].
    #[must_use]
    pub fn with_alpn(mut self, alpn: impl IntoIterator<Item = impl Into<Vec<u8>>>) -> Self {
        self.alpn = alpn.into_iter().map(Into::into).collect();
        self
    }

    /// Sets [`ClientOptions::versions`].
    #[must_use]
    pub fn with_versions(mut self, versions: Versions) -> Self {
        self.versions = versions;
        self
    }

    /// Sets [`ClientOptions::identity`] from PEM text.
    ///
    /// # Errors
    /// When a text is damaged or empty. Whether the two belong together is seen by [`client_config`].
    pub fn with_identity_pem(mut self, chain: &[u8], key: &[u8]) -> Result<Self, ClientConfigError> {
        let chain = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<Vec<_>, _>>()
            .map_err(ClientConfigError::Pem)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(ClientConfigError::Pem)?;
        self.identity = Some((chain, key));
        Ok(self)
    }
}

impl ClientOptions {
    /// Sets [`ClientOptions::identity`] from PEM files. Blocks.
    ///
    /// # Errors
    /// As [`ClientOptions::with_identity_pem`], and when a file can't be read.
    pub fn with_identity_files(self, chain: &Path, key: &Path) -> Result<Self, ClientConfigError> {
        let read = |path: &Path| {
            fs::read(path).map_err(|source| ClientConfigError::Read { path: path.to_owned(), source })
        };
        self.with_identity_pem(&read(chain)?, &read(key)?)
    }
}

/// Why no configuration could be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientConfigError {
    /// A file can't be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// PEM text is damaged.
    #[error("the PEM text is damaged: copy the file again, whole")]
    Pem(#[source] pem::Error),
    /// There is no authority to go by.
    #[error("there is no root certificate: install the system's (ca-certificates), or give some")]
    NoRoots,
    /// An authority can't be used.
    #[error("a root certificate cannot be used")]
    Root(#[source] Error),
    /// The identity can't be used.
    #[error("the client's certificate and key cannot be used: give two that were issued together")]
    Identity(#[source] Error),
    /// rustls refused the versions.
    #[error("the TLS versions cannot be used with this provider")]
    Versions(#[source] Error),
}

/// A configuration for clients. Sessions are resumed within it: make one for each kind of server, and keep it. Reads the system's roots
/// where they are asked for, which takes some milliseconds.
///
/// # Errors
/// When there is no root, or roots or identity can't be used.
pub fn client_config(options: ClientOptions) -> Result<Arc<ClientConfig>, ClientConfigError> {
    let versions = match options.versions {
        Versions::Tls13Only => &[&TLS13][..],
        Versions::Tls12AndUp => &[&TLS13, &TLS12],
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(versions)
        .map_err(ClientConfigError::Versions)?;
    let builder = match options.roots {
        Roots::DangerouslyAcceptAnyCertificate => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody))
        }
        roots => builder.with_root_certificates(root_store(roots)?),
    };
    let mut config = match options.identity {
        Some((chain, key)) => {
            builder.with_client_auth_cert(chain, key).map_err(ClientConfigError::Identity)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = options.alpn;
    // a compressed chain can unfold to a huge one before anybody is authenticated
    config.cert_decompressors = Vec::new();
    Ok(Arc::new(config))
}

fn root_store(roots: Roots) -> Result<RootCertStore, ClientConfigError> {
    let mut store = RootCertStore::empty();
    match roots {
        Roots::Given(given) => {
            for root in given {
                store.add(root).map_err(ClientConfigError::Root)?;
            }
        }
        _ => {
            let found = rustls_native_certs::load_native_certs();
            for error in &found.errors {
                tracing::debug!(%error, "a part of the system's root certificates cannot be read");
            }
            // the system's store may have certificates that nobody can use
            store.add_parsable_certificates(found.certs);
        }
    }
    if store.is_empty() { Err(ClientConfigError::NoRoots) } else { Ok(store) }
}

/// Shakes hands with servers, each handshake within a deadline. Clones are the same.
#[derive(Clone)]
pub struct Connector {
    tls: TlsConnector,
    timeout: Duration,
}

impl Connector {
    /// With a configuration and a deadline for each handshake.
    pub fn new(config: Arc<ClientConfig>, timeout: Duration) -> Self {
        Self { tls: config.into(), timeout }
    }

    /// Shakes hands; `name` is what the server is asked for (SNI) and must prove. Nothing that the server sends before is passed on.
    ///
    /// # Errors
    /// When it fails, or with [`io::ErrorKind::TimedOut`] when the deadline passes. Dropping the future closes the connection.
    pub async fn connect<Io>(&self, name: ServerName<'static>, io: Io) -> io::Result<TlsStream<Io>>
    where
        Io: AsyncRead + AsyncWrite + Unpin,
    {
        tokio::time::timeout(self.timeout, self.tls.connect(name, io)).await.unwrap_or_else(|_| {
            Err(io::Error::new(io::ErrorKind::TimedOut, "the TLS handshake took too long"))
        })
    }
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

/// Believes everybody who can sign with the key of the certificate that he shows.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &provider().signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &provider().signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
