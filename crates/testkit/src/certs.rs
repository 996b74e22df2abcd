//! A throw-away certificate authority and the leaf certificates it signs.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// A certificate authority that lives as long as the test.
#[derive(Debug)]
pub struct TestCa {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl TestCa {
    /// A new authority with a fresh P-256 key.
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "portcullis test CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a P-256 key can be made");
        Self { issuer: CertifiedIssuer::self_signed(params, key).expect("the CA parameters are complete") }
    }

    /// The authority's own certificate, for a client's root store.
    pub fn der(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    /// The authority's own certificate in PEM.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A list, in PEM, that revokes these certificates.
    pub fn revoke(&self, certs: &[&TestCert]) -> String {
        let revoked = certs.iter().map(|cert| rcgen::RevokedCertParams {
            serial_number: cert.serial.into(),
            revocation_time: rcgen::date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let params = rcgen::CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2024, 1, 1),
            next_update: rcgen::date_time_ymd(2100, 1, 1),
            crl_number: rcgen::SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.issuer).expect("the list's parameters are complete");
        list.pem().expect("DER becomes PEM")
    }

    /// A server certificate for DNS names and IP addresses (a name that parses as an address becomes one),
    /// good from 1975 until 4096.
    pub fn issue(&self, names: &[&str]) -> TestCert {
        self.issue_with(names, |_| ())
    }

    /// A server certificate that ended on the first day of 2020.
    pub fn issue_expired(&self, names: &[&str]) -> TestCert {
        self.issue_with(names, |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1))
    }

    /// A server certificate that begins in the year 4000.
    pub fn issue_future(&self, names: &[&str]) -> TestCert {
        self.issue_with(names, |params| params.not_before = rcgen::date_time_ymd(4000, 1, 1))
    }

    /// A server certificate that begins then, to the second.
    pub fn issue_from(&self, names: &[&str], begin: SystemTime) -> TestCert {
        self.issue_with(names, |params| params.not_before = begin.into())
    }

    /// A certificate for TLS clients.
    pub fn issue_client(&self, name: &str) -> TestCert {
        self.issue_with(&[name], |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        })
    }

    /// A certificate whose parameters a test changes before they are signed.
    pub fn issue_with(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> TestCert {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("the test's names are ASCII");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        params.serial_number = Some(serial.into());
        change(&mut params);
        let key = KeyPair::generate().expect("a P-256 key can be made");
        let cert = params.signed_by(&key, &self.issuer).expect("the leaf parameters are complete");
        TestCert { cert: cert.der().clone(), cert_pem: cert.pem(), ca_pem: self.pem(), serial, key }
    }
}

impl Default for TestCa {
    fn default() -> Self {
        Self::new()
    }
}

/// A leaf certificate with its key.
#[derive(Debug)]
pub struct TestCert {
    cert: CertificateDer<'static>,
    cert_pem: String,
    ca_pem: String,
    serial: u64,
    key: KeyPair,
}

impl TestCert {
    /// The leaf.
    pub fn der(&self) -> CertificateDer<'static> {
        self.cert.clone()
    }

    /// Its serial number as DER has it: big-endian, without needless zeros, positive.
    pub fn serial_bytes(&self) -> Vec<u8> {
        let bytes = self.serial.to_be_bytes();
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count().min(7);
        let sign = (bytes[zeros] >= 0x80).then_some(0);
        sign.into_iter().chain(bytes[zeros..].iter().copied()).collect()
    }

    /// The leaf in PEM.
    pub fn pem(&self) -> &str {
        &self.cert_pem
    }

    /// The leaf and then the authority, in PEM, as `fullchain.pem` holds them.
    pub fn chain_pem(&self) -> String {
        format!("{}{}", self.cert_pem, self.ca_pem)
    }

    /// The key, PKCS#8.
    pub fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()))
    }

    /// The key, PKCS#8 in PEM.
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_are_in_the_leaf() {
        let leaf = TestCa::new().issue(&["a.example.com", "192.0.2.9"]);
        let der = leaf.der();
        assert!(der.windows(13).any(|w| w == b"a.example.com"));
        assert!(der.windows(6).any(|w| w == [0x87, 4, 192, 0, 2, 9]), "an iPAddress of four bytes");
        assert_eq!(leaf.chain_pem().matches("BEGIN CERTIFICATE").count(), 2);
    }
}
