use super::*;
use portcullis_testkit::io::{ShortIo, short_writes};
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::{JoinHandle, yield_now},
};

/// The far ends of a relay over two duplex pipes, and the relay itself.
fn relayed(options: RelayOptions, pipe: usize) -> (DuplexStream, DuplexStream, JoinHandle<RelayStats>) {
    let (client, a) = duplex(pipe);
    let (origin, b) = duplex(pipe);
    let task = tokio::spawn(relay(short_writes(a), short_writes(b), options));
    (client, origin, task)
}

#[tokio::test]
async fn both_ways_and_to_the_end() {
    let (mut client, mut origin, task) = relayed(RelayOptions::default(), 64);
    client.write_all(b"ping").await.unwrap();
    let mut four = [0; 4];
    origin.read_exact(&mut four).await.unwrap();
    assert_eq!(&four, b"ping");
    origin.write_all(b"pong!").await.unwrap();
    let mut five = [0; 5];
    client.read_exact(&mut five).await.unwrap();
    assert_eq!(&five, b"pong!");
    drop(client);
    // the client's end is passed on
    assert_eq!(origin.read(&mut four).await.unwrap(), 0);
    drop(origin);
    let stats = task.await.unwrap();
    assert!(matches!(stats.end, RelayEnd::Finished), "{stats:?}");
    assert_eq!((stats.a_to_b, stats.b_to_a), (4, 5));
}

#[tokio::test]
async fn a_half_close_leaves_the_other_half_open() {
    let (mut client, mut origin, task) = relayed(RelayOptions::default(), 64);
    client.write_all(b"last words").await.unwrap();
    client.shutdown().await.unwrap();
    let mut heard = Vec::new();
    origin.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"last words");
    // the origin answers long after, more than the pipe holds
    let answer = vec![7; 100_000];
    let sent = answer.clone();
    let writer = tokio::spawn(async move {
        origin.write_all(&sent).await.unwrap();
        origin.shutdown().await.unwrap();
        origin
    });
    let mut got = Vec::new();
    client.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, answer);
    let stats = task.await.unwrap();
    assert!(matches!(stats.end, RelayEnd::Finished));
    assert_eq!((stats.a_to_b, stats.b_to_a), (10, 100_000));
    drop(writer.await.unwrap());
}

#[tokio::test]
async fn a_reader_that_stalls_holds_the_writer_and_loses_nothing() {
    let (mut client, mut origin, task) = relayed(RelayOptions::default(), 1024);
    let sent: Vec<u8> = (0..200_000_u32).map(|i| (i % 251) as u8).collect();
    let all = sent.clone();
    let writer = tokio::spawn(async move {
        client.write_all(&all).await.unwrap();
        client
    });
    for _ in 0..1000 {
        yield_now().await;
    }
    assert!(!writer.is_finished(), "200 KB do not fit into two pipes and one chunk");
    let mut got = vec![0; sent.len()];
    origin.read_exact(&mut got).await.unwrap();
    assert!(got == sent);
    drop((writer.await.unwrap(), origin));
    assert!(matches!(task.await.unwrap().end, RelayEnd::Finished));
}

#[tokio::test(start_paused = true)]
async fn what_is_idle_is_closed_and_what_moves_is_not() {
    let idle = Duration::from_secs(60);
    let started = Instant::now();
    let (mut client, mut origin, task) = relayed(RelayOptions::default().with_idle_timeout(idle), 64);
    for _ in 0..3 {
        // a byte every 50 s keeps it, in whichever direction
        tokio::time::sleep(Duration::from_secs(50)).await;
        client.write_all(b"a").await.unwrap();
        assert_eq!(origin.read_u8().await.unwrap(), b'a');
        tokio::time::sleep(Duration::from_secs(50)).await;
        origin.write_all(b"b").await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'b');
    }
    let last = Instant::now();
    assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
    assert_eq!(last.elapsed().as_secs(), 60);
    let stats = task.await.unwrap();
    assert!(matches!(stats.end, RelayEnd::Idle));
    assert!(started.elapsed() >= Duration::from_secs(360));
}

#[tokio::test(start_paused = true)]
async fn a_half_closed_tunnel_is_not_kept_for_ever() {
    let options = RelayOptions::default().with_idle_timeout(Duration::from_secs(5));
    let (mut client, _origin, task) = relayed(options, 64);
    client.shutdown().await.unwrap();
    assert!(matches!(task.await.unwrap().end, RelayEnd::Idle));
}

#[tokio::test]
async fn an_endless_timeout_is_no_overflow() {
    let (client, origin, task) = relayed(RelayOptions::default().with_idle_timeout(Duration::MAX), 64);
    drop((client, origin));
    assert!(!matches!(task.await.unwrap().end, RelayEnd::Idle));
}

#[tokio::test]
async fn an_end_that_breaks_ends_both() {
    let (client, a) = duplex(64);
    let broken = tokio_test_io();
    let stats = relay(a, broken, RelayOptions::default()).await;
    assert!(
        matches!(stats.end, RelayEnd::Failed(ref error) if error.kind() == io::ErrorKind::ConnectionReset)
    );
    drop(client);
}

/// A stream whose reads fail.
fn tokio_test_io() -> impl AsyncRead + AsyncWrite + Unpin {
    struct Broken;
    impl AsyncRead for Broken {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }
    }
    impl AsyncWrite for Broken {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Pending
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }
    Broken
}

#[test]
fn places_are_bounded_and_given_back() {
    let tunnels = Tunnels::new(2);
    let (one, two) = (tunnels.try_open().unwrap(), tunnels.try_open());
    assert!(two.is_some() && tunnels.try_open().is_none());
    assert_eq!(tunnels.open(), 2);
    drop(one);
    assert_eq!(tunnels.open(), 1);
    assert!(tunnels.try_open().is_some());
    assert!(Tunnels::new(0).try_open().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_those_that_end_by_themselves() {
    let tunnels = Tunnels::new(10);
    assert_eq!(tunnels.drain(Duration::ZERO).await, 0);
    let tunnels = Tunnels::new(10);
    let (mut client, a) = duplex(64);
    let (mut origin, b) = duplex(64);
    let guard = tunnels.try_open().unwrap();
    let task = tokio::spawn(guard.relay(a, b, RelayOptions::default()));
    let started = Instant::now();
    let drain = tokio::spawn({
        let tunnels = tunnels.clone();
        async move { tunnels.drain(Duration::from_secs(30)).await }
    });
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(tunnels.try_open().is_none(), "no tunnel begins in a drain");
    // still relayed
    client.write_all(b"x").await.unwrap();
    assert_eq!(origin.read_u8().await.unwrap(), b'x');
    drop((client, origin));
    assert_eq!(drain.await.unwrap(), 0);
    assert_eq!(started.elapsed().as_secs(), 10);
    assert!(matches!(task.await.unwrap().end, RelayEnd::Finished));
    assert_eq!(tunnels.totals().opened, 1);
    assert_eq!(tunnels.totals().to_upstream, 1);
}

#[tokio::test(start_paused = true)]
async fn a_drain_aborts_the_rest() {
    let tunnels = Tunnels::new(10);
    let mut ends = Vec::new();
    let mut tasks = Vec::new();
    for _ in 0..3 {
        let ((client, a), (origin, b)) = (duplex(64), duplex(64));
        tasks.push(tokio::spawn(tunnels.try_open().unwrap().relay(a, b, RelayOptions::default())));
        ends.push((client, origin));
    }
    let started = Instant::now();
    assert_eq!(tunnels.drain(Duration::from_secs(30)).await, 3);
    assert_eq!(started.elapsed().as_secs(), 30);
    assert_eq!(tunnels.open(), 0);
    for task in tasks {
        assert!(matches!(task.await.unwrap().end, RelayEnd::Aborted));
    }
    for (mut client, _) in ends {
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
    }
}

#[test]
fn an_upstream_tunnel_fits_into_extensions_and_is_taken_once() {
    let (io, _far) = duplex(1);
    let mut extensions = http::Extensions::new();
    extensions.insert(UpstreamTunnel::new(io));
    let copy = extensions.clone();
    assert!(extensions.remove::<UpstreamTunnel>().unwrap().take().is_some());
    assert!(copy.get::<UpstreamTunnel>().unwrap().take().is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_byte_arrives_once_and_in_order(
        up in prop::collection::vec(any::<u8>(), 0..40_000),
        down in prop::collection::vec(any::<u8>(), 0..40_000),
        (pipe, step) in (50_usize..5000, 30_usize..3000),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (got_up, got_down, stats) = runtime.block_on(async {
            let ((client, a), (origin, b)) = (duplex(pipe), duplex(pipe));
            let (a, b) = (ShortIo::new(a, step, 3), ShortIo::new(b, step * 7, 5));
            let task = tokio::spawn(relay(a, b, RelayOptions::default()));
            let far_end = |io: DuplexStream, send: Vec<u8>| async move {
                let (mut reader, mut writer) = tokio::io::split(io);
                let mut got = Vec::new();
                let write = async {
                    writer.write_all(&send).await.unwrap();
                    writer.shutdown().await.unwrap();
                };
                let (_, read) = tokio::join!(write, reader.read_to_end(&mut got));
                read.unwrap();
                got
            };
            let (got_down, got_up) = tokio::join!(far_end(client, up.clone()), far_end(origin, down.clone()));
            (got_up, got_down, task.await.unwrap())
        });
        prop_assert!(got_up == up && got_down == down);
        prop_assert_eq!((stats.a_to_b, stats.b_to_a), (up.len() as u64, down.len() as u64));
        prop_assert!(matches!(stats.end, RelayEnd::Finished));
    }
}
