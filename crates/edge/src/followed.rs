//! Files whose content is used while the edge runs, and followed: lists of networks, a database of countries, users, keys.

use std::{
    fs::{self, File},
    hash::{DefaultHasher, Hash, Hasher},
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use parking_lot::Mutex;
use portcullis_middleware::{
    basic_auth::{UserStore, Users},
    filter::{CidrSet, ClientSet, Countries, CountryDatabase},
    jwt::{KeySet, Keys},
};
use portcullis_tls::{ReloadOptions, Watch};
use tracing::{info, warn};

use crate::BoxError;

/// What is made of a file. Whoever uses it has a clone.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    Clients(ClientSet),
    Countries(Countries),
    Users(UserStore),
    Secret(KeySet),
    Pem(KeySet),
    KeySet(KeySet),
}

impl Content {
    /// The most of a file that is read.
    fn limit(&self) -> u64 {
        match self {
            Self::Clients(_) => 64 << 20,
            Self::Countries(_) => 1 << 30,
            Self::Users(_) => 32 << 20,
            Self::Secret(_) | Self::Pem(_) | Self::KeySet(_) => 1 << 20,
        }
    }

    /// Puts what the bytes say in the place of what was there. Changes nothing if they say nothing.
    fn replace(&self, bytes: Vec<u8>) -> Result<(), BoxError> {
        match self {
            Self::Clients(set) => set.replace(CidrSet::parse(str::from_utf8(&bytes)?)?),
            Self::Countries(countries) => countries.replace(CountryDatabase::parse(bytes)?),
            Self::Users(users) => users.replace(Users::parse(str::from_utf8(&bytes)?)?),
            Self::Secret(keys) => {
                let secret = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
                keys.replace(Keys::from_secret(secret.strip_suffix(b"\r").unwrap_or(secret))?);
            }
            Self::Pem(keys) => keys.replace(Keys::from_pem(&bytes)?),
            Self::KeySet(keys) => keys.replace(Keys::from_jwks(str::from_utf8(&bytes)?)?),
        }
        Ok(())
    }
}

/// A file, and what was made of it.
#[derive(Debug)]
pub(crate) struct Followed {
    pub(crate) path: PathBuf,
    pub(crate) content: Content,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Time, size and inode, behind links.
    stamp: Option<(SystemTime, u64, u64)>,
    /// Of the content that is in use.
    hash: Option<u64>,
    /// What is wrong with the file, as it was told.
    told: Option<String>,
}

impl Followed {
    /// Reads it for the first time. Blocks.
    pub(crate) fn open(path: &Path, content: Content) -> Result<Arc<Self>, BoxError> {
        let followed = Self { path: path.to_owned(), content, seen: Mutex::default() };
        followed.read(&mut followed.seen.lock())?;
        Ok(Arc::new(followed))
    }

    /// Whether the content is another one now.
    fn read(&self, seen: &mut Seen) -> Result<bool, BoxError> {
        // before the content, so that a change in between is seen as one; what could not be read is read again, as nothing of it need change for that
        let stamp = stamp(&self.path);
        seen.stamp = None;
        let limit = self.content.limit();
        let mut bytes = Vec::new();
        File::open(&self.path)?.take(limit + 1).read_to_end(&mut bytes)?;
        seen.stamp = stamp;
        if bytes.len() as u64 > limit {
            return Err(format!("it is longer than {} MiB", limit >> 20).into());
        }
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        let hash = Some(hasher.finish());
        if seen.hash == hash {
            return Ok(false);
        }
        self.content.replace(bytes)?;
        seen.hash = hash;
        Ok(true)
    }

    /// Looks whether it changed, and takes what there is, or tells why not; what is wrong is told once. Blocks.
    pub(crate) fn look(&self) {
        let mut seen = self.seen.lock();
        let now = stamp(&self.path);
        if now.is_some() && seen.stamp == now {
            return;
        }
        let file = self.path.display();
        match self.read(&mut seen) {
            Ok(changed) => {
                seen.told = None;
                if changed {
                    info!(%file, "a file was read again");
                }
            }
            Err(error) => {
                let error = error.to_string();
                if seen.told.as_ref() != Some(&error) {
                    warn!(%file, error, "a file can't be used: what was read before stays");
                    seen.told = Some(error);
                }
            }
        }
    }
}

fn stamp(path: &Path) -> Option<(SystemTime, u64, u64)> {
    let about = fs::metadata(path).ok()?;
    #[cfg(unix)]
    let inode = std::os::unix::fs::MetadataExt::ino(&about);
    #[cfg(not(unix))]
    let inode = 0;
    Some((about.modified().ok()?, about.len(), inode))
}

/// Follows files for ever.
pub(crate) async fn follow(mut files: Vec<Arc<Followed>>, options: ReloadOptions) {
    let mut watch = Watch::new(&options);
    loop {
        // watched first and looked at then, so that nothing falls in between
        let looked = tokio::task::spawn_blocking(move || {
            let directories = files.iter().filter_map(|file| file.path.parent());
            watch.follow(directories.map(Path::to_owned).collect());
            files.iter().for_each(|file| file.look());
            (files, watch)
        });
        match looked.await {
            Ok(parts) => (files, watch) = parts,
            Err(error) => {
                warn!(%error, "files are no longer followed");
                return;
            }
        }
        watch.changed().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_not_be_used_changes_nothing() {
        let directory = std::env::temp_dir().join(format!("followed-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("clients");
        let inside = |set: &ClientSet, ip: &str| set.contains(ip.parse().unwrap());
        let set = ClientSet::default();
        assert!(Followed::open(&path, Content::Clients(set.clone())).is_err());
        fs::write(&path, "10.0.0.0/8\n").unwrap();
        let followed = Followed::open(&path, Content::Clients(set.clone())).unwrap();
        assert!(inside(&set, "10.1.1.1"));
        fs::write(&path, "10.0.0.0/8\nnonsense and more\n").unwrap();
        followed.look();
        assert!(inside(&set, "10.1.1.1"));
        assert_eq!(followed.seen.lock().told.as_deref(), Some("line 2: `nonsense and more` is no network"));
        fs::remove_file(&path).unwrap();
        followed.look();
        assert!(inside(&set, "10.1.1.1"));
        fs::write(&path, "192.0.2.0/24 # another\n").unwrap();
        followed.look();
        assert!(inside(&set, "192.0.2.1") && !inside(&set, "10.1.1.1"));
        assert_eq!(followed.seen.lock().told, None);
        fs::remove_dir_all(&directory).unwrap();
    }
}
