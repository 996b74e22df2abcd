//! Certificates for development: a small local authority, and certificates that sign themselves.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};

use crate::{cert_error::CertError, pair, x509};

const DAY: Duration = Duration::from_secs(86_400);
/// Browsers refuse server certificates of more than 398 days, also from authorities that a user installed.
const LEAF_DAYS: u32 = 397;
const CA_DAYS: u32 = 3650;

/// A certificate and its key, both in PEM.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct IssuedCert {
    /// The certificate.
    pub cert_pem: String,
    /// Its private key, PKCS#8. Keep it from other users.
    pub key_pem: String,
}

impl std::fmt::Debug for IssuedCert {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IssuedCert").field("cert_pem", &self.cert_pem).finish_non_exhaustive()
    }
}

/// A certificate authority for one machine or one team: install its certificate as a root once, and every
/// certificate that it issues is trusted.
#[derive(Debug)]
pub struct LocalCa {
    issuer: Issuer<'static, KeyPair>,
    pem: IssuedCert,
}

impl LocalCa {
    /// A new authority with a P-256 key, valid for ten years, allowed to sign server certificates only directly.
    ///
    /// # Errors
    /// When the system gives no randomness, or the name is not text that a certificate can hold.
    pub fn generate(name: &str) -> Result<Self, CertError> {
        let key = KeyPair::generate().map_err(CertError::Generate)?;
        let params = ca_params(name);
        let cert = params.self_signed(&key).map_err(CertError::Generate)?;
        let pem = IssuedCert { cert_pem: cert.pem(), key_pem: key.serialize_pem() };
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    /// An authority made by [`LocalCa::generate`] before.
    ///
    /// # Errors
    /// When either text is damaged, they do not belong together, or the certificate has no common name.
    pub fn from_pem(cert_pem: &str, key_pem: &str) -> Result<Self, CertError> {
        const ORIGIN: &str = "the given PEM";
        let origin = || ORIGIN.to_owned();
        let cert = CertificateDer::from_pem_slice(cert_pem.as_bytes())
            .map_err(|source| CertError::Pem { origin: origin(), source })?;
        let key = KeyPair::from_pem(key_pem).map_err(CertError::Generate)?;
        let facts = x509::parse(&cert)
            .map_err(|e| CertError::UnreadableLeaf { origin: origin(), source: e.into() })?;
        let name = x509::common_name(facts.subject).ok_or_else(|| CertError::NoNames { origin: origin() })?;
        let params = ca_params(name);
        // The public key stands in the certificate as it is.
        let public = rcgen::PublicKeyData::der_bytes(&key);
        if !cert.windows(public.len()).any(|window| window == public) {
            return Err(CertError::KeyMismatch { cert: origin(), key: origin() });
        }
        let pem = IssuedCert { cert_pem: cert_pem.to_owned(), key_pem: key_pem.to_owned() };
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    /// Its certificate and key, to be kept for [`LocalCa::from_pem`].
    pub fn pem(&self) -> &IssuedCert {
        &self.pem
    }

    /// SHA-256 over its certificate, in hexadecimal.
    pub fn fingerprint(&self) -> String {
        CertificateDer::from_pem_slice(self.pem.cert_pem.as_bytes())
            .map(|der| pair::fingerprint(&der))
            .unwrap_or_default()
    }

    /// A server certificate for DNS names and IP addresses, valid for 397 days.
    ///
    /// # Errors
    /// When there is no name, or one is not a name.
    pub fn issue(&self, names: &[String]) -> Result<IssuedCert, CertError> {
        let (mut params, key) = leaf(names, LEAF_DAYS)?;
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(&key, &self.issuer).map_err(CertError::Generate)?;
        Ok(IssuedCert { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }
}

/// A server certificate that signs itself, valid for 365 days.
pub(crate) fn self_signed(names: &[String]) -> Result<IssuedCert, CertError> {
    let (params, key) = leaf(names, 365)?;
    let cert = params.self_signed(&key).map_err(CertError::Generate)?;
    Ok(IssuedCert { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_days(&mut params, CA_DAYS);
    params
}

fn leaf(names: &[String], days: u32) -> Result<(CertificateParams, KeyPair), CertError> {
    let Some(first) = names.first() else {
        return Err(CertError::NoNames { origin: "the request".to_owned() });
    };
    let mut params = CertificateParams::new(names.to_vec()).map_err(CertError::Generate)?;
    params.distinguished_name = named(first);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    set_days(&mut params, days);
    Ok((params, KeyPair::generate().map_err(CertError::Generate)?))
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// From an hour ago, for clocks that are a little behind, so many days on.
fn set_days(params: &mut CertificateParams, days: u32) {
    let start = SystemTime::now() - DAY / 24;
    params.not_before = start.into();
    params.not_after = (start + DAY * days).into();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CertSet;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_the_authority_issues_is_good_for_a_store() {
        let ca = LocalCa::generate("team CA").unwrap();
        let issued = ca.issue(&names(&["a.example.com", "127.0.0.1"])).unwrap();
        let mut set = CertSet::new();
        let chain = issued.cert_pem.clone() + &ca.pem().cert_pem;
        let added = set.add_pem(chain.as_bytes(), issued.key_pem.as_bytes()).unwrap();
        assert_eq!(added.names, ["a.example.com"]);
        assert_eq!(added.addresses.len(), 1);
        assert!(added.chain_in_order);
    }

    #[test]
    fn a_kept_authority_goes_on() {
        let first = LocalCa::generate("team CA").unwrap();
        let again = LocalCa::from_pem(&first.pem().cert_pem, &first.pem().key_pem).unwrap();
        assert_eq!(first.fingerprint(), again.fingerprint());
        let issued = again.issue(&names(&["a.example.com"])).unwrap();
        let chain = issued.cert_pem + &first.pem().cert_pem;
        assert!(
            CertSet::new().add_pem(chain.as_bytes(), issued.key_pem.as_bytes()).unwrap().chain_in_order,
            "the issuer's name is the same"
        );
        let other = LocalCa::generate("other").unwrap();
        assert!(matches!(
            LocalCa::from_pem(&first.pem().cert_pem, &other.pem().key_pem),
            Err(CertError::KeyMismatch { .. })
        ));
    }

    #[test]
    fn no_name_no_certificate() {
        assert!(matches!(LocalCa::generate("x").unwrap().issue(&[]), Err(CertError::NoNames { .. })));
        assert!(matches!(self_signed(&names(&["ü.example"])), Err(CertError::Generate(_))));
    }

    #[test]
    fn a_key_is_not_printed() {
        let ca = LocalCa::generate("x").unwrap();
        assert!(!format!("{:?}", ca.pem()).contains("PRIVATE"));
    }
}
