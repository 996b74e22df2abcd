//! Sockets from systemd and from another process, with real ones.
#![cfg(target_os = "linux")]
#![allow(clippy::await_holding_lock, reason = "each test is the only task of its runtime")]

use std::{
    io::{Read, Write},
    net::TcpListener,
    os::{fd::OwnedFd, unix::net::UnixStream as StdUnixStream},
    process::{Command, Stdio},
    time::Duration,
};

use portcullis_listener::{
    AcceptOptions, Incoming, InheritError, InheritedKind, InheritedSocket, Limits, SystemdEnv, TcpOptions,
    open_descriptors, receive_sockets, send_sockets, systemd_sockets,
};
use tokio::{io::AsyncWriteExt, net::UnixStream};

/// One test counts the descriptors of the process: the others stand still meanwhile.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

const SOON: Duration = Duration::from_secs(10);

/// The process that systemd would start.
#[tokio::test]
#[ignore = "the child of the other test"]
async fn activated() {
    #[allow(clippy::disallowed_methods, reason = "here the test is the binary")]
    let [pid, fds, names] =
        ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"].map(|name| std::env::var(name).unwrap());
    let env = SystemdEnv { listen_pid: Some(&pid), listen_fds: Some(&fds), listen_fdnames: Some(&names) };
    let mut sockets = systemd_sockets(env).unwrap();
    assert_eq!(sockets.iter().map(|socket| &*socket.name).collect::<Vec<_>>(), ["http"]);
    assert!(matches!(systemd_sockets(env), Err(InheritError::Taken)));
    let InheritedKind::Tcp(listener) = sockets.remove(0).socket else { panic!("it is TCP") };
    let tcp = TcpOptions::default();
    let mut incoming = Incoming::from_std(listener, Limits::new(10), AcceptOptions::default(), &tcp).unwrap();
    use futures_core::Stream;
    let next = std::future::poll_fn(|cx| std::pin::Pin::new(&mut incoming).poll_next(cx));
    let mut conn = tokio::time::timeout(SOON, next).await.unwrap().unwrap();
    conn.io.write_all(b"from the child").await.unwrap();
}

#[test]
fn a_connection_made_before_the_process_began_is_served_by_it() {
    let _alone = alone();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut client = std::net::TcpStream::connect_timeout(&address, SOON).unwrap();
    let mut child = Command::new("sh")
        .args(["-c", "exec 3<&0 0</dev/null; LISTEN_PID=$$ exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "activated", "--nocapture"])
        .env("LISTEN_FDS", "1")
        .env("LISTEN_FDNAMES", "http")
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    client.set_read_timeout(Some(SOON)).unwrap();
    let mut text = String::new();
    let read = client.read_to_string(&mut text);
    assert!(child.wait().unwrap().success());
    read.unwrap();
    assert_eq!(text, "from the child");
}

#[allow(clippy::unwrap_used, reason = "of a test")]
fn named(name: &str) -> (InheritedSocket, std::net::SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (InheritedSocket::tcp(name, listener), address)
}

#[tokio::test]
async fn sockets_are_handed_over_with_their_queues() {
    let _alone = alone();
    let before = open_descriptors().unwrap();
    {
        let (mut old, mut new) = UnixStream::pair().unwrap();
        let (first, address) = named("http");
        let udp = std::net::UdpSocket::from(OwnedFd::from(
            socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::DGRAM, None).unwrap(),
        ));
        let dir = std::env::temp_dir().join(format!("portcullis-handover-{}.sock", std::process::id()));
        let unix = std::os::unix::net::UnixListener::bind(&dir).unwrap();
        let sockets = vec![first, InheritedSocket::udp("quic", udp), InheritedSocket::unix("", unix)];
        let mut waiting = std::net::TcpStream::connect_timeout(&address, SOON).unwrap();
        let (sent, received) =
            tokio::join!(send_sockets(&mut old, &sockets, SOON), receive_sockets(&mut new, SOON));
        sent.unwrap();
        drop((sockets, old));
        let received = received.unwrap();
        let names: Vec<_> = received.iter().map(|socket| &*socket.name).collect();
        assert_eq!(names, ["http", "quic", ""]);
        assert_eq!(received[0].to_string(), format!("http ({address})"));
        assert!(matches!(received[1].socket, InheritedKind::Udp(_)));
        assert_eq!(received[2].local_addr().to_string(), format!("unix:{}", dir.display()));
        std::fs::remove_file(dir).unwrap();

        // the one who made it is gone; who came meanwhile is served
        let InheritedKind::Tcp(listener) = &received[0].try_clone().unwrap().socket else { panic!() };
        listener.set_nonblocking(false).unwrap();
        listener.accept().unwrap().0.write_all(b"hello").unwrap();
        waiting.set_read_timeout(Some(SOON)).unwrap();
        let mut text = String::new();
        waiting.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }
    assert_eq!(open_descriptors().unwrap(), before, "nothing is left open");
}

#[tokio::test]
async fn what_is_no_hand_over_is_an_error_and_leaks_nothing() {
    let _alone = alone();
    let head = |count: u8, len: u32| {
        let mut head = b"PCSOCK\x01".to_vec();
        head.push(count);
        head.extend_from_slice(&len.to_be_bytes());
        head
    };
    for (sent, part) in [
        (b"GET / HTTP/1.1\r\n".to_vec(), "does not begin as it should"),
        (b"PCSOCK\x02\x01\0\0\0\0".to_vec(), "another version"),
        (head(1, 0), "as many descriptors"),
        (head(0, 0), "as many descriptors"),
        (b"short".to_vec(), "handed over"),
    ] {
        let (mut old, mut new) = UnixStream::pair().unwrap();
        old.write_all(&sent).await.unwrap();
        let error = receive_sockets(&mut new, SOON).await.unwrap_err();
        assert!(error.to_string().contains(part), "{part} is missing in {error}");
    }
    let (mut old, mut new) = UnixStream::pair().unwrap();
    let error = receive_sockets(&mut new, Duration::from_millis(20)).await.unwrap_err();
    assert!(error.is_timeout(), "{error}");
    // one that never answers
    let (socket, _) = named("http");
    let error = send_sockets(&mut old, &[socket], Duration::from_millis(20)).await.unwrap_err();
    assert!(error.is_timeout(), "{error}");
    assert!(matches!(send_sockets(&mut old, &[], SOON).await, Err(InheritError::TooMany)));
    let (long, _) = named(&"x".repeat(256));
    assert!(matches!(send_sockets(&mut old, &[long], SOON).await, Err(InheritError::TooMany)));
}

#[test]
fn what_can_not_be_listened_on_is_told() {
    let _alone = alone();
    let (stream, _other) = StdUnixStream::pair().unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    let quiet = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let datagram = std::os::unix::net::UnixDatagram::unbound().unwrap();
    for (fd, what) in [
        (OwnedFd::from(file), "it is no socket"),
        (stream.into(), "a unix socket that does not listen"),
        (quiet.into(), "a TCP socket that does not listen"),
        (datagram.into(), "it is a socket of"),
    ] {
        let error = InheritedSocket::from_fd("web", fd).unwrap_err().to_string();
        assert!(error.contains("(\"web\") can't be listened on") && error.contains(what), "{error}");
    }
}
