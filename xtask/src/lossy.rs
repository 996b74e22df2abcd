//! `lossy`: downloads over HTTP/3 through a path that is long and loses packets, by congestion controller.
//!
//! The path is a relay of our own between two UDP sockets, so it takes neither root nor a kernel with netem. Its losses are the same in
//! every run.

use std::{
    ffi::OsString,
    fs,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use comfy_table::{Table, presets};
use lexopt::prelude::*;

use crate::{
    Result,
    loadtest::child::{Running, free_port},
    metadata, sh, sys,
};

const HELP: &str = "\
cargo xtask lossy: downloads over HTTP/3 through a path that is long and loses packets

  --controllers C,...  congestion controllers (default cubic,newreno,bbr)
  --loss PERCENT,...   of the packets, each way (default 0,1)
  --delay MS           each way (default 50: a round trip of 100 ms)
  --mib N              length of the download (default 10)
  --send-window SIZE   the listener's (default 16MiB)
  --qlog DIR           keep a trace of each connection there (qvis reads them)
  --profile P          cargo profile to build with (default release)
";
/// Packets on their way, each way; past it they are lost, as at a router.
const QUEUE: usize = 16 * 1024;
const START: Duration = Duration::from_secs(15);
const PATIENCE: Duration = Duration::from_secs(300);

struct Options {
    controllers: Vec<String>,
    loss: Vec<f64>,
    delay: Duration,
    mib: u64,
    send_window: String,
    qlog: Option<PathBuf>,
    profile: String,
}

fn parse(args: &[OsString]) -> Result<Option<Options>> {
    let mut options = Options {
        controllers: ["cubic", "newreno", "bbr"].map(str::to_owned).to_vec(),
        loss: vec![0.0, 1.0],
        delay: Duration::from_millis(50),
        mib: 10,
        send_window: "16MiB".to_owned(),
        qlog: None,
        profile: "release".to_owned(),
    };
    let mut args = lexopt::Parser::from_args(args);
    while let Some(arg) = args.next()? {
        match arg {
            Long("controllers") => {
                options.controllers = args.value()?.string()?.split(',').map(str::to_owned).collect();
            }
            Long("loss") => {
                let loss: std::result::Result<_, _> =
                    args.value()?.string()?.split(',').map(str::parse).collect();
                options.loss = loss?;
            }
            Long("delay") => options.delay = Duration::from_millis(args.value()?.parse()?),
            Long("mib") => options.mib = args.value()?.parse()?,
            Long("send-window") => options.send_window = args.value()?.string()?,
            Long("qlog") => options.qlog = Some(PathBuf::from(args.value()?)),
            Long("profile") => options.profile = args.value()?.string()?,
            Short('h') | Long("help") => return Ok(None),
            _ => return Err(arg.unexpected().into()),
        }
    }
    Ok(Some(options))
}

/// Measures and prints.
pub(crate) fn run(args: &[OsString]) -> Result<()> {
    let Some(options) = parse(args)? else {
        print!("{HELP}");
        return Ok(());
    };
    sys::note_interrupts();
    let mut cargo = sh::cargo();
    cargo.args(["build", "--profile", &options.profile, "--package", "portcullis"]);
    sh::run(cargo.args(["--package", "portcullis-origin", "--package", "portcullis-loadgen"]))?;
    let folder = if options.profile == "dev" { "debug" } else { options.profile.as_str() };
    let programs = metadata::load()?.target_directory.join(folder);
    let scratch = std::env::temp_dir().join(format!("portcullis-lossy-{}", std::process::id()));
    fs::create_dir(&scratch)?;
    let rows = measure(&options, &programs, &scratch);
    // what stays behind is in the directory for such files
    let _ = fs::remove_dir_all(&scratch);
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header(["controller", "loss", "seconds", "Mbit/s"]);
    for (controller, loss, took) in rows? {
        let rate = (options.mib << 20) as f64 * 8.0 / 1e6 / took.as_secs_f64();
        table.add_row([
            controller,
            format!("{loss} %"),
            format!("{:.1}", took.as_secs_f64()),
            format!("{rate:.1}"),
        ]);
    }
    println!("{table}");
    println!(
        "{} MiB, {} ms each way, a send window of {}",
        options.mib,
        options.delay.as_millis(),
        options.send_window
    );
    Ok(())
}

fn measure(options: &Options, programs: &Path, dir: &Path) -> Result<Vec<(String, f64, Duration)>> {
    let mut command = Command::new(programs.join("portcullis-origin"));
    command.args(["--threads", "1"]);
    let mut origin = Running::start("the origin", command, &dir.join("origin.log"), true)?;
    let line = origin.line(START)?.unwrap_or_default();
    let address = line.strip_prefix("listening on http://").ok_or_else(|| origin.failed("says not where"))?;
    let mut rows = Vec::new();
    for controller in &options.controllers {
        for loss in &options.loss {
            let port = free_port()?;
            let mut config = config(port, controller, &options.send_window, address);
            if let Some(dir) = &options.qlog {
                config += &traces(&std::path::absolute(dir)?);
            }
            let path = dir.join("portcullis.toml");
            fs::write(&path, config)?;
            let mut command = Command::new(programs.join("portcullis"));
            command.args(["run", "--config"]).arg(&path);
            let edge = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let mut proxy = Running::start("the edge", command, &dir.join("edge.log"), false)?;
            proxy.wait_for(edge, START)?;
            let relay = Relay::start(edge, options.delay, *loss)?;
            let mut get = Command::new(programs.join("portcullis-loadgen"));
            get.args(["get", "--http3", "--insecure", "--count", "--timeout"]);
            get.arg(PATIENCE.as_secs().to_string());
            // that name may have another address too
            get.arg("--resolve").arg(format!("localhost:{}:127.0.0.1", relay.port));
            get.arg(format!("https://localhost:{}/bytes/{}", relay.port, options.mib << 20));
            let begin = Instant::now();
            let mut get = Running::start("the download", get, &dir.join("get.log"), true)?;
            let mut complete = false;
            while let Some(line) = get.line(PATIENCE)? {
                complete |= line == format!("{} bytes", options.mib << 20);
            }
            if !complete {
                return Err(get.failed(&format!("did not get all of it ({controller}, {loss} %)")));
            }
            rows.push((controller.clone(), *loss, begin.elapsed()));
        }
    }
    Ok(rows)
}

fn config(port: u16, controller: &str, send_window: &str, origin: &str) -> String {
    format!(
        "[access_log]\noutput = \"off\"\n\
         [[listener]]\naddress = \"127.0.0.1:{port}\"\nprotocol = \"https\"\n\
         [listener.quic]\ncongestion = \"{controller}\"\nsend_window = \"{send_window}\"\n\
         [[certificate]]\nself_signed = [\"localhost\"]\n\
         [[route]]\ncluster = \"origin\"\n\
         [[cluster]]\nname = \"origin\"\nendpoints = [\"{origin}\"]\n"
    )
}

fn traces(dir: &Path) -> String {
    let limits = "max_file_size = \"256MiB\"\nmax_total_size = \"2GiB\"\n";
    format!("[qlog]\ndirectory = {:?}\nclients = [\"127.0.0.1\"]\n{limits}", dir.display().to_string())
}

/// A path of one client: packets leave it later than they came, or never.
struct Relay {
    port: u16,
    ended: Arc<AtomicBool>,
}

impl Relay {
    #[allow(clippy::disallowed_methods, reason = "no runtime here")]
    fn start(edge: SocketAddr, delay: Duration, loss: f64) -> Result<Self> {
        let front = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let back = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        back.connect(edge)?;
        let port = front.local_addr()?.port();
        let (ended, client) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(None)));
        for to_edge in [true, false] {
            let (send, packets) = sync_channel(QUEUE);
            let (from, to) = if to_edge { (&front, &back) } else { (&back, &front) };
            from.set_read_timeout(Some(Duration::from_millis(100)))?;
            let (from, to) = (from.try_clone()?, to.try_clone()?);
            let (ended, sees, knows) = (ended.clone(), client.clone(), client.clone());
            let dice = Dice { state: 0x9e37_79b9_7f4a_7c15 ^ u64::from(to_edge), loss };
            thread::spawn(move || take(&from, &send, &ended, to_edge.then_some(&*sees), delay, dice));
            thread::spawn(move || give(&to, &packets, (!to_edge).then_some(&*knows)));
        }
        Ok(Self { port, ended })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

type Client = Mutex<Option<SocketAddr>>;
type Packet = (Instant, Vec<u8>);

/// Takes what comes until the end, and notes whom it comes from.
fn take(
    from: &UdpSocket,
    send: &SyncSender<Packet>,
    ended: &AtomicBool,
    client: Option<&Client>,
    delay: Duration,
    mut dice: Dice,
) {
    let mut buffer = [0; 2048];
    while !ended.load(Ordering::Relaxed) {
        let Ok((length, sender)) = from.recv_from(&mut buffer) else { continue };
        if let Some(client) = client {
            *client.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        }
        if !dice.loses() {
            // a full queue loses it too
            let _ = send.try_send((Instant::now() + delay, buffer[..length].to_vec()));
        }
    }
}

/// Gives each on when it is due; all wait equally long, so they stay in order.
#[allow(clippy::disallowed_methods, reason = "no runtime here")]
fn give(to: &UdpSocket, packets: &Receiver<Packet>, client: Option<&Client>) {
    for (due, packet) in packets {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let _ = match client.map(|client| *client.lock().unwrap_or_else(PoisonError::into_inner)) {
            None => to.send(&packet),
            Some(Some(client)) => to.send_to(&packet, client),
            Some(None) => continue,
        };
    }
}

/// Xorshift: the same losses in every run.
struct Dice {
    state: u64,
    /// Percent.
    loss: f64,
}

impl Dice {
    fn loses(&mut self) -> bool {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        ((self.state >> 11) as f64 / (1u64 << 53) as f64) * 100.0 < self.loss
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_are_lost_as_are_asked_for() {
        for (loss, least, most) in [(0.0, 0, 0), (1.0, 800, 1200), (100.0, 100_000, 100_000)] {
            let mut dice = Dice { state: 0x9e37_79b9_7f4a_7c15, loss };
            let lost = (0..100_000).filter(|_| dice.loses()).count();
            assert!((least..=most).contains(&lost), "{loss} %: {lost}");
        }
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "no runtime here")]
    fn packets_come_through_late_and_back() {
        let edge = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let relay = Relay::start(edge.local_addr().unwrap(), Duration::from_millis(30), 0.0).unwrap();
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        for socket in [&edge, &client] {
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        }
        let begin = Instant::now();
        client.send_to(b"there", (Ipv4Addr::LOCALHOST, relay.port)).unwrap();
        let mut buffer = [0; 16];
        let (length, from) = edge.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"there");
        edge.send_to(b"back", from).unwrap();
        let (length, _) = client.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"back");
        assert!(begin.elapsed() >= Duration::from_millis(60));
    }
}
