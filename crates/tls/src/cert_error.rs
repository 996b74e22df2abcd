//! Why a certificate was not taken.

use std::{io, path::PathBuf, time::Duration};

use crate::x509::DerError;

/// Why a certificate and its key were not taken into the store. Each message names the file, or says "the given
/// PEM", and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertError {
    /// A file or directory could not be read.
    #[error("cannot read {}: {}", path.display(), advice(source))]
    Read {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is too large to be a certificate chain or key.
    #[error("{} is larger than {limit} bytes: give a PEM file with one chain or one key", path.display())]
    TooLarge {
        /// Which one.
        path: PathBuf,
        /// The bound in bytes.
        limit: u64,
    },
    /// There is no pair of files in a directory, nor in the directories in it.
    #[error(
        "no certificate in {}: expected fullchain.pem and privkey.pem, cert.pem and key.pem, or tls.crt and \
         tls.key there or one level below",
        path.display()
    )]
    NoPair {
        /// The directory.
        path: PathBuf,
    },
    /// A file beside a certificate is not an OCSP response that says anything good of it.
    #[error("{} is no successful OCSP response for its certificate, in DER: fetch it again, or remove it", path.display())]
    BadStaple {
        /// Which one.
        path: PathBuf,
    },
    /// The PEM text is damaged.
    #[error("{origin} is damaged PEM: copy the file again, whole")]
    Pem {
        /// The file.
        origin: String,
        /// What is wrong with it.
        source: rustls_pki_types::pem::Error,
    },
    /// There is no certificate in the PEM text.
    #[error("no certificate in {origin}: expected a block that begins with -----BEGIN CERTIFICATE-----")]
    NoCertificate {
        /// The file.
        origin: String,
    },
    /// There are more certificates than a chain can have.
    #[error("{count} certificates in {origin}: give the leaf and its issuers only, {limit} at most")]
    ChainTooLong {
        /// The file.
        origin: String,
        /// How many there are.
        count: usize,
        /// The bound.
        limit: usize,
    },
    /// There is no private key in the PEM text.
    #[error("no private key in {origin}: expected PKCS#8, PKCS#1 or SEC1 (-----BEGIN ... PRIVATE KEY-----)")]
    NoKey {
        /// The file.
        origin: String,
    },
    /// The private key is protected by a passphrase.
    #[error("the private key in {origin} is encrypted: decrypt it first, for example with `openssl pkey`")]
    EncryptedKey {
        /// The file.
        origin: String,
    },
    /// The private key is of a kind that can't be used, or damaged.
    #[error("the private key in {origin} cannot be used: give an ECDSA P-256 or P-384, Ed25519 or RSA key")]
    UnusableKey {
        /// The file.
        origin: String,
        /// What rustls said.
        source: rustls::Error,
    },
    /// Key and certificate do not belong together.
    #[error(
        "the key in {key} does not belong to the first certificate in {cert}: give the two issued together"
    )]
    KeyMismatch {
        /// The certificate's file.
        cert: String,
        /// The key's file.
        key: String,
    },
    /// A certificate of the chain is not a certificate that TLS can use.
    #[error("certificate {position} in {origin} cannot be used: have it issued again as X.509 version 3")]
    BadCertificate {
        /// The file.
        origin: String,
        /// Counted from 1.
        position: usize,
        /// What rustls said.
        source: rustls::Error,
    },
    /// The leaf certificate's fields could not be read.
    #[error("the first certificate in {origin} cannot be read: have it issued again")]
    UnreadableLeaf {
        /// The file.
        origin: String,
        /// Where reading stopped.
        source: UnreadableReason,
    },
    /// The certificate names nothing that a client could ask for.
    #[error(
        "the first certificate in {origin} has no DNS name or IP address in subjectAltName: clients ignore the \
         common name; have it issued with the names"
    )]
    NoNames {
        /// The file.
        origin: String,
    },
    /// The certificate's time is over.
    #[error("the certificate in {origin} expired {} ago: renew it", days(*ago))]
    Expired {
        /// The file.
        origin: String,
        /// How long ago.
        ago: Duration,
    },
    /// The certificate's time has not begun.
    #[error("the certificate in {origin} is valid only in {}: check this machine's clock", days(*wait))]
    NotYetValid {
        /// The file.
        origin: String,
        /// How long until then.
        wait: Duration,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate for these names")]
    Generate(#[source] rcgen::Error),
}

/// Where the DER of a certificate stopped making sense.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct UnreadableReason(#[from] pub(crate) DerError);

impl CertError {
    /// Whether the certificate is sound but out of its time, so that waiting or renewing mends it.
    pub fn is_out_of_time(&self) -> bool {
        matches!(self, Self::Expired { .. } | Self::NotYetValid { .. })
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file; check the path",
        io::ErrorKind::PermissionDenied => "make it readable for the user that the server runs as",
        _ => "check the file and its directory",
    }
}

fn days(span: Duration) -> String {
    match span.as_secs() / 86_400 {
        0 => "less than a day".to_owned(),
        1 => "1 day".to_owned(),
        n => format!("{n} days"),
    }
}
