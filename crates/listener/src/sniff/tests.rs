use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
};

use parking_lot::Mutex;
use portcullis_conn::{ConnInfo, Transport};
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;

const TABLE: &[(&[u8], FirstBytes)] = &[
    (b"\x16\x03\x01\x02\x00\x01", FirstBytes::Tls),
    (b"\x16", FirstBytes::Tls),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", FirstBytes::Http2Preface),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x12\x04", FirstBytes::Http2Preface),
    (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", FirstBytes::ProxyHeader),
    (b"PROXY UNKNOWN\r\n", FirstBytes::ProxyHeader),
    (b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c", FirstBytes::ProxyHeader),
    (b"GET / HTTP/1.1\r\n", FirstBytes::Http1),
    (b"POST / HTTP/1.1\r\n", FirstBytes::Http1),
    (b"PUT / HTTP/1.1\r\n", FirstBytes::Http1),
    (b"PROPFIND / HTTP/1.1\r\n", FirstBytes::Http1),
    (b"PROXYX / HTTP/1.1\r\n", FirstBytes::Http1),
    (b"PRI * HTTP/2.0\r\n\r\nSN", FirstBytes::Http1),
    (b"PRI / HTTP/1.1\r\n", FirstBytes::Http1),
    (b"\r\nGET / HTTP/1.1\r\n", FirstBytes::Http1),
    (b"\r\n\r\nGET / HTTP/1.1\r\n", FirstBytes::Http1),
    (b"!odd / HTTP/1.1\r\n", FirstBytes::Http1),
    (b"\r\n\r\n\r\n\r\n", FirstBytes::Unknown),
    (b"\r\n\r\n\x00\r\nQUIX\n", FirstBytes::Unknown),
    (b"\rGET", FirstBytes::Unknown),
    (b"\n\n", FirstBytes::Unknown),
    (b"\x00\x00\x00", FirstBytes::Unknown),
    (b"\x15\x03\x01", FirstBytes::Unknown),
    (b"\x80\x2e\x01\x03", FirstBytes::Unknown),
    (b" GET / HTTP/1.1\r\n", FirstBytes::Unknown),
];

#[test]
fn whole_openings() {
    for &(bytes, expected) in TABLE {
        assert_eq!(look(bytes), Look::Is(expected), "{}", bytes.escape_ascii());
    }
}

#[test]
fn byte_by_byte_ends_the_same() {
    for &(bytes, expected) in TABLE {
        let first = (0..=bytes.len()).map(|n| look(&bytes[..n])).find(|look| *look != Look::More);
        assert_eq!(first, Some(Look::Is(expected)), "{}", bytes.escape_ascii());
    }
}

#[test]
fn one_byte_is_enough_where_nothing_else_can_come_of_it() {
    for byte in 0..=u8::MAX {
        assert_eq!(look(&[byte]) == Look::More, matches!(byte, b'P' | b'\r'), "{byte}");
    }
}

proptest! {
    #[test]
    fn always_decided_by_the_longest_signature(bytes in proptest::collection::vec(any::<u8>(), LONGEST..=LONGEST)) {
        prop_assert_ne!(look(&bytes), Look::More);
    }

    #[test]
    fn more_bytes_never_change_a_decision(
        row in 0..TABLE.len(), cut in 0..40usize, tail in proptest::collection::vec(any::<u8>(), 0..30),
    ) {
        let head = &TABLE[row].0[..cut.min(TABLE[row].0.len())];
        let longer = [head, &tail].concat();
        if let Look::Is(found) = look(head) {
            prop_assert_eq!(look(&longer), Look::Is(found));
        }
    }
}

fn conn<Io>(io: Io) -> Conn<Io> {
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
    Conn::new(io, ConnInfo::new(Transport::Tcp, nowhere, nowhere))
}

/// Shows one more step at each look that asks for more; then waits for ever, or ends.
struct Steps {
    steps: Mutex<VecDeque<usize>>,
    bytes: &'static [u8],
    ends: bool,
    looks: AtomicUsize,
}

impl Peek for Steps {
    async fn peek(&self, buf: &mut [u8], seen: usize) -> io::Result<Peeked> {
        self.looks.fetch_add(1, Ordering::SeqCst);
        loop {
            let Some(len) = self.steps.lock().pop_front() else {
                if self.ends {
                    let len = self.bytes.len().min(buf.len());
                    buf[..len].copy_from_slice(&self.bytes[..len]);
                    return Ok(Peeked { len, ended: true });
                }
                std::future::pending().await
            };
            let len = len.min(buf.len());
            if len > seen {
                buf[..len].copy_from_slice(&self.bytes[..len]);
                return Ok(Peeked { len, ended: false });
            }
        }
    }
}

fn steps(bytes: &'static [u8], step: usize, ends: bool) -> Conn<Steps> {
    let steps = (1..=bytes.len()).filter(|n| n % step == 0 || *n == bytes.len()).collect();
    conn(Steps { steps: Mutex::new(steps), bytes, ends, looks: AtomicUsize::new(0) })
}

#[tokio::test(start_paused = true)]
async fn any_division_into_segments_ends_the_same() {
    for &(bytes, expected) in TABLE {
        for step in 1..=bytes.len() {
            let mut conn = steps(bytes, step, false);
            let found = sniff(&mut conn, Duration::from_secs(1)).await.unwrap();
            assert_eq!(
                (found, conn.info.first_bytes),
                (expected, Some(expected)),
                "{}",
                bytes.escape_ascii()
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn tls_pays_one_look() {
    let mut conn = steps(b"\x16\x03\x01", 1, false);
    sniff(&mut conn, Duration::from_secs(1)).await.unwrap();
    assert_eq!(conn.io.looks.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn too_little_runs_into_the_deadline() {
    for bytes in [b"".as_slice(), b"P", b"PRI * HTTP/2.0\r\n", b"\r\n"] {
        let before = tokio::time::Instant::now();
        let mut conn = steps(bytes, 1, false);
        let error = sniff(&mut conn, Duration::from_secs(3)).await.unwrap_err();
        assert!(error.is_timeout(), "{error}");
        assert_eq!(before.elapsed(), Duration::from_secs(3));
        assert_eq!(conn.info.first_bytes, None);
    }
}

#[tokio::test(start_paused = true)]
async fn an_early_end_is_told_by_what_came() {
    let end = async |bytes| sniff(&mut steps(bytes, 1, true), Duration::from_secs(3)).await;
    assert!(matches!(end(b"").await, Err(SniffError::Closed)));
    assert_eq!(end(b"PRO").await.unwrap(), FirstBytes::Http1);
    assert_eq!(end(b"\r\n").await.unwrap(), FirstBytes::Unknown);
}

async fn pair() -> (TcpStream, Conn<Permitted<TcpStream>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    client.set_nodelay(true).unwrap();
    let (server, _) = listener.accept().await.unwrap();
    (client, conn(Permitted::new(server, crate::Limits::new(1).try_acquire().unwrap())))
}

/// Waits until this many bytes lie in the socket.
async fn arrived(server: &Conn<Permitted<TcpStream>>, len: usize) {
    use std::os::fd::AsFd;
    while crate::sys::peek(server.io.as_fd(), &mut [0; 64]).ok() != Some(len) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn real_sockets_byte_by_byte_keep_every_byte() {
    for &(bytes, expected) in TABLE {
        let (mut client, mut server) = pair().await;
        let send = tokio::spawn(async move {
            for byte in bytes {
                client.write_all(&[*byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
            client
        });
        let found = sniff(&mut server, Duration::from_secs(10)).await.unwrap();
        assert_eq!(found, expected, "{}", bytes.escape_ascii());
        drop(send.await.unwrap());
        let mut all = Vec::new();
        server.io.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, bytes);
    }
}

#[tokio::test]
async fn waiting_with_bytes_in_the_socket_costs_nothing() {
    let (mut client, mut server) = pair().await;
    client.write_all(b"PR").await.unwrap();
    arrived(&server, 2).await;
    let polls = AtomicUsize::new(0);
    {
        let mut sniffing = std::pin::pin!(sniff(&mut server, Duration::from_secs(60)));
        let counted = std::future::poll_fn(|cx| {
            polls.fetch_add(1, Ordering::SeqCst);
            sniffing.as_mut().poll(cx)
        });
        // real time must pass here: the claim is that nothing happens meanwhile
        let quiet = tokio::time::timeout(Duration::from_millis(200), counted).await;
        assert!(quiet.is_err());
        let woken = polls.load(Ordering::SeqCst);
        assert!(woken <= 4, "polled {woken} times for nothing");
        client.write_all(b"OPFIND").await.unwrap();
        assert_eq!(sniffing.await.unwrap(), FirstBytes::Http1);
    }
    let mut all = [0; 8];
    server.io.read_exact(&mut all).await.unwrap();
    assert_eq!(&all, b"PROPFIND");
}

#[tokio::test]
async fn a_real_end_is_noticed_behind_bytes_that_were_seen() {
    let (mut client, mut server) = pair().await;
    client.write_all(b"PRI").await.unwrap();
    arrived(&server, 3).await;
    let mut sniffing = tokio_test::task::spawn(sniff(&mut server, Duration::from_secs(60)));
    while sniffing.poll().is_pending() {
        client.shutdown().await.unwrap();
        tokio::task::yield_now().await;
        if sniffing.is_woken() {
            break;
        }
    }
    let found =
        tokio::time::timeout(Duration::from_secs(5), sniffing).await.expect("not the deadline").unwrap();
    assert_eq!(found, FirstBytes::Http1);
    let (client, mut server) = pair().await;
    drop(client);
    assert!(matches!(sniff(&mut server, Duration::from_secs(5)).await, Err(SniffError::Closed)));
}
