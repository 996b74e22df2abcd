//! Pairs from files and directories, in every form that the tools write.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use portcullis_testkit::certs::{TestCa, TestCert};
use portcullis_tls::{CertError, CertStore};

/// A directory that goes with the test.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("portcullis-tls-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn pair(&self, cert: &str, key: &str, with: &TestCert) {
        self.write(cert, &with.chain_pem());
        self.write(key, &with.key_pem());
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_directory_with_a_pair_in_each_form() {
    let ca = TestCa::new();
    for (cert, key) in [("fullchain.pem", "privkey.pem"), ("cert.pem", "key.pem"), ("tls.crt", "tls.key")] {
        let dir = Dir::new();
        dir.pair(cert, key, &ca.issue(&["a.example.com"]));
        let loaded = CertStore::new().load_directory(&dir.0).unwrap();
        assert_eq!(loaded.added[0].names, ["a.example.com"]);
        assert!(loaded.failed.is_empty());
    }
}

#[test]
fn certbot_keeps_cert_pem_beside_fullchain_pem() {
    let ca = TestCa::new();
    let dir = Dir::new();
    let leaf = ca.issue(&["a.example.com"]);
    dir.pair("fullchain.pem", "privkey.pem", &leaf);
    dir.write("cert.pem", leaf.pem());
    assert_eq!(CertStore::new().load_directory(&dir.0).unwrap().added.len(), 1);
}

#[test]
fn a_directory_of_directories_with_one_bad_pair() {
    let ca = TestCa::new();
    let dir = Dir::new();
    dir.write("README", "certbot puts one here");
    dir.pair("b/fullchain.pem", "b/privkey.pem", &ca.issue(&["b.example.com"]));
    dir.pair("a/tls.crt", "a/tls.key", &ca.issue(&["a.example.com"]));
    dir.pair(".hidden/tls.crt", ".hidden/tls.key", &ca.issue(&["hidden.example.com"]));
    dir.pair("c/cert.pem", "c/key.pem", &ca.issue_expired(&["c.example.com"]));
    dir.write("d/cert.pem", ca.issue(&["d.example.com"]).pem());
    fs::create_dir(dir.0.join("empty")).unwrap();
    let store = CertStore::new();
    let loaded = store.load_directory(&dir.0).unwrap();
    assert_eq!(store.names(), ["a.example.com", "b.example.com"]);
    assert_eq!(store.certificates()[0].names, ["a.example.com"], "by name, so that the default is the same");
    assert!(matches!(&loaded.failed[0], CertError::Expired { origin, .. } if origin.ends_with("cert.pem")));
    assert!(matches!(&loaded.failed[1], CertError::Read { path, .. } if path.ends_with("d/key.pem")));
}

#[cfg(unix)]
#[test]
fn kubernetes_and_certbot_use_symbolic_links() {
    let ca = TestCa::new();
    let dir = Dir::new();
    dir.pair("..2026/tls.crt", "..2026/tls.key", &ca.issue(&["a.example.com"]));
    let link = |from: &str, to: &str| std::os::unix::fs::symlink(from, dir.0.join(to)).unwrap();
    link("..2026", "..data");
    link("..data/tls.crt", "tls.crt");
    link("..data/tls.key", "tls.key");
    assert_eq!(CertStore::new().load_directory(&dir.0).unwrap().added.len(), 1);
}

#[test]
fn what_is_wrong_names_the_file() {
    let ca = TestCa::new();
    let dir = Dir::new();
    let (a, b) = (ca.issue(&["a.example.com"]), ca.issue(&["b.example.com"]));
    let (cert, key) = (dir.write("a.pem", a.pem()), dir.write("b.key", &b.key_pem()));
    let store = CertStore::new();
    let error = |cert: &Path, key: &Path| store.load_files(cert, key).unwrap_err().to_string();
    let mismatch = error(&cert, &key);
    assert!(mismatch.contains("a.pem") && mismatch.contains("b.key"), "{mismatch}");
    let missing = error(&dir.0.join("none.pem"), &key);
    assert!(missing.contains("none.pem") && missing.contains("check the path"), "{missing}");
    let huge = dir.write("huge.pem", &"x".repeat((1 << 20) + 1));
    assert!(error(&huge, &key).contains("huge.pem is larger than"));
    assert!(error(&key, &key).contains("no certificate in"));
    let empty = Dir::new();
    assert!(matches!(store.load_directory(&empty.0), Err(CertError::NoPair { .. })));
    assert!(matches!(store.load_directory(&empty.0.join("none")), Err(CertError::Read { .. })));
    empty.pair("x/cert.pem", "x/key.pem", &ca.issue_expired(&["x.example.com"]));
    assert!(store.load_directory(&empty.0).unwrap_err().is_out_of_time(), "the only pair's own reason");
    assert!(store.is_empty());
}

#[test]
fn certificate_and_key_in_one_file() {
    let dir = Dir::new();
    let leaf = TestCa::new().issue(&["a.example.com"]);
    let both = dir.write("both.pem", &format!("{}{}", leaf.key_pem(), leaf.chain_pem()));
    assert!(CertStore::new().load_files(&both, &both).unwrap().chain_in_order);
}

#[test]
fn self_signed_for_names_and_addresses() {
    let store = CertStore::new();
    let added = store.add_self_signed(&["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    assert_eq!(added.names, ["localhost"]);
    assert_eq!(added.addresses, ["127.0.0.1".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(added.fingerprint, store.certificates()[0].fingerprint);
    assert!(added.fingerprint.bytes().all(|b| b.is_ascii_hexdigit()) && added.fingerprint.len() == 64);
}
