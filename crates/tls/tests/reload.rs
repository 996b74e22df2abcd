//! Certificates that follow their files: as certbot, Kubernetes and people change them.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use portcullis_testkit::certs::{TestCa, TestCert};
use portcullis_tls::{CertReloader, CertSource, CertStore, ReloadOptions};

/// A directory that is removed with the test.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("portcullis-reload-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn put(directory: &Path, cert: &TestCert) {
    fs::create_dir_all(directory).unwrap();
    fs::write(directory.join("fullchain.pem"), cert.pem()).unwrap();
    fs::write(directory.join("privkey.pem"), cert.key_pem()).unwrap();
}

fn shows(store: &CertStore, name: &str, cert: &TestCert) -> bool {
    store.lookup(Some(name)).is_some_and(|key| key.cert[0] == cert.der())
}

fn reloader(path: &Path) -> (Arc<CertStore>, CertReloader) {
    let store = Arc::new(CertStore::new().with_strict(true));
    let reloader = CertReloader::new(&store, vec![CertSource::Directory(path.to_owned())]);
    (store, reloader)
}

#[test]
fn what_changed_is_loaded_and_nothing_else() {
    let (dir, ca) = (Dir::new("changed"), TestCa::new());
    let (a, b) = (ca.issue(&["a.example.com"]), ca.issue(&["b.example.com"]));
    put(&dir.0.join("a"), &a);
    put(&dir.0.join("b"), &b);
    let (store, mut reloader) = reloader(&dir.0);
    assert_eq!(reloader.load().unwrap().updated.len(), 2);
    assert!(shows(&store, "a.example.com", &a) && shows(&store, "b.example.com", &b));
    assert!(reloader.reload().is_empty());

    let renewed = ca.issue(&["a.example.com", "www.a.example.com"]);
    put(&dir.0.join("a"), &renewed);
    put(&dir.0.join("c"), &ca.issue(&["c.example.com"]));
    fs::remove_dir_all(dir.0.join("b")).unwrap();
    let reloaded = reloader.reload();
    assert_eq!((reloaded.updated.len(), reloaded.removed.len(), reloaded.failed.len()), (2, 1, 0));
    assert!(shows(&store, "www.a.example.com", &renewed));
    assert_eq!(store.names(), ["a.example.com", "c.example.com", "www.a.example.com"]);
}

#[test]
fn a_broken_pair_leaves_the_old_one_and_is_told_once() {
    let (dir, ca) = (Dir::new("broken"), TestCa::new());
    let (a, other) = (ca.issue(&["a.example.com"]), ca.issue(&["a.example.com"]));
    put(&dir.0, &a);
    let (store, mut reloader) = reloader(&dir.0);
    reloader.load().unwrap();
    fs::write(dir.0.join("fullchain.pem"), other.pem()).unwrap();
    let failed = reloader.reload().failed;
    assert!(failed[0].to_string().contains("does not belong"), "{}", failed[0]);
    assert!(shows(&store, "a.example.com", &a));
    assert!(reloader.reload().is_empty(), "the same files are not told of again");
    fs::write(dir.0.join("privkey.pem"), other.key_pem()).unwrap();
    assert_eq!(reloader.reload().updated.len(), 1, "once the key is there too");
    assert!(shows(&store, "a.example.com", &other));

    // an unmounted directory is no reason to serve nothing
    fs::remove_dir_all(&dir.0).unwrap();
    assert_eq!(reloader.reload().failed.len(), 1);
    assert!(reloader.reload().is_empty());
    fs::create_dir_all(&dir.0).unwrap();
    assert_eq!(reloader.reload().failed.len(), 1, "another reason");
    assert!(shows(&store, "a.example.com", &other));
}

#[test]
fn nothing_is_served_of_a_first_load_that_fails() {
    let (dir, ca) = (Dir::new("first"), TestCa::new());
    let (store, mut reloader) = reloader(&dir.0);
    assert!(reloader.load().unwrap_err().to_string().contains("no certificate in"));
    put(&dir.0.join("a"), &ca.issue_expired(&["a.example.com"]));
    assert!(reloader.load().unwrap_err().is_out_of_time());
    put(&dir.0.join("b"), &ca.issue(&["b.example.com"]));
    assert_eq!(reloader.load().unwrap().failed.len(), 1, "one good one is enough");
    assert_eq!(store.names(), ["b.example.com"]);
}

#[test]
fn a_staple_lies_beside_its_certificate() {
    let (dir, ca) = (Dir::new("staple"), TestCa::new());
    let cert = ca.issue(&["a.example.com"]);
    put(&dir.0, &cert);
    let (store, mut reloader) = reloader(&dir.0);
    let stapled = |store: &CertStore| store.lookup(Some("a.example.com")).unwrap().ocsp.clone();
    // a status of success, and a serial number: all that is looked at
    let response = |serial: &[u8]| {
        [
            &[0x30, 0x82, 0x00, 0x09, 0x0a, 0x01, 0x00, 0x02][..],
            &[u8::try_from(serial.len()).unwrap()],
            serial,
        ]
        .concat()
    };
    let (own, other) = (response(&cert.serial_bytes()), response(&[0x55; 8]));
    for (bytes, is_stapled) in [(&b"garbage"[..], false), (&own, true), (&other, false)] {
        fs::write(dir.0.join("ocsp.der"), bytes).unwrap();
        reloader.load().expect("the certificate is served with it or without");
        assert_eq!(stapled(&store).is_some(), is_stapled, "{bytes:?}");
    }
}

#[test]
fn a_source_that_is_gone_does_not_stop_the_others() {
    let (here, there, ca) = (Dir::new("here"), Dir::new("there"), TestCa::new());
    put(&here.0, &ca.issue(&["a.example.com"]));
    put(&there.0.join("b"), &ca.issue(&["b.example.com"]));
    let store = Arc::new(CertStore::new());
    let sources = [&here, &there].map(|dir| CertSource::Directory(dir.0.clone())).to_vec();
    let mut reloader = CertReloader::new(&store, sources);
    reloader.load().unwrap();
    fs::remove_dir_all(there.0.join("b")).unwrap();
    assert_eq!(reloader.reload().failed.len(), 1);
    let renewed = ca.issue(&["a.example.com"]);
    put(&here.0, &renewed);
    let reloaded = reloader.reload();
    assert!(reloaded.failed.is_empty(), "told once");
    assert!(shows(&store, "a.example.com", &renewed));
    assert!(store.knows("b.example.com"), "served on");
}

#[tokio::test]
async fn what_is_not_valid_yet_is_tried_again() {
    let (dir, ca) = (Dir::new("early"), TestCa::new());
    put(&dir.0.join("a"), &ca.issue(&["a.example.com"]));
    let soon = ca.issue_from(&["b.example.com"], std::time::SystemTime::now() + Duration::from_secs(2));
    put(&dir.0.join("b"), &soon);
    let (store, mut reloader) = reloader(&dir.0);
    assert_eq!(reloader.load().unwrap().failed.len(), 1);
    assert!(reloader.reload().is_empty(), "told once");
    let shown = async {
        while !shows(&store, "b.example.com", &soon) {
            tokio::time::sleep(Duration::from_millis(50)).await;
            reloader.reload();
        }
    };
    tokio::time::timeout(Duration::from_secs(10), shown).await.expect("its time has come");
}

/// Waits for the certificate; the deadline is far beyond what it takes.
async fn until(store: &CertStore, cert: &TestCert) {
    let shown = async {
        while !shows(store, "a.example.com", cert) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), shown).await.expect("it is served in the end");
}

/// certbot points links at new files; Kubernetes swaps a hidden directory. Poll is far off: the system tells.
#[tokio::test]
async fn swapped_links_are_seen_as_they_happen() {
    let (dir, ca) = (Dir::new("links"), TestCa::new());
    let certs: Vec<_> = (0..3).map(|_| ca.issue(&["a.example.com"])).collect();
    let (archive, live) = (dir.0.join("archive"), dir.0.join("live"));
    fs::create_dir_all(live.join("a")).unwrap();
    let point = |turn: usize| {
        put(&archive.join(turn.to_string()), &certs[turn]);
        for file in ["fullchain.pem", "privkey.pem"] {
            let (link, new) = (live.join("a").join(file), live.join("a").join(format!(".{file}.new")));
            symlink(archive.join(turn.to_string()).join(file), &new).unwrap();
            fs::rename(new, link).unwrap();
        }
    };
    point(0);
    let (store, mut reloader) = reloader(&live);
    reloader.load().unwrap();
    let options = ReloadOptions::default()
        .with_poll(Duration::from_secs(3600))
        .with_debounce(Duration::from_millis(20));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let task = tokio::spawn(reloader.run(options, async { drop(stopped.await) }));
    for (turn, cert) in certs.iter().enumerate().skip(1) {
        // the first may come before the watch begins, which looks first
        tokio::time::sleep(Duration::from_millis(50)).await;
        point(turn);
        until(&store, cert).await;
    }
    stop.send(()).unwrap();
    task.await.unwrap();
}

#[tokio::test]
async fn a_mounted_secret_is_seen_when_its_link_is_swapped() {
    let (dir, ca) = (Dir::new("secret"), TestCa::new());
    let (old, new) = (ca.issue(&["a.example.com"]), ca.issue(&["a.example.com"]));
    let mount = dir.0.join("mount");
    let publish = |version: &str, cert: &TestCert| {
        let data = mount.join(format!("..{version}"));
        fs::create_dir_all(&data).unwrap();
        fs::write(data.join("tls.crt"), cert.pem()).unwrap();
        fs::write(data.join("tls.key"), cert.key_pem()).unwrap();
        let fresh = mount.join("..data.new");
        symlink(format!("..{version}"), &fresh).unwrap();
        fs::rename(fresh, mount.join("..data")).unwrap();
    };
    publish("1", &old);
    for file in ["tls.crt", "tls.key"] {
        symlink(Path::new("..data").join(file), mount.join(file)).unwrap();
    }
    let (store, mut reloader) = reloader(&mount);
    reloader.load().unwrap();
    assert!(shows(&store, "a.example.com", &old));
    let options = ReloadOptions::default()
        .with_poll(Duration::from_millis(100))
        .with_debounce(Duration::from_millis(10));
    let task = tokio::spawn(reloader.run(options, std::future::pending()));
    publish("2", &new);
    until(&store, &new).await;
    task.abort();
}
