use std::{
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use super::*;
use crate::storage::MemoryStorage;

/// A directory of its own that goes with the test.
struct Temp(PathBuf);

impl Temp {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("portcullis-acme-{:016x}", random())))
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn contract(storage: &dyn Storage) {
    assert_eq!(storage.load("a/b").unwrap(), None);
    storage.remove("a/b").unwrap();
    assert!(storage.list("a").unwrap().is_empty());
    storage.store("a/b", b"one").unwrap();
    storage.store("a/b", b"two").unwrap();
    storage.store("a/c/d", b"deeper").unwrap();
    storage.store("ab", b"beside").unwrap();
    assert_eq!(storage.load("a/b").unwrap().unwrap(), b"two");
    assert_eq!(storage.list("a").unwrap(), ["a/b"]);
    storage.remove("a/b").unwrap();
    assert_eq!(storage.load("a/b").unwrap(), None);
    let held = storage.try_lock("a/b").unwrap().unwrap();
    assert!(storage.try_lock("a/b").unwrap().is_none(), "one holder at a time");
    assert!(storage.try_lock("a/c").unwrap().is_some(), "another lock is free");
    assert_eq!(storage.load("a/b").unwrap(), None, "a lock is no value");
    drop(held);
    assert!(storage.try_lock("a/b").unwrap().is_some(), "free again");
}

#[test]
fn both_kinds_keep_the_contract() {
    let temp = Temp::new();
    contract(&DirStorage::new(&temp.0));
    contract(&MemoryStorage::new());
}

#[test]
fn nobody_climbs_out() {
    let temp = Temp::new();
    let storage = DirStorage::new(temp.0.join("inner"));
    for key in ["../escaped", "a/../../escaped", "x/..", ".hidden", "a/%2e%2e", "~x", "with space", "a\0b"] {
        storage.store(key, key.as_bytes()).unwrap();
        assert_eq!(storage.load(key).unwrap().unwrap(), key.as_bytes(), "{key}");
    }
    let above: Vec<_> = fs::read_dir(&temp.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(above, ["inner"]);
    for key in ["", "/", "a//b", "/a", "a/", "ü"] {
        assert!(matches!(storage.store(key, b"x"), Err(StorageError::Key { .. })), "{key:?}");
    }
    assert!(matches!(storage.store(&"x".repeat(300), b"x"), Err(StorageError::Key { .. })));
}

#[test]
fn names_go_back_and_forth() {
    for segment in ["a.example", "_.a-b", "Zm9v_-", ".x", "%", "a b"] {
        assert_eq!(unescape(&escape(segment).unwrap()).as_deref(), Some(segment));
    }
    for name in ["a~1", ".x", "%zz", "%4", "%61", "a b"] {
        assert_eq!(unescape(name), None, "{name} is no file of ours");
    }
}

#[cfg(unix)]
#[test]
fn only_the_owner_reads() {
    use std::os::unix::fs::PermissionsExt;
    let temp = Temp::new();
    let storage = DirStorage::new(&temp.0);
    storage.store("certificates/a.example", b"secret").unwrap();
    drop(storage.try_lock("a").unwrap());
    let mode = |path: &str| fs::metadata(temp.0.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(""), mode("values"), mode("values/certificates")), (0o700, 0o700, 0o700));
    assert_eq!((mode("values/certificates/a.example"), mode("locks/a")), (0o600, 0o600));
    assert_eq!(storage.exposed(), None);
    fs::set_permissions(&temp.0, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(storage.exposed().unwrap().contains("chmod 700"));
}

#[test]
fn readers_see_whole_values_only() {
    let temp = Temp::new();
    let storage = DirStorage::new(&temp.0);
    let values = [vec![b'a'; 200_000], vec![b'b'; 100_000]];
    storage.store("k", &values[0]).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for turn in 0..60 {
                storage.store("k", &values[turn % 2]).unwrap();
            }
            done.store(true, Ordering::Release);
        });
        while !done.load(Ordering::Acquire) {
            let seen = storage.load("k").unwrap().unwrap();
            assert!(values.contains(&seen), "a torn value of {} bytes", seen.len());
        }
    });
    assert_eq!(fs::read_dir(temp.0.join("values")).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn what_a_crash_left_is_no_value() {
    let temp = Temp::new();
    let storage = DirStorage::new(&temp.0);
    storage.store("c/k", b"v").unwrap();
    fs::write(beside(&temp.0.join("values/c/k")), b"half").unwrap();
    assert_eq!(storage.list("c").unwrap(), ["c/k"]);
}

#[test]
fn what_is_too_large_is_refused() {
    let temp = Temp::new();
    let storage = DirStorage::new(&temp.0);
    storage.store("k", &vec![0; (1 << 20) + 1]).unwrap();
    assert!(matches!(storage.load("k"), Err(StorageError::TooLarge { .. })));
}

#[test]
fn an_error_says_where() {
    let temp = Temp::new();
    fs::write(&temp.0, b"a file").unwrap();
    let storage = DirStorage::new(&temp.0);
    let error = storage.store("k", b"v").unwrap_err().to_string();
    assert!(error.contains(temp.0.to_str().unwrap()) && error.contains("there is a file"), "{error}");
    let _ = fs::remove_file(&temp.0);
}

#[test]
fn two_handles_share_a_lock() {
    let temp = Temp::new();
    let (one, other) = (DirStorage::new(&temp.0), DirStorage::new(&temp.0));
    let held = one.try_lock("k").unwrap().unwrap();
    assert!(other.try_lock("k").unwrap().is_none());
    drop(held);
    assert!(other.try_lock("k").unwrap().is_some());
}

/// `flock(1)` takes the same kind of lock in a process of its own.
#[cfg(target_os = "linux")]
#[test]
fn a_dead_process_holds_no_lock() {
    use portcullis_testkit::process::ChildGuard;
    let temp = Temp::new();
    let storage = DirStorage::new(&temp.0);
    drop(storage.try_lock("k").unwrap().unwrap());
    let file = temp.0.join("locks/k");
    let mut holder = Command::new("flock");
    // with --no-fork the holder is the process that is killed
    holder.args(["--no-fork", "--exclusive"]).arg(&file).args(["sleep", "1000"]);
    let Ok(child) = ChildGuard::spawn(&mut holder) else { panic!("this test needs flock(1) of util-linux") };
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while storage.try_lock("k").unwrap().is_some() {
        assert!(std::time::Instant::now() < until, "the child never took the lock");
        thread::yield_now();
    }
    drop(child);
    while storage.try_lock("k").unwrap().is_none() {
        assert!(std::time::Instant::now() < until, "the lock outlived its holder");
        thread::yield_now();
    }
}
