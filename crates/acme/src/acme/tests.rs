use super::*;
use crate::{
    bundle::tests::stored,
    dns::{BoxFuture, DnsError, DnsHook},
    options::{Directory, ExternalAccount},
    status::CertState,
    storage::MemoryStorage,
};
use portcullis_testkit::certs::{TestCa, TestCert};
use portcullis_tls::client::Roots;

struct NoDns;

impl DnsHook for NoDns {
    fn set<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<(), DnsError>> {
        Box::pin(async { Ok(()) })
    }

    fn clear<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<(), DnsError>> {
        Box::pin(async { Ok(()) })
    }
}

fn options() -> AcmeOptions {
    AcmeOptions::new(Directory::LetsEncryptStaging).with_roots(Roots::Given(vec![TestCa::new().der()]))
}

fn acme(storage: &MemoryStorage, options: AcmeOptions) -> (Arc<CertStore>, Acme) {
    let store = Arc::new(CertStore::new());
    let acme = Acme::new(&store, Arc::new(storage.clone()), options).unwrap();
    (store, acme)
}

#[test]
fn what_options_contradict() {
    let dns = || Challenge::Dns01(Arc::new(NoDns));
    let many: Vec<_> = (0..101).map(|n| format!("{n}.example.com")).collect();
    for (options, want) in [
        (options().with_certificate([""; 0]), "certificate 1 has no names"),
        (options().with_certificate(many), "certificate 1 has 101 names: 100"),
        (options().with_certificate(["localhost"]), "\"localhost\": it has one label"),
        (options().with_certificate(["*.a.example"]), "*.a.example can be proved by dns-01 alone"),
        (
            options().with_challenge(dns()).with_certificate(["192.0.2.1"]),
            "192.0.2.1 cannot be proved by dns-01",
        ),
        (
            options().with_certificate(["a.example"]).with_certificate(["b.example", "A.example."]),
            "a.example stands in two",
        ),
        (options().with_external_account(ExternalAccount::new("kid", "no/t*it")), "not base64url"),
        (AcmeOptions::new(Directory::Url("http://a.example/dir".to_owned())), "give an https URL"),
        (AcmeOptions::new(Directory::Url("a.example".to_owned())), "no scheme"),
    ] {
        let error = checked(options).unwrap_err().to_string();
        assert!(error.contains(want), "{error}, not {want}");
    }
    let good = options().with_challenge(dns()).with_certificate(["*.A.example", "a.example."]);
    let good = checked(good.with_contacts(["a@example.com", "mailto:b@example.com"])).unwrap();
    assert_eq!(good.certificates, [["*.a.example", "a.example"]]);
    assert_eq!(good.contacts, ["mailto:a@example.com", "mailto:b@example.com"]);
}

#[test]
fn secrets_are_not_printed() {
    let options = options().with_external_account(ExternalAccount::new("kid-1", "c2VjcmV0"));
    let text = format!("{options:?}");
    assert!(text.contains("kid-1") && !text.contains("c2VjcmV0"), "{text}");
}

fn put(storage: &MemoryStorage, acme: &Acme, cert: &TestCert, names: &[&str]) -> String {
    let owned: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let id = certificate_id(&owned);
    storage.store(&acme.0.certificate_key(&id), &stored(cert, names)).unwrap();
    id
}

#[test]
fn what_is_stored_is_served_without_the_authority() {
    let storage = MemoryStorage::new();
    let ca = TestCa::new();
    let options = || {
        ["a.example", "b.example", "c.example", "d.example"]
            .iter()
            .fold(options(), |options, name| options.with_certificate([*name]))
    };
    let (store, acme) = acme(&storage, options());
    put(&storage, &acme, &ca.issue(&["b.example"]), &["b.example"]);
    put(&storage, &acme, &ca.issue_expired(&["c.example"]), &["c.example"]);
    put(&storage, &acme, &ca.issue(&["x.example"]), &["d.example"]);
    let loaded = acme.load().unwrap();
    assert_eq!(loaded.added.len(), 2);
    assert_eq!(loaded.missing, [["a.example"], ["d.example"]]);
    assert!(loaded.failed[0].to_string().contains("not for d.example"), "{:?}", loaded.failed);
    assert!(store.knows("b.example") && store.knows("c.example") && !store.knows("d.example"));
    let states: Vec<_> = acme.status().into_iter().map(|status| status.state).collect();
    assert_eq!(states, [CertState::Missing, CertState::Valid, CertState::Expired, CertState::Missing]);
    assert!(store.lookup(None).is_some(), "the first one there is the default");
}

#[test]
fn a_certificate_for_other_names_is_served_until_the_new_one_is_there() {
    let (storage, ca) = (MemoryStorage::new(), TestCa::new());
    let (_, before) = acme(&storage, options().with_certificate(["a.example"]));
    put(&storage, &before, &ca.issue(&["a.example"]), &["a.example"]);
    let names = ["a.example", "www.a.example"];
    let (store, acme) = acme(&storage, options().with_certificate(names));
    let loaded = acme.load().unwrap();
    assert_eq!((loaded.added.len(), loaded.missing.len()), (1, 1));
    assert!(store.knows("a.example") && !store.knows("www.a.example"));
    let new = ca.issue(&names);
    put(&storage, &acme, &new, &names);
    acme.0.look();
    assert!(store.knows("www.a.example"));
    assert_eq!(store.lookup(Some("a.example")).unwrap().cert[0], new.der());
    assert_eq!(store.len(), 1, "the earlier one is gone");
}

#[test]
fn a_certificate_that_was_split_is_served_for_the_half_that_is_not_there_yet() {
    let (storage, ca) = (MemoryStorage::new(), TestCa::new());
    let both = ["a.example", "b.example"];
    let (_, before) = acme(&storage, options().with_certificate(both));
    put(&storage, &before, &ca.issue(&both), &both);
    let (store, acme) =
        acme(&storage, options().with_certificate(["a.example"]).with_certificate(["b.example"]));
    acme.load().unwrap();
    let new = ca.issue(&["a.example"]);
    put(&storage, &acme, &new, &["a.example"]);
    acme.0.look();
    assert_eq!(store.lookup(Some("a.example")).unwrap().cert[0], new.der());
    assert!(store.knows("b.example"), "the earlier one goes on for it");
    put(&storage, &acme, &ca.issue(&["b.example"]), &["b.example"]);
    acme.0.look();
    assert_eq!(store.len(), 2, "and is gone with the second half");
}

#[test]
fn one_bad_file_keeps_nothing_else_from_being_served() {
    let (storage, ca) = (MemoryStorage::new(), TestCa::new());
    let (store, acme) =
        acme(&storage, options().with_certificate(["a.example"]).with_certificate(["b.example"]));
    let id = put(&storage, &acme, &ca.issue(&["a.example"]), &["a.example"]);
    put(&storage, &acme, &ca.issue(&["b.example"]), &["b.example"]);
    storage.store(&acme.0.certificate_key(&id), b"half a file").unwrap();
    assert_eq!(acme.load().unwrap().failed.len(), 1);
    assert!(store.knows("b.example"));
}

#[test]
fn a_trial_is_never_served_in_earnest() {
    let storage = MemoryStorage::new();
    let (_, trial) = acme(&storage, options().with_certificate(["a.example"]));
    put(&storage, &trial, &TestCa::new().issue(&["a.example"]), &["a.example"]);
    assert_eq!(trial.load().unwrap().added.len(), 1);
    let mut earnest = options().with_certificate(["a.example"]);
    earnest.directory = Directory::LetsEncrypt;
    let (store, earnest) = acme(&storage, earnest);
    assert_eq!(earnest.load().unwrap().missing.len(), 1);
    assert!(store.is_empty());
}

#[test]
fn others_certificates_in_the_store_stay() {
    let storage = MemoryStorage::new();
    let (store, acme) = acme(&storage, options().with_certificate(["a.example"]));
    store.add_self_signed(&["other.example".to_owned()]).unwrap();
    put(&storage, &acme, &TestCa::new().issue(&["a.example"]), &["a.example"]);
    acme.load().unwrap();
    assert_eq!(store.names(), ["a.example", "other.example"]);
}

#[test]
fn what_another_instance_stores_is_found_and_an_older_one_left() {
    let storage = MemoryStorage::new();
    let (store, acme) = acme(&storage, options().with_certificate(["a.example"]));
    acme.load().unwrap();
    acme.0.look();
    assert!(store.is_empty());
    let from = |year| {
        TestCa::new()
            .issue_with(&["a.example"], |params| params.not_before = rcgen::date_time_ymd(year, 1, 1))
    };
    let fingerprint = || store.certificates()[0].fingerprint.clone();
    put(&storage, &acme, &from(2020), &["a.example"]);
    acme.0.look();
    let first = fingerprint();
    acme.0.look();
    assert_eq!((acme.stats().adopted, fingerprint()), (1, first.clone()));
    put(&storage, &acme, &from(2021), &["a.example"]);
    acme.0.look();
    let second = fingerprint();
    assert_ne!(second, first);
    put(&storage, &acme, &from(2019), &["a.example"]);
    acme.0.look();
    assert_eq!((acme.stats().adopted, fingerprint()), (2, second));
}

/// A storage that can't be read, as when a mount is gone.
struct Broken;

impl Storage for Broken {
    fn load(&self, _: &str) -> Result<Option<Vec<u8>>, crate::StorageError> {
        Err(crate::StorageError::Other("the mount is gone".into()))
    }

    fn store(&self, _: &str, _: &[u8]) -> Result<(), crate::StorageError> {
        Err(crate::StorageError::Other("the mount is gone".into()))
    }

    fn remove(&self, _: &str) -> Result<(), crate::StorageError> {
        Ok(())
    }

    fn list(&self, _: &str) -> Result<Vec<String>, crate::StorageError> {
        Ok(Vec::new())
    }

    fn try_lock(&self, _: &str) -> Result<Option<Box<dyn crate::LockGuard>>, crate::StorageError> {
        panic!("a storage that is broken altogether")
    }
}

#[tokio::test(start_paused = true)]
async fn a_broken_storage_is_no_reason_to_hurry() {
    let store = Arc::new(CertStore::new());
    let acme = Acme::new(&store, Arc::new(Broken), options().with_certificate(["a.example"])).unwrap();
    assert!(acme.load().unwrap_err().to_string().contains("the storage failed"));
    // as if it broke after the start
    acme.0.is_loaded.store(true, Ordering::Release);
    acme.run(tokio::time::sleep(std::time::Duration::from_secs(24 * 3600))).await;
    let failed = acme.stats().orders_failed;
    assert!((5..=14).contains(&failed), "{failed} attempts in a day: 1, 2, 4 ... min, then every 6 h");
}
