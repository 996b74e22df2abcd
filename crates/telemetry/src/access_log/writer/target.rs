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
        /// Whether what was written last is a part of a line.
        torn: bool,
    },
    Stream {
        stream: Box<dyn Write + Send>,
        torn: bool,
    },
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
        Ok(Self::File { path, file, torn: false })
    }

    pub(super) fn stream(stream: impl Write + Send + 'static) -> Self {
        Self::Stream { stream: Box::new(stream), torn: false }
    }

    pub(super) fn write(&mut self, lines: &[u8]) -> Result<(), Lost> {
        match self {
            Self::File { file, torn, .. } => write_lines(file, lines, torn),
            Self::Stream { stream, torn } => {
                write_lines(stream, lines, torn)?;
                // what it took and can't pass on now it has still
                stream.flush().map_err(|error| Lost { lines: 0, error })
            }
            #[cfg(unix)]
            Self::Syslog(syslog) => syslog.write(lines),
        }
    }

    pub(super) fn reopen(&mut self) {
        match self {
            Self::File { path, file, torn } => match open(path) {
                Ok(new) => {
                    // in an empty file there is nothing to be kept apart from
                    *torn &= new.metadata().is_ok_and(|metadata| metadata.len() > 0);
                    *file = new;
                }
                Err(error) => {
                    tracing::warn!(?path, %error, "cannot reopen the access log; the old file is kept");
                }
            },
            Self::Stream { .. } => {}
            #[cfg(unix)]
            Self::Syslog(syslog) => syslog.socket = None,
        }
    }
}

/// Writes as much as can be written. A disk may have been full in the middle of a line: `torn` tells it to whoever comes next, who ends the line
/// before he writes his own. A line is lost unless all of it is there.
fn write_lines(to: &mut impl Write, lines: &[u8], torn: &mut bool) -> Result<(), Lost> {
    let mut at = 0;
    let error = loop {
        let rest: &[u8] = if *torn { b"\n" } else { &lines[at..] };
        if rest.is_empty() {
            return Ok(());
        }
        match to.write(rest) {
            Ok(0) => break io::ErrorKind::WriteZero.into(),
            Ok(_) if *torn => *torn = false,
            Ok(len) => at += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break error,
        }
    };
    let rest = &lines[at..];
    *torn |= at > 0 && lines[at - 1] != b'\n';
    // one that lacks nothing but its end will have it
    let whole = *torn && at > 0 && rest.first() == Some(&b'\n');
    let lost = rest.iter().filter(|byte| **byte == b'\n').count() - usize::from(whole);
    Err(Lost { lines: lost as u64, error })
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// A disk that is full once, after so many bytes.
    struct Full(Arc<Mutex<Vec<u8>>>, Option<usize>);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let len = match &mut self.1 {
                None => bytes.len(),
                Some(0) => {
                    self.1 = None;
                    return Err(io::ErrorKind::StorageFull.into());
                }
                Some(room) => {
                    let len = bytes.len().min(*room);
                    *room -= len;
                    len
                }
            };
            self.0.lock().unwrap().extend_from_slice(&bytes[..len]);
            Ok(len)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn each_line_is_whole_or_counted() {
        let batches = ["one\ntwo\nthree\n", "four\n", "five\nsix\n", "seven\n"];
        let all = batches.concat();
        for room in 0..all.len() - batches[3].len() {
            let written = Arc::new(Mutex::new(Vec::new()));
            let mut target = Target::stream(Full(Arc::clone(&written), Some(room)));
            let lost: u64 = batches
                .iter()
                .map(|batch| target.write(batch.as_bytes()).err().map_or(0, |lost| lost.lines))
                .sum();
            let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
            let (whole, parts): (Vec<_>, Vec<_>) =
                text.lines().partition(|line| all.lines().any(|known| known == *line));
            assert_eq!(whole.len() as u64 + lost, 7, "{room}: {text}");
            assert!(parts.len() <= 1 && text.ends_with("seven\n"), "{room}: {text}");
            assert!(
                parts.iter().all(|part| all.lines().any(|line| line.starts_with(part))),
                "{room}: {text}"
            );
        }
    }
}
