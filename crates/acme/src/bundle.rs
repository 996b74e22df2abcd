//! A certificate as it is stored and served.
//!
//! Chain, key and what else is known are one value, so that one rename replaces all of it: no crash and no reader can
//! get a chain with another one's key. The text is PEM, which every tool reads; what is known beside stands in a line
//! before the first block, where PEM readers look over it.

use std::{net::IpAddr, time::SystemTime};

use portcullis_tls::{Added, CertSet};
use rustls::{client::verify_server_name, crypto::aws_lc_rs, server::ParsedCertificate, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde::{Deserialize, Serialize};

use crate::{error::AcmeError, names::digest_hex, schedule};

const MARK: &str = "portcullis-acme: ";
/// More than any chain in use.
const MAX_CHAIN: usize = 16;

/// What is known about a certificate beside what stands in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    /// The names that it was asked for.
    pub(crate) names: Vec<String>,
    /// Whether a client asked for it.
    #[serde(default)]
    pub(crate) on_demand: bool,
    /// Where its order is at the authority, for a person who looks into it.
    #[serde(default)]
    pub(crate) order: String,
}

/// A certificate that can be served.
#[derive(Clone, Debug)]
pub(crate) struct Bundle {
    pub(crate) key: CertifiedKey,
    pub(crate) about: Added,
    pub(crate) meta: Meta,
    /// Tells one stored text from another.
    pub(crate) digest: String,
    /// Drawn when it was read: where within its spread it is renewed.
    pub(crate) roll: f64,
}

impl Bundle {
    pub(crate) fn renewal_time(&self, fraction: f64) -> SystemTime {
        schedule::renewal_time(self.about.not_before, self.about.not_after, fraction, self.roll)
    }

    pub(crate) fn is_expired(&self, now: SystemTime) -> bool {
        self.about.not_after <= now
    }

    /// Whether another one was issued after it, or with it.
    pub(crate) fn is_older(&self, other: &Self) -> bool {
        self.about.not_before <= other.about.not_before
    }

    /// Puts it among those that are served.
    pub(crate) fn add_to(&self, set: &mut CertSet) -> Added {
        set.add_key(dns_names(&self.meta.names), self.key.clone())
    }
}

fn dns_names(names: &[String]) -> impl Iterator<Item = &String> {
    names.iter().filter(|name| name.parse::<IpAddr>().is_err())
}

/// The text to be stored.
pub(crate) fn compose(meta: &Meta, chain_pem: &str, key_pem: &str) -> Vec<u8> {
    // strings and a flag always become JSON, on one line
    let meta = serde_json::to_string(meta).unwrap_or_default();
    format!("{MARK}{meta}\n{}\n{}\n", chain_pem.trim(), key_pem.trim()).into_bytes()
}

/// Reads and checks what was stored. An expired certificate is no error: it is better than none.
///
/// # Errors
/// When it can't be served, or is not for the names that it says it is for.
pub(crate) fn read(bytes: &[u8], origin: &str) -> Result<Bundle, AcmeError> {
    let bad = |reason: String| AcmeError::Certificate { origin: origin.to_owned(), reason };
    let meta =
        read_meta(bytes).ok_or_else(|| bad("it does not begin with what this server stores".to_owned()))?;
    let chain = CertificateDer::pem_slice_iter(bytes)
        .take(MAX_CHAIN + 1)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| bad(format!("damaged PEM: {error}")))?;
    if chain.len() > MAX_CHAIN {
        return Err(bad(format!("its chain has more than {MAX_CHAIN} certificates")));
    }
    let key =
        PrivateKeyDer::from_pem_slice(bytes).map_err(|error| bad(format!("no private key: {error}")))?;
    let key = aws_lc_rs::sign::any_supported_type(&key).map_err(|error| bad(error.to_string()))?;
    let leaf = chain.first().ok_or_else(|| bad("there is none".to_owned()))?;
    check_names(leaf, &meta.names).map_err(&bad)?;
    let key = CertifiedKey::new(chain, key);
    key.keys_match().map_err(|_| bad("its key belongs to another one".to_owned()))?;
    let about = CertSet::new().add_key(dns_names(&meta.names), key.clone());
    if about.not_after == SystemTime::UNIX_EPOCH {
        return Err(bad("its times cannot be read".to_owned()));
    }
    Ok(Bundle { key, about, meta, digest: digest_hex(bytes), roll: schedule::roll() })
}

fn read_meta(bytes: &[u8]) -> Option<Meta> {
    let rest = bytes.strip_prefix(MARK.as_bytes())?;
    let line = rest.split(|byte| *byte == b'\n').next()?;
    serde_json::from_slice(line).ok()
}

fn check_names(leaf: &CertificateDer<'_>, names: &[String]) -> Result<(), String> {
    let parsed = ParsedCertificate::try_from(leaf).map_err(|error| error.to_string())?;
    for name in names {
        // a wildcard stands for each label
        let one = match name.strip_prefix("*.") {
            Some(parent) => format!("any.{parent}"),
            None => name.clone(),
        };
        let one = ServerName::try_from(one).map_err(|error| format!("{name}: {error}"))?;
        verify_server_name(&parsed, &one).map_err(|_| format!("it is not for {name}"))?;
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use portcullis_testkit::certs::{TestCa, TestCert};

    pub(crate) fn stored(cert: &TestCert, names: &[&str]) -> Vec<u8> {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let meta = Meta { names, on_demand: false, order: String::new() };
        compose(&meta, &cert.chain_pem(), &cert.key_pem())
    }

    #[test]
    fn what_is_stored_is_read() {
        let ca = TestCa::new();
        let names = ["a.example", "*.b.example", "192.0.2.1"];
        let bytes = stored(&ca.issue(&names), &names);
        let bundle = read(&bytes, "a test").unwrap();
        assert_eq!(bundle.about.names, ["a.example", "*.b.example"]);
        assert_eq!(bundle.about.addresses.len(), 1);
        assert_eq!((bundle.meta.names.len(), bundle.meta.on_demand), (3, false));
        assert!(!bundle.is_expired(SystemTime::now()));
    }

    #[test]
    fn an_expired_one_is_read_as_well() {
        let bytes = stored(&TestCa::new().issue_expired(&["a.example"]), &["a.example"]);
        assert!(read(&bytes, "a test").unwrap().is_expired(SystemTime::now()));
    }

    #[test]
    fn what_cannot_be_served_is_refused() {
        let ca = TestCa::new();
        let (one, other) = (ca.issue(&["a.example"]), ca.issue(&["a.example"]));
        let meta = Meta { names: vec!["a.example".to_owned()], on_demand: false, order: String::new() };
        let good = stored(&one, &["a.example"]);
        for (bytes, want) in [
            (stored(&one, &["b.example"]), "not for b.example"),
            (stored(&one, &["*.a.example"]), "not for *.a.example"),
            (compose(&meta, &one.chain_pem(), &other.key_pem()), "belongs to another"),
            (compose(&meta, &one.chain_pem(), ""), "no private key"),
            (compose(&meta, "", &one.key_pem()), "there is none"),
            (compose(&meta, &one.chain_pem().repeat(20), &one.key_pem()), "more than 16"),
            (good[..good.len() / 3].to_vec(), ""),
            (one.chain_pem().into_bytes(), "does not begin"),
            (Vec::new(), "does not begin"),
        ] {
            let error = read(&bytes, "a test").unwrap_err().to_string();
            assert!(error.contains(want) && error.contains("a test"), "{error}, not {want}");
        }
    }
}
