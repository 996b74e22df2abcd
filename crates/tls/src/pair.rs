//! One certificate chain with its key: checked, with what the store needs to know about it.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    crypto::{CryptoProvider, aws_lc_rs},
    server::ParsedCertificate,
    sign::CertifiedKey,
};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject},
};

use crate::{
    cert_error::CertError,
    x509::{self, Facts},
};

/// More than any chain in use; each certificate is sent in every full handshake.
const MAX_CHAIN: usize = 16;

/// What was taken into a store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Added {
    /// The DNS names in lower case, wildcards as `*.example.com`.
    pub names: Vec<String>,
    /// The IP addresses.
    pub addresses: Vec<IpAddr>,
    /// From when it is valid.
    pub not_before: SystemTime,
    /// Until when it is valid.
    pub not_after: SystemTime,
    /// SHA-256 over the leaf certificate, as 64 hexadecimal digits.
    pub fingerprint: String,
    /// Whether each certificate of the chain was issued by the next one. Where not, it was taken all the same,
    /// since many clients sort it out, and a warning was logged.
    pub chain_in_order: bool,
}

/// A checked pair.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) key: Arc<CertifiedKey>,
    pub(crate) about: Added,
}

/// The provider that every configuration and key of this crate uses; nothing process-wide is asked.
pub(crate) fn provider() -> CryptoProvider {
    aws_lc_rs::default_provider()
}

impl Pair {
    /// Shows an OCSP response (RFC 6960) with the certificate, as it is. It goes to clients that ask for one.
    pub(crate) fn staple(&mut self, response: Vec<u8>) {
        let mut key = CertifiedKey::clone(&self.key);
        key.ocsp = Some(response);
        self.key = Arc::new(key);
    }
}

/// Reads and checks a pair. `cert_origin` and `key_origin` are how errors call the two.
pub(crate) fn read(cert: &[u8], key: &[u8], cert_origin: &str, key_origin: &str) -> Result<Pair, CertError> {
    let chain = read_chain(cert, cert_origin)?;
    let key = read_key(key, key_origin)?;
    check(chain, &key, cert_origin, key_origin, SystemTime::now())
}

fn read_chain(text: &[u8], origin: &str) -> Result<Vec<CertificateDer<'static>>, CertError> {
    let chain = CertificateDer::pem_slice_iter(text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| CertError::Pem { origin: origin.to_owned(), source })?;
    if chain.is_empty() {
        return Err(CertError::NoCertificate { origin: origin.to_owned() });
    }
    if chain.len() > MAX_CHAIN {
        let (origin, count) = (origin.to_owned(), chain.len());
        return Err(CertError::ChainTooLong { origin, count, limit: MAX_CHAIN });
    }
    Ok(chain)
}

fn read_key(text: &[u8], origin: &str) -> Result<PrivateKeyDer<'static>, CertError> {
    let origin = || origin.to_owned();
    PrivateKeyDer::from_pem_slice(text).map_err(|source| match source {
        pem::Error::NoItemsFound if text.windows(21).any(|w| w == b"ENCRYPTED PRIVATE KEY") => {
            CertError::EncryptedKey { origin: origin() }
        }
        pem::Error::NoItemsFound => CertError::NoKey { origin: origin() },
        source => CertError::Pem { origin: origin(), source },
    })
}

fn check(
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKeyDer<'static>,
    cert_origin: &str,
    key_origin: &str,
    now: SystemTime,
) -> Result<Pair, CertError> {
    let origin = || cert_origin.to_owned();
    let key = aws_lc_rs::sign::any_supported_type(key)
        .map_err(|source| CertError::UnusableKey { origin: key_origin.to_owned(), source })?;
    for (position, cert) in (1..).zip(&chain) {
        ParsedCertificate::try_from(cert).map_err(|source| CertError::BadCertificate {
            origin: origin(),
            position,
            source,
        })?;
    }
    let key = CertifiedKey::new(chain, key);
    match key.keys_match() {
        // A key that can't tell its public half can't be checked.
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
        Err(_) => return Err(CertError::KeyMismatch { cert: origin(), key: key_origin.to_owned() }),
    }
    let facts = x509::parse(&key.cert[0])
        .map_err(|e| CertError::UnreadableLeaf { origin: origin(), source: e.into() })?;
    if facts.dns.is_empty() && facts.ips.is_empty() {
        return Err(CertError::NoNames { origin: origin() });
    }
    if let Ok(ago) = now.duration_since(facts.not_after) {
        return Err(CertError::Expired { origin: origin(), ago });
    }
    if let Ok(wait) = facts.not_before.duration_since(now)
        && wait > Duration::ZERO
    {
        return Err(CertError::NotYetValid { origin: origin(), wait });
    }
    let about = about(facts, &key.cert);
    if !about.chain_in_order {
        tracing::warn!(
            file = cert_origin,
            "the certificate chain is out of order: put the leaf first and after it each one's issuer"
        );
    }
    Ok(Pair { key: Arc::new(key), about })
}

fn about(facts: Facts<'_>, chain: &[CertificateDer<'static>]) -> Added {
    Added {
        names: facts.dns,
        addresses: facts.ips,
        not_before: facts.not_before,
        not_after: facts.not_after,
        fingerprint: fingerprint(&chain[0]),
        chain_in_order: in_order(chain),
    }
}

/// RFC 8446 section 4.4.2: each following certificate should certify the one before it.
fn in_order(chain: &[CertificateDer<'static>]) -> bool {
    chain.windows(2).all(|pair| match (x509::parse(&pair[0]), x509::parse(&pair[1])) {
        (Ok(cert), Ok(issuer)) => cert.issuer == issuer.subject,
        _ => false,
    })
}

/// SHA-256 in hexadecimal.
pub(crate) fn fingerprint(der: &[u8]) -> String {
    use std::fmt::Write as _;
    let digest = ::aws_lc_rs::digest::digest(&::aws_lc_rs::digest::SHA256, der);
    digest.as_ref().iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a String can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Facts of a certificate that a program made by itself, unchecked except for being readable.
pub(crate) fn trusted(names: Vec<String>, key: CertifiedKey) -> Pair {
    let far = SystemTime::UNIX_EPOCH;
    let leaf = key.cert.first().map(|cert| x509::parse(cert));
    let about = match leaf {
        Some(Ok(facts)) => {
            let (not_before, not_after) = (facts.not_before, facts.not_after);
            let facts = Facts { dns: names, ..facts };
            Added { not_before, not_after, ..about(facts, &key.cert) }
        }
        _ => Added {
            names,
            addresses: Vec::new(),
            not_before: far,
            not_after: far,
            fingerprint: key.cert.first().map(|cert| fingerprint(cert)).unwrap_or_default(),
            chain_in_order: false,
        },
    };
    Pair { key: Arc::new(key), about }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_digest() {
        // SHA-256 of the empty string (FIPS 180-4 example values).
        assert_eq!(fingerprint(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
