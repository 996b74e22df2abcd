//! Traces of chosen clients' QUIC connections, in files of a directory, within bounds.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::SystemTime,
};

use ipnet::IpNet;
use portcullis_h3::{TraceWriter, Traces};
use tracing::{info, warn};

/// Traces of QUIC connections (qlog). They hold addresses of clients and connection ids, and no content.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QlogPlan {
    /// Where the files are; it must be there. Each is called by the time, in milliseconds since 1970, and the first connection id that the client used, and ends
    /// in `.sqlog`. They are for the owner only.
    pub directory: PathBuf,
    /// Whose connections are traced. The address is the one that a client claims: who claims one of these uses up the bounds.
    pub clients: Vec<IpNet>,
    /// Files in the directory, those of before among them. Default 100.
    pub max_files: u64,
    /// Bytes of a file, and the record that crosses it. Default 16 MiB.
    pub max_file_size: u64,
    /// Bytes of all files, those of before among them. Default 256 MiB.
    pub max_total_size: u64,
}

impl QlogPlan {
    /// Traces of these clients in this directory.
    pub fn new(directory: impl Into<PathBuf>, clients: impl IntoIterator<Item = IpNet>) -> Self {
        Self {
            directory: directory.into(),
            clients: clients.into_iter().collect(),
            max_files: 100,
            max_file_size: 16 << 20,
            max_total_size: 256 << 20,
        }
    }

    /// Looks at what is there already.
    pub(crate) fn load(&self) -> io::Result<Traces> {
        let (files, bytes) = existing(&self.directory)?;
        info!(directory = %self.directory.display(), files, bytes, "QUIC connections of chosen clients are traced");
        let bounds = Arc::new(Bounds {
            plan: self.clone(),
            files: AtomicU64::new(files),
            bytes: AtomicU64::new(bytes),
            told: AtomicBool::new(false),
        });
        Ok(Traces::new(move |client, id| Bounds::open(&bounds, client, id)))
    }
}

/// How many traces there are, and their bytes.
fn existing(directory: &Path) -> io::Result<(u64, u64)> {
    let (mut files, mut bytes) = (0, 0);
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|extension| extension == "sqlog") {
            files += 1;
            bytes += entry.metadata()?.len();
        }
    }
    Ok((files, bytes))
}

/// What all files share.
struct Bounds {
    plan: QlogPlan,
    files: AtomicU64,
    bytes: AtomicU64,
    told: AtomicBool,
}

impl Bounds {
    fn open(self: &Arc<Self>, client: IpAddr, id: &[u8]) -> Option<TraceWriter> {
        let chosen = self.plan.clients.iter().any(|network| network.contains(&client));
        if !chosen || self.full() {
            return None;
        }
        let (max, count) = (self.plan.max_files, &self.files);
        let one_more = |files| (files < max).then_some(files + 1);
        if count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_err() {
            self.tell("max_files");
            return None;
        }
        match self.file(id) {
            Ok(file) => {
                let file = BufWriter::with_capacity(32 << 10, file);
                Some(Box::new(Trace { file, bounds: self.clone(), written: 0, over: false }))
            }
            Err(error) => {
                count.fetch_sub(1, Ordering::Relaxed);
                if !self.told.swap(true, Ordering::Relaxed) {
                    warn!(%error, directory = %self.plan.directory.display(), "a trace could not be begun");
                }
                None
            }
        }
    }

    fn file(&self, id: &[u8]) -> io::Result<File> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        options.open(self.plan.directory.join(format!("{now}-{id}.sqlog")))
    }

    fn full(&self) -> bool {
        let full = self.bytes.load(Ordering::Relaxed) >= self.plan.max_total_size;
        if full {
            self.tell("max_total_size");
        }
        full
    }

    /// One warning is enough.
    fn tell(&self, bound: &str) {
        if !self.told.swap(true, Ordering::Relaxed) {
            let directory = self.plan.directory.display();
            warn!(%directory, bound, "traces of QUIC connections have reached their bound: remove old files and start anew for more");
        }
    }
}

/// One file. A record that was begun is written whole, so that what is there can be read.
struct Trace {
    file: BufWriter<File>,
    bounds: Arc<Bounds>,
    written: u64,
    over: bool,
}

/// What every record of a JSON text sequence begins with (RFC 7464 section 2.1).
const RECORD: u8 = 0x1e;

impl Write for Trace {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.first() == Some(&RECORD) && !self.over {
            if self.written >= self.bounds.plan.max_file_size {
                self.bounds.tell("max_file_size");
                self.over = true;
            }
            self.over |= self.bounds.full();
        }
        if !self.over {
            // a disk that is full is a bound too
            if let Err(error) = self.file.write_all(bytes) {
                self.over = true;
                if !self.bounds.told.swap(true, Ordering::Relaxed) {
                    warn!(%error, "a trace of a QUIC connection could not be written");
                }
            }
            self.written += bytes.len() as u64;
            self.bounds.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        Ok(bytes.len())
    }

    /// After each record; what is small is kept together all the same.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new() -> Self {
            static NEXT: AtomicUsize = AtomicUsize::new(0);
            let name =
                format!("portcullis-qlog-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn sizes(&self) -> Vec<u64> {
            let mut sizes: Vec<_> = fs::read_dir(&self.0)
                .unwrap()
                .map(|entry| entry.unwrap().metadata().unwrap().len())
                .collect();
            sizes.sort_unstable();
            sizes
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn bounds(dir: &Dir, change: impl FnOnce(&mut QlogPlan)) -> Arc<Bounds> {
        let mut plan = QlogPlan::new(&dir.0, ["10.0.0.0/8".parse().unwrap()]);
        change(&mut plan);
        let (files, bytes) = existing(&dir.0).unwrap();
        let (files, bytes) = (AtomicU64::new(files), AtomicU64::new(bytes));
        Arc::new(Bounds { plan, files, bytes, told: AtomicBool::new(false) })
    }

    fn record(to: &mut TraceWriter, length: usize) {
        to.write_all(&[RECORD]).unwrap();
        to.write_all(&vec![b'x'; length - 1]).unwrap();
    }

    fn chosen() -> IpAddr {
        "10.1.2.3".parse().unwrap()
    }

    #[test]
    fn only_chosen_clients_have_files() {
        let dir = Dir::new();
        let bounds = bounds(&dir, |_| {});
        assert!(bounds.open("192.0.2.1".parse().unwrap(), &[1]).is_none());
        drop(bounds.open(chosen(), &[0xab, 1]).unwrap());
        let name = fs::read_dir(&dir.0).unwrap().next().unwrap().unwrap().file_name();
        assert!(name.to_str().unwrap().ends_with("-ab01.sqlog"), "{name:?}");
    }

    #[test]
    fn files_have_a_number_and_a_size() {
        let dir = Dir::new();
        fs::write(dir.0.join("1-aa.sqlog"), "before").unwrap();
        fs::write(dir.0.join("other.txt"), "").unwrap();
        let bounds = bounds(&dir, |plan| (plan.max_files, plan.max_file_size) = (2, 1000));
        let mut trace = bounds.open(chosen(), &[1]).unwrap();
        assert!(bounds.open(chosen(), &[2]).is_none(), "one was there before");
        for _ in 0..5 {
            record(&mut trace, 400);
        }
        drop(trace);
        // the one that crosses the bound is whole
        assert_eq!(dir.sizes(), [0, 6, 1200]);
        assert!(bounds.told.load(Ordering::Relaxed));
    }

    #[test]
    fn all_files_have_a_size_together() {
        let dir = Dir::new();
        let bounds = bounds(&dir, |plan| plan.max_total_size = 1000);
        let [mut one, mut two] = [1, 2].map(|id| bounds.open(chosen(), &[id]).unwrap());
        for _ in 0..5 {
            record(&mut one, 300);
            record(&mut two, 300);
        }
        assert!(bounds.open(chosen(), &[3]).is_none());
        drop((one, two));
        assert_eq!(dir.sizes(), [600, 600]);
    }
}
