//! Unix sockets.

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use socket2::{Domain, SockAddr, Socket, Type};

use super::{BindError, Bound, holder};
use crate::socket::{UnixName, UnixOptions, UnixOwner};

const BACKLOG: u32 = 1024;

/// A unix socket's file; dropping it removes the file, if it still is the same one.
#[derive(Debug)]
pub struct UnixSocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
    kept: bool,
}

impl UnixSocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: identity(&fs::symlink_metadata(path)?), kept: false })
    }

    /// Of a socket that another process made and that is this one's now.
    ///
    /// # Errors
    /// There is nothing.
    pub fn adopt(path: &Path) -> io::Result<Self> {
        Self::new(path)
    }

    /// Leaves it where it is: another process has the socket.
    pub fn keep(mut self) {
        self.kept = true;
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for UnixSocketFile {
    fn drop(&mut self) {
        // whoever took the name meanwhile keeps it
        if !self.kept && fs::symlink_metadata(&self.path).is_ok_and(|found| identity(&found) == self.identity)
        {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// What is in the way, with the system's answer.
struct Refused(String, bool, io::Error);

impl Refused {
    fn because(why: impl Into<String>, error: io::Error) -> Self {
        Self(why.into(), false, error)
    }
}

pub(super) fn bind(name: &UnixName, options: &UnixOptions, group: usize) -> Result<Bound, BindError> {
    listen(name, options)
        .and_then(|(listener, unix_file)| {
            let mut bound = Bound::none(name.clone().into());
            bound.unix_file = unix_file;
            while bound.unix.len() + 1 < group {
                let duplicate = listener.try_clone();
                bound.unix.push(duplicate.map_err(|error| Refused::because(step("dup", &error), error))?);
            }
            bound.unix.push(listener);
            Ok(bound)
        })
        .map_err(|Refused(why, in_use, source)| BindError::Unix { name: name.clone(), why, in_use, source })
}

fn listen(name: &UnixName, options: &UnixOptions) -> Result<(UnixListener, Option<UnixSocketFile>), Refused> {
    let failed = |what| move |error: io::Error| Refused::because(step(what, &error), error);
    let (address, path) = match name {
        UnixName::Path(path) => {
            let address = SockAddr::unix(path).map_err(|error| too_long(path, error))?;
            replace_stale(path)?;
            (address, Some(path))
        }
        #[cfg(any(target_os = "linux", target_os = "android"))]
        UnixName::Abstract(name) => {
            let mut path = vec![0];
            path.extend_from_slice(name);
            let path = PathBuf::from(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(path));
            (SockAddr::unix(&path).map_err(|error| too_long(&path, error))?, None)
        }
        _ => {
            let error = io::Error::from(io::ErrorKind::Unsupported);
            return Err(Refused::because("name it by a path: this system has no such names", error));
        }
    };
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed("socket"))?;
    socket.set_nonblocking(true).map_err(failed("O_NONBLOCK"))?;
    socket.bind(&address).map_err(|error| bind_refused(path, error))?;
    // from here on the file is ours to remove; and nobody can connect before `listen`, whatever mode it has till then
    let file = path.map(|path| UnixSocketFile::new(path)).transpose().map_err(failed("stat"))?;
    if let Some(path) = path {
        own(path, options)?;
    }
    let backlog = options.backlog.unwrap_or(BACKLOG);
    socket.listen(backlog.try_into().unwrap_or(i32::MAX)).map_err(failed("listen"))?;
    Ok((socket.into(), file))
}

/// Removes what an earlier run left behind, and nothing else.
fn replace_stale(path: &Path) -> Result<(), Refused> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        // a directory that is not there, or not to be entered, is told by `bind`
        Err(_) => return Ok(()),
    };
    if !found.file_type().is_socket() {
        let why = "the path is taken by something that is no socket, which stays: remove it, or choose another path";
        return Err(Refused::because(why, io::ErrorKind::AlreadyExists.into()));
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None).and_then(|socket| {
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path)?)
    });
    match probe {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            // still the one that was probed
            if fs::symlink_metadata(path).is_ok_and(|now| identity(&now) == identity(&found)) {
                fs::remove_file(path).map_err(|error| {
                    Refused::because("an earlier run left its socket behind, which can't be removed", error)
                })?;
            }
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(Refused::because(
            "the socket that is there belongs to somebody else: run as its user or as root",
            error,
        )),
        // it took the connection, or its queue is full
        _ => {
            let who = holder::find_unix(path);
            let who =
                who.unwrap_or_else(|| "a process that is not visible: run as root to see it".to_owned());
            let why = format!("already in use: held by {who}; stop it, or choose another path");
            Err(Refused(why, true, io::ErrorKind::AddrInUse.into()))
        }
    }
}

/// Before `listen`, so that nobody connects who must not.
fn own(path: &Path, options: &UnixOptions) -> Result<(), Refused> {
    let user = options.user.as_ref().map(|user| id(user, "user", "/etc/passwd")).transpose()?;
    let group = options.group.as_ref().map(|group| id(group, "group", "/etc/group")).transpose()?;
    if user.is_some() || group.is_some() {
        std::os::unix::fs::chown(path, user, group).map_err(|error| {
            let why = "its owner can't be set: only root gives files away, and groups only to their members";
            Refused::because(why, error)
        })?;
    }
    if let Some(mode) = options.mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o777))
            .map_err(|error| Refused::because(step("chmod", &error), error))?;
    }
    Ok(())
}

/// Third field of the line that begins with the name (passwd(5), group(5)).
fn id(owner: &UnixOwner, what: &str, file: &str) -> Result<u32, Refused> {
    let name = match owner {
        UnixOwner::Id(id) => return Ok(*id),
        UnixOwner::Name(name) => name,
    };
    let text = fs::read_to_string(file).unwrap_or_default();
    let found = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    });
    found.ok_or_else(|| {
        let why = format!("{file} has no {what} `{name}`: use another name, or a number");
        Refused::because(why, io::ErrorKind::NotFound.into())
    })
}

fn too_long(path: &Path, error: io::Error) -> Refused {
    let why = format!(
        "its name has {} bytes, more than the system takes (107 on Linux): shorten it",
        path.as_os_str().len()
    );
    Refused::because(why, error)
}

fn bind_refused(path: Option<&PathBuf>, error: io::Error) -> Refused {
    let directory = path.and_then(|path| path.parent()).filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new(".")).display();
    let why = match error.kind() {
        io::ErrorKind::NotFound => {
            format!(
                "there is no directory {directory}: make it, or `RuntimeDirectory=` in a systemd unit does"
            )
        }
        io::ErrorKind::PermissionDenied => format!("no permission to write to the directory {directory}"),
        io::ErrorKind::AddrInUse => {
            "the name is already in use; stop who has it, or choose another".to_owned()
        }
        io::ErrorKind::ReadOnlyFilesystem => format!("the directory {directory} can only be read"),
        _ => step("bind", &error),
    };
    let in_use = error.kind() == io::ErrorKind::AddrInUse;
    Refused(why, in_use, error)
}

fn step(name: &str, error: &io::Error) -> String {
    let hint = crate::error_hint(error).map_or_else(String::new, |hint| format!("; {hint}"));
    format!("{name} failed{hint}")
}

#[cfg(test)]
mod tests;
