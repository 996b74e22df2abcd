//! Certificates that clients show (mutual TLS).

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use aws_lc_rs::digest;
use parking_lot::Mutex;
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, UnixTime,
    pem::{self, PemObject},
};

use crate::pair::provider;

/// Authorities of one policy at most.
const MAX_ROOTS: usize = 1000;
/// A list of revoked certificates can be large; a path to something else is refused before it fills the memory.
const MAX_FILE: u64 = 16 << 20;
const DER_SEQUENCE: u8 = 0x30;

/// Whether clients must show a certificate.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum ClientAuth {
    /// They are not asked. The default.
    #[default]
    None,
    /// They are asked; one that shows none is let in, one that shows a bad one is not.
    Optional(ClientCas),
    /// They must.
    Required(ClientCas),
}

/// Whose certificates are taken from clients, and which of them are revoked. Clones are the same.
///
/// A certificate must lead to one of the authorities, be within its time and allow client authentication
/// (RFC 5280 section 4.2.1.12). Where there are revocation lists, each certificate below an authority must be covered
/// by one, and must not stand in it. A list past its own time still revokes. Sessions are not resumed where clients are asked: every connection is
/// judged by the lists and the clock of its own time.
#[derive(Clone)]
pub struct ClientCas(Arc<Cas>);

struct Cas {
    roots: Arc<RootCertStore>,
    hints: Vec<DistinguishedName>,
    verifier: ArcSwap<Arc<dyn ClientCertVerifier>>,
    /// What the lists are; `None` without any.
    lists: Mutex<Option<Vec<u8>>>,
}

/// Why authorities for clients' certificates were not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientCaError {
    /// A file could not be read.
    #[error("cannot read {}: check the path and that this server's user may read it", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The PEM text is damaged.
    #[error("the PEM text of the authorities or revocation lists is damaged: copy the file again, whole")]
    Pem(#[source] pem::Error),
    /// There is no authority.
    #[error("there is no authority for clients' certificates: give a PEM file of certificates")]
    NoRoot,
    /// There are too many.
    #[error("{0} authorities for clients' certificates are too many: 1000 at most")]
    TooManyRoots(usize),
    /// One can't be used.
    #[error("an authority for clients' certificates cannot be used")]
    Root(#[source] Error),
    /// A file has no revocation list in it.
    #[error("there is no revocation list in {}: give PEM blocks -----BEGIN X509 CRL-----, or one list in DER", path.display())]
    NoCrl {
        /// Which one.
        path: PathBuf,
    },
    /// The lists can't be used.
    #[error(
        "the revocation lists for clients' certificates cannot be used: give PEM blocks -----BEGIN X509 CRL-----"
    )]
    Crl(#[source] rustls::server::VerifierBuilderError),
}

impl ClientCas {
    /// Authorities from PEM text.
    ///
    /// # Errors
    /// When there is none, or one can't be used.
    pub fn from_pem(roots: &[u8]) -> Result<Self, ClientCaError> {
        let mut store = RootCertStore::empty();
        for cert in CertificateDer::pem_slice_iter(roots) {
            let cert = cert.map_err(ClientCaError::Pem)?;
            store.add(cert).map_err(ClientCaError::Root)?;
        }
        match store.len() {
            0 => return Err(ClientCaError::NoRoot),
            1..=MAX_ROOTS => {}
            many => return Err(ClientCaError::TooManyRoots(many)),
        }
        let roots = Arc::new(store);
        let verifier = verifier(&roots, Vec::new())?;
        Ok(Self(Arc::new(Cas {
            hints: roots.subjects(),
            roots,
            verifier: ArcSwap::from_pointee(verifier),
            lists: Mutex::new(None),
        })))
    }

    /// Authorities from a PEM file.
    ///
    /// # Errors
    /// As [`ClientCas::from_pem`], and when the file can't be read.
    pub fn from_file(roots: &Path) -> Result<Self, ClientCaError> {
        Self::from_pem(&read(roots)?)
    }

    /// Puts these revocation lists (PEM text, any number of blocks; none is no check) in place of those before, in all
    /// configurations that use these authorities; `false` when they are the same. Handshakes from now on go by them.
    ///
    /// # Errors
    /// When one can't be used; those before stay.
    pub fn replace_crls(&self, pem: &[u8]) -> Result<bool, ClientCaError> {
        self.replace(pem_lists(pem)?)
    }

    /// The same with files, PEM or DER. A file without a list is an error: it is more likely a wrong or half-written one than no list.
    ///
    /// # Errors
    /// As [`ClientCas::replace_crls`], and when a file can't be read, has no list, or is larger than 16 MiB.
    pub fn replace_crls_from_files<P: AsRef<Path>>(&self, files: &[P]) -> Result<bool, ClientCaError> {
        let mut lists = Vec::new();
        for file in files {
            let bytes = read(file.as_ref())?;
            let mut found = pem_lists(&bytes)?;
            if found.is_empty() && bytes.first() == Some(&DER_SEQUENCE) {
                found.push(bytes.into());
            }
            if found.is_empty() {
                return Err(ClientCaError::NoCrl { path: file.as_ref().to_owned() });
            }
            lists.extend(found);
        }
        self.replace(lists)
    }

    fn replace(&self, lists: Vec<CertificateRevocationListDer<'static>>) -> Result<bool, ClientCaError> {
        let mut hash = digest::Context::new(&digest::SHA256);
        lists.iter().for_each(|list| hash.update(list));
        let which = (!lists.is_empty()).then(|| hash.finish().as_ref().to_vec());
        let mut current = self.0.lists.lock();
        if *current == which {
            return Ok(false);
        }
        self.0.verifier.store(Arc::new(verifier(&self.0.roots, lists)?));
        *current = which;
        Ok(true)
    }
}

fn pem_lists(pem: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, ClientCaError> {
    CertificateRevocationListDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(ClientCaError::Pem)
}

impl ClientAuth {
    /// `None` when nobody is asked.
    pub(crate) fn verifier(&self) -> Option<Arc<dyn ClientCertVerifier>> {
        let (cas, mandatory) = match self {
            Self::None => return None,
            Self::Optional(cas) => (cas, false),
            Self::Required(cas) => (cas, true),
        };
        Some(Arc::new(Current { cas: Arc::clone(&cas.0), mandatory }))
    }
}

impl fmt::Debug for ClientCas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCas").field("roots", &self.0.roots.len()).finish_non_exhaustive()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ClientCaError> {
    let read = || {
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(fs::File::open(path)?, MAX_FILE + 1), &mut bytes)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 16 MiB"));
        }
        Ok(bytes)
    };
    read().map_err(|source| ClientCaError::Read { path: path.to_owned(), source })
}

fn verifier(
    roots: &Arc<RootCertStore>,
    lists: Vec<CertificateRevocationListDer<'static>>,
) -> Result<Arc<dyn ClientCertVerifier>, ClientCaError> {
    WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::new(provider()))
        .with_crls(lists)
        .build()
        .map_err(ClientCaError::Crl)
}

/// Verifies by the lists of the moment.
#[derive(Debug)]
struct Current {
    cas: Arc<Cas>,
    mandatory: bool,
}

impl fmt::Debug for Cas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cas").field("roots", &self.roots.len()).finish_non_exhaustive()
    }
}

impl ClientCertVerifier for Current {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.cas.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.cas.verifier.load().verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.cas.verifier.load().verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.cas.verifier.load().verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.cas.verifier.load().supported_verify_schemes()
    }
}
