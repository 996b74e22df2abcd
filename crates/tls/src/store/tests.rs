use super::*;
use portcullis_testkit::certs::{TestCa, TestCert};
use rustls::{SignatureAlgorithm, SignatureScheme};

fn add(store: &CertStore, cert: &TestCert) -> Added {
    store.add_pem(cert.pem().as_bytes(), cert.key_pem().as_bytes()).unwrap()
}

fn is(key: Option<Arc<CertifiedKey>>, cert: &TestCert) -> bool {
    key.is_some_and(|key| key.cert[0] == cert.der())
}

#[test]
fn names_find_their_certificates() {
    let ca = TestCa::new();
    let (a, wild, b) = (
        ca.issue(&["a.example.com", "example.net"]),
        ca.issue(&["*.example.com", "example.com"]),
        ca.issue(&["b.example.org", "192.0.2.1"]),
    );
    let table = [
        ("a.example.com", Some(&a)),
        ("A.EXAMPLE.COM", Some(&a)),
        ("a.example.com.", Some(&a)),
        ("example.net", Some(&a)),
        ("c.example.com", Some(&wild)),
        ("C.Example.Com", Some(&wild)),
        ("example.com", Some(&wild)),
        ("b.example.org", Some(&b)),
        // RFC 9525 section 6.3: a wildcard stands for one label.
        ("x.c.example.com", None),
        (".example.com", None),
        ("*.example.com", Some(&wild)),
        ("www.example.net", None),
        ("com", None),
        ("", None),
    ];
    for strict in [false, true] {
        let store = CertStore::new().with_strict(strict);
        add(&store, &a);
        add(&store, &wild);
        add(&store, &b);
        for (name, want) in table {
            let got = store.lookup(Some(name));
            match (want, strict) {
                (Some(cert), _) => assert!(is(got, cert), "{name:?}"),
                (None, true) => assert!(got.is_none(), "{name:?} is refused"),
                (None, false) => assert!(is(got, &a), "{name:?} gets the default"),
            }
        }
        assert!(is(store.lookup(None), &b), "the certificate with an address");
    }
}

#[test]
fn without_an_address_the_default_answers_the_nameless() {
    let ca = TestCa::new();
    let (a, b) = (ca.issue(&["a.example.com"]), ca.issue(&["b.example.com"]));
    let store = CertStore::new().with_strict(true);
    assert!(store.lookup(None).is_none() && store.is_empty());
    add(&store, &a);
    add(&store, &b);
    assert!(is(store.lookup(None), &a));
}

#[test]
fn a_renewed_certificate_takes_the_names_and_the_place() {
    let ca = TestCa::new();
    let names = ["a.example.com", "*.a.example.com"];
    let (old, other, new) = (ca.issue(&names), ca.issue(&["b.example.com"]), ca.issue(&names));
    let store = CertStore::new();
    add(&store, &old);
    add(&store, &other);
    add(&store, &new);
    assert_eq!(store.len(), 2, "nothing asks for the old one any more");
    assert!(is(store.lookup(Some("x.a.example.com")), &new));
    assert!(is(store.lookup(Some("unknown.example")), &new), "it is the default now");
    assert_eq!(store.names(), ["*.a.example.com", "a.example.com", "b.example.com"]);
}

#[test]
fn replacing_all_leaves_nothing_of_the_old() {
    let ca = TestCa::new();
    let (a, b) = (ca.issue(&["a.example.com"]), ca.issue(&["b.example.com"]));
    let store = CertStore::new().with_strict(true);
    add(&store, &a);
    let mut set = CertSet::new();
    set.add_pem(b.pem().as_bytes(), b.key_pem().as_bytes()).unwrap();
    store.replace_all(set);
    assert!(store.lookup(Some("a.example.com")).is_none());
    assert!(is(store.lookup(Some("b.example.com")), &b));
    assert_eq!(store.certificates()[0].names, ["b.example.com"]);
}

#[test]
fn removing_takes_all_names_of_the_certificate() {
    let ca = TestCa::new();
    let store = CertStore::new().with_strict(true);
    add(&store, &ca.issue(&["a.example.com", "*.a.example.com"]));
    let b = ca.issue(&["b.example.com"]);
    add(&store, &b);
    assert!(store.remove("A.example.com"));
    assert!(!store.remove("a.example.com"));
    assert_eq!(store.names(), ["b.example.com"]);
    assert!(is(store.lookup(None), &b));
}

#[test]
fn parts_are_replaced_apart_and_the_later_one_wins() {
    let ca = TestCa::new();
    let store = Arc::new(CertStore::new());
    let (first, second) = (store.part(), store.part());
    let set = |certs: &[&TestCert]| {
        let mut set = CertSet::new();
        for cert in certs {
            set.add_pem(cert.pem().as_bytes(), cert.key_pem().as_bytes()).unwrap();
        }
        set
    };
    let (a, b, a2) =
        (ca.issue(&["a.example.com"]), ca.issue(&["b.example.com"]), ca.issue(&["a.example.com"]));
    second.replace(set(&[&a2]));
    first.replace(set(&[&a, &b]));
    assert!(is(store.lookup(Some("a.example.com")), &a2), "the part made later");
    assert!(is(store.lookup(Some("x.example.com")), &a), "the first of the first part is the default");
    second.replace(CertSet::new());
    assert!(is(store.lookup(Some("a.example.com")), &a), "what was hidden is there again");
    first.replace(set(&[&b]));
    assert!(!store.knows("a.example.com") && store.knows("b.example.com"));
    assert_eq!(store.len(), 1);
}

fn ed25519(names: &[&str]) -> (String, String) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let cert = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    (cert.pem(), key.serialize_pem())
}

#[test]
fn a_name_has_a_certificate_of_each_kind_of_key() {
    let ca = TestCa::new();
    let store = CertStore::new();
    let ecdsa = ca.issue(&["a.example.com"]);
    let (pem, key) = ed25519(&["a.example.com"]);
    store.add_pem(pem.as_bytes(), key.as_bytes()).unwrap();
    add(&store, &ecdsa);
    assert_eq!(store.len(), 2);
    let chosen = |schemes: &[SignatureScheme]| {
        let content = store.content.load();
        let slot = content.pick(Some("a.example.com"), true).0.unwrap();
        slot.choose(schemes).key.key.algorithm()
    };
    let (p256, ed) = (SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ED25519);
    assert_eq!(chosen(&[ed, p256]), SignatureAlgorithm::ECDSA, "preferred");
    assert_eq!(chosen(&[ed]), SignatureAlgorithm::ED25519, "all that it can verify");
    assert_eq!(
        chosen(&[SignatureScheme::RSA_PSS_SHA256]),
        SignatureAlgorithm::ECDSA,
        "none fits: it is told"
    );
    let renewed = ca.issue(&["a.example.com"]);
    add(&store, &renewed);
    assert_eq!(store.len(), 2, "one of the same kind takes its place");
    let mut set = CertSet::new();
    set.add_pem(ecdsa.pem().as_bytes(), ecdsa.key_pem().as_bytes()).unwrap();
    store.replace_names(set);
    assert_eq!(store.len(), 1, "whatever the kind");
    assert!(is(store.lookup(Some("a.example.com")), &ecdsa));
}

#[test]
fn names_taken_by_several_leave_nothing() {
    let ca = TestCa::new();
    let store = CertStore::new();
    add(&store, &ca.issue(&["a.example.com", "b.example.com"]));
    add(&store, &ca.issue(&["a.example.com"]));
    assert_eq!(store.len(), 2);
    add(&store, &ca.issue(&["b.example.com"]));
    assert_eq!(store.len(), 2, "nothing asks for the first one any more");
    let expiry = store.next_expiry().unwrap();
    assert!(expiry > SystemTime::now());
}

#[test]
fn a_program_gives_its_own_key_and_names() {
    let cert = TestCa::new().issue(&["inside.example.com"]);
    let key = CertifiedKey::from_der(vec![cert.der()], cert.key_der(), &crate::pair::provider()).unwrap();
    let mut set = CertSet::new();
    let added = set.add_key(["Outside.example.com", "not a name"], key);
    assert_eq!(added.names, ["outside.example.com"]);
    let store = CertStore::new().with_strict(true);
    store.add_all(set);
    assert!(is(store.lookup(Some("outside.example.com")), &cert));
    assert!(store.lookup(Some("inside.example.com")).is_none());
}

#[test]
fn what_is_wrong_is_told() {
    let ca = TestCa::new();
    let (a, b) = (ca.issue(&["a.example.com"]), ca.issue(&["b.example.com"]));
    let nameless = ca.issue(&[]);
    let (expired, future) = (ca.issue_expired(&["a.example.com"]), ca.issue_future(&["a.example.com"]));
    let cut = &a.pem()[..a.pem().len() - 40];
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let bad_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let long = a.pem().repeat(17);
    let key = a.key_pem();
    for (cert, key, want) in [
        (a.pem(), b.key_pem().as_str(), "does not belong"),
        ("", &key, "no certificate in"),
        (&key, &key, "no certificate in"),
        (a.pem(), "", "no private key in"),
        (a.pem(), encrypted, "is encrypted"),
        (a.pem(), bad_key, "cannot be used"),
        (cut, &key, "damaged PEM"),
        (broken, &key, "certificate 1 in"),
        (&long, &key, "17 certificates in"),
        (nameless.pem(), &nameless.key_pem(), "no DNS name or IP address"),
        (expired.pem(), &expired.key_pem(), "days ago: renew it"),
        (future.pem(), &future.key_pem(), "check this machine's clock"),
    ] {
        let store = CertStore::new();
        let error = store.add_pem(cert.as_bytes(), key.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(want), "{error:?} does not say {want:?}");
        assert!(store.is_empty());
    }
}

#[test]
fn a_chain_out_of_order_is_taken_and_reported() {
    let ca = TestCa::new();
    let leaf = ca.issue(&["a.example.com"]);
    let stranger = TestCa::new().issue(&["x.example.com"]);
    let store = CertStore::new();
    let good = store.add_pem(leaf.chain_pem().as_bytes(), leaf.key_pem().as_bytes()).unwrap();
    assert!(good.chain_in_order);
    assert_eq!(good.fingerprint.len(), 64);
    let mixed = format!("{}{}", leaf.pem(), stranger.pem());
    assert!(!store.add_pem(mixed.as_bytes(), leaf.key_pem().as_bytes()).unwrap().chain_in_order);
}

#[test]
fn unknown_names_are_counted_and_seldom_logged() {
    let unknown = UnknownNames::new();
    for _ in 0..1000 {
        unknown.saw(Some("x.example"), true);
    }
    assert_eq!(unknown.count.load(Ordering::Relaxed), 1000);
    assert!(unknown.logged.load(Ordering::Relaxed) < 1000, "most were only counted");
}
