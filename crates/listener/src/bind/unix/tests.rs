use std::{num::NonZeroUsize, os::unix::net::UnixStream};

use super::*;
use crate::{BindError, BindPlan};

/// A directory that goes with the test.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("portcullis-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn bind(path: &Path, options: UnixOptions) -> Result<Bound, BindError> {
    let plan = BindPlan::new().unix(path, options);
    plan.bind(NonZeroUsize::new(2).unwrap()).map(|mut bound| bound.remove(0))
}

fn told(path: &Path, options: UnixOptions) -> String {
    bind(path, options).unwrap_err().to_string()
}

#[test]
fn it_has_its_mode_and_owner_and_goes_when_it_is_dropped() {
    let dir = Dir::new("mode");
    let path = dir.0.join("a.sock");
    let own = fs::metadata(&dir.0).unwrap();
    let group = UnixOwner::Id(own.gid());
    let options =
        UnixOptions::default().with_mode(0o620).with_user(UnixOwner::Id(own.uid())).with_group(group);
    let bound = bind(&path, options).unwrap();
    let metadata = fs::symlink_metadata(&path).unwrap();
    assert_eq!((metadata.mode() & 0o777, metadata.uid(), metadata.gid()), (0o620, own.uid(), own.gid()));
    assert_eq!(bound.unix.len(), 2, "a group is duplicates of one socket");
    assert_eq!(bound.local_addr.to_string(), format!("unix:{}", path.display()));
    let _client = UnixStream::connect(&path).unwrap();
    bound.unix[1].accept().unwrap();
    drop(bound);
    assert!(!path.exists());

    // a file that took the name stays
    let bound = bind(&path, UnixOptions::default()).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, "mine").unwrap();
    drop(bound);
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
}

#[test]
fn a_stale_one_is_replaced_and_nothing_else() {
    let dir = Dir::new("stale");
    let path = dir.0.join("a.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "the standard library leaves it behind");
    let bound = bind(&path, UnixOptions::default()).unwrap();

    let error = bind(&path, UnixOptions::default()).unwrap_err();
    let pid = std::process::id().to_string();
    assert!(error.is_in_use() && error.to_string().contains(&pid), "{error}");
    assert!(UnixStream::connect(&path).is_ok(), "and it is still there");
    drop(bound);

    fs::write(&path, "precious").unwrap();
    let text = told(&path, UnixOptions::default());
    assert!(text.contains("no socket") && text.contains(&*path.to_string_lossy()), "{text}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn each_refusal_says_what_to_do() {
    let dir = Dir::new("refused");
    let path = dir.0.join("a.sock");
    let missing = dir.0.join("missing/a.sock");
    let long = dir.0.join("x".repeat(120));
    let nobody = UnixOptions::default().with_user(UnixOwner::Name("nobody-of-this-name".to_owned()));
    let no_group = UnixOptions::default().with_group(UnixOwner::Name("no-such-group".to_owned()));
    for (text, parts) in [
        (told(&missing, UnixOptions::default()), ["there is no directory", "RuntimeDirectory="]),
        (told(&long, UnixOptions::default()), ["107 on Linux", "shorten it"]),
        (told(&path, nobody), ["/etc/passwd has no user `nobody-of-this-name`", "a number"]),
        (told(&path, no_group), ["/etc/group has no group", "a number"]),
    ] {
        for part in parts {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    }
    assert!(!path.exists(), "what was made half is gone");
    // by name
    let root = UnixOptions::default().with_user(UnixOwner::Name("root".to_owned()));
    if fs::metadata("/proc/self").unwrap().uid() == 0 {
        assert!(bind(&path, root).is_ok());
    } else {
        assert!(bind(&path, root).unwrap_err().is_denied());
    }
}

#[cfg(target_os = "linux")]
#[test]
fn abstract_names() {
    let name = UnixName::Abstract(format!("portcullis-test-{}", std::process::id()).into_bytes());
    let plan = || BindPlan::new().unix(name.clone(), UnixOptions::default()).bind(NonZeroUsize::MIN);
    let bound = plan().unwrap();
    let error = plan().unwrap_err();
    assert!(error.is_in_use() && error.to_string().contains("already in use"), "{error}");
    let address = <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(
        match &name {
            UnixName::Abstract(name) => name,
            _ => unreachable!(),
        },
    );
    let _client = UnixStream::connect_addr(&address.unwrap()).unwrap();
    assert!(bound[0].unix[0].accept().is_ok() && bound[0].unix_file.is_none());
}
