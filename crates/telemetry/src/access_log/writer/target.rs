//! Where lines end up.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

pub(super) enum Target {
    File {
        path: PathBuf,
        file: File,
    },
    Stream(Box<dyn Write + Send>),
    #[cfg(unix)]
    Syslog(Syslog),
}

/// What of a batch was not written.
pub(super) struct Lost {
    pub(super) lines: u64,
    pub(super) error: io::Error,
}

impl Target {
    pub(super) fn file(path: PathBuf) -> io::Result<Self> {
        let file = open(&path)?;
        Ok(Self::File { path, file })
    }

    pub(super) fn write(&mut self, lines: &[u8]) -> Result<(), Lost> {
        let written = match self {
            Self::File { file, .. } => file.write_all(lines),
            Self::Stream(stream) => stream.write_all(lines).and_then(|()| stream.flush()),
            #[cfg(unix)]
            Self::Syslog(syslog) => return syslog.write(lines),
        };
        written.map_err(|error| {
            let lines = lines.iter().filter(|byte| **byte == b'\n').count();
            Lost { lines: lines as u64, error }
        })
    }

    pub(super) fn reopen(&mut self) {
        match self {
            Self::File { path, file } => match open(path) {
                Ok(new) => *file = new,
                Err(error) => {
                    tracing::warn!(?path, %error, "cannot reopen the access log; the old file is kept");
                }
            },
            Self::Stream(_) => {}
            #[cfg(unix)]
            Self::Syslog(syslog) => syslog.socket = None,
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// The socket of a syslog daemon: a datagram for each line, in the form that RFC 3164 describes and local daemons expect, without a host name.
#[cfg(unix)]
pub(super) struct Syslog {
    path: PathBuf,
    /// Connected as it is needed: a daemon that was started anew has another socket.
    socket: Option<std::os::unix::net::UnixDatagram>,
    datagram: Vec<u8>,
}

#[cfg(unix)]
impl Syslog {
    /// Facility `local7`, severity `info`, as other web servers choose (RFC 5424 section 6.2.1).
    const PRIORITY: u32 = 23 * 8 + 6;

    pub(super) fn connect(path: PathBuf) -> io::Result<Self> {
        let socket = Some(Self::socket(&path)?);
        Ok(Self { path, socket, datagram: Vec::new() })
    }

    fn socket(path: &Path) -> io::Result<std::os::unix::net::UnixDatagram> {
        let socket = std::os::unix::net::UnixDatagram::unbound()?;
        socket.connect(path)?;
        Ok(socket)
    }

    fn write(&mut self, lines: &[u8]) -> Result<(), Lost> {
        let mut lost: Option<Lost> = None;
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            self.datagram.clear();
            let _ = write!(self.datagram, "<{}>", Self::PRIORITY);
            super::super::time::push_syslog(&mut self.datagram, std::time::SystemTime::now());
            let _ = write!(self.datagram, " portcullis[{}]: ", std::process::id());
            self.datagram.extend_from_slice(line);
            if let Err(error) = self.send() {
                let lines = lost.map_or(0, |lost| lost.lines) + 1;
                lost = Some(Lost { lines, error });
            }
        }
        lost.map_or(Ok(()), Err)
    }

    /// Once more on a new socket where the old one is nobody's.
    fn send(&mut self) -> io::Result<()> {
        if let Some(socket) = &self.socket
            && socket.send(&self.datagram).is_ok()
        {
            return Ok(());
        }
        self.socket = None;
        let socket = Self::socket(&self.path)?;
        socket.send(&self.datagram)?;
        self.socket = Some(socket);
        Ok(())
    }
}
