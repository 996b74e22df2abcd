//! Options of unix sockets.

/// How a listening unix socket is set up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnixOptions {
    /// Connections that wait to be accepted. Default `None`: 1024; the kernel caps it at `net.core.somaxconn`.
    pub backlog: Option<u32>,
    /// The permission bits of the socket's file, at most 0o777: who may write to it may connect. Default `None`: what the
    /// umask of the process leaves. Without meaning for abstract names, which everybody of the network namespace may
    /// connect to.
    pub mode: Option<u32>,
    /// The user that owns the file. Default `None`: that of the process. Giving a file away takes root.
    pub user: Option<UnixOwner>,
    /// The group that owns the file. Default `None`: that of the process. To one of the user's own groups it may be
    /// given without root.
    pub group: Option<UnixOwner>,
}

/// A user or a group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum UnixOwner {
    /// By number.
    Id(u32),
    /// By a name of `/etc/passwd` or `/etc/group`.
    Name(String),
}

impl UnixOptions {
    /// Sets [`UnixOptions::backlog`].
    #[must_use]
    pub fn with_backlog(mut self, backlog: u32) -> Self {
        self.backlog = Some(backlog);
        self
    }

    /// Sets [`UnixOptions::mode`].
    #[must_use]
    pub fn with_mode(mut self, mode: u32) -> Self {
        self.mode = Some(mode);
        self
    }

    /// Sets [`UnixOptions::user`].
    #[must_use]
    pub fn with_user(mut self, user: UnixOwner) -> Self {
        self.user = Some(user);
        self
    }

    /// Sets [`UnixOptions::group`].
    #[must_use]
    pub fn with_group(mut self, group: UnixOwner) -> Self {
        self.group = Some(group);
        self
    }
}
