//! A redis-server of one test: on a unix socket in a directory of its own, without a port.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

pub(crate) struct Server {
    folder: PathBuf,
    process: Option<Child>,
}

impl Server {
    pub(crate) fn start() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("portcullis-redis-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder of one's own");
        let mut server = Self { folder, process: None };
        server.start_again();
        server
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    pub(crate) fn url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Ready when it answers.
    pub(crate) fn start_again(&mut self) {
        let mut command = Command::new("redis-server");
        command.current_dir(&self.folder).args([
            "--port",
            "0",
            "--save",
            "",
            "--appendonly",
            "no",
            "--unixsocket",
        ]);
        command.arg(self.socket()).stdout(Stdio::null());
        let process = command.spawn().expect("redis-server is installed: Debian's package has that name");
        self.process = Some(process);
        self.wait_for(|server| server.cli(&["ping"]).trim() == "PONG");
    }

    /// The server is gone, its connections with it.
    pub(crate) fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // also one that hangs
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    pub(crate) fn signal(&mut self, name: &str) {
        let process = self.process.as_ref().expect("it was started");
        let status = Command::new("kill").args(["-s", name, &process.id().to_string()]).status();
        assert!(status.expect("every system has kill").success());
    }

    /// What the server says to a command; nothing if it is not there.
    pub(crate) fn cli(&self, command: &[&str]) -> String {
        let output = Command::new("redis-cli").arg("-s").arg(self.socket()).args(command).output();
        String::from_utf8_lossy(&output.expect("redis-cli comes with redis-server").stdout).into_owned()
    }

    pub(crate) fn wait_for(&self, is_so: impl Fn(&Self) -> bool) {
        let begin = Instant::now();
        while !is_so(self) {
            assert!(begin.elapsed() < Duration::from_secs(10), "redis-server does not come to it");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
