use std::{
    sync::mpsc::{Receiver, Sender, channel},
    time::UNIX_EPOCH,
};

use http::Version;

use super::*;
use std::path::Path;

/// Hands on what is written; each write waits for a permit, until there can be no more.
struct Gate {
    permits: Receiver<()>,
    out: Sender<Vec<u8>>,
    fail: bool,
    /// Set when the first write waits.
    began: Arc<AtomicBool>,
}

impl Write for Gate {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.began.store(true, Ordering::Release);
        let _ = self.permits.recv();
        if self.fail {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        let _ = self.out.send(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn gate(fail: bool) -> (Sender<()>, Receiver<Vec<u8>>, Gate) {
    let (permit, permits) = channel();
    let (out, written) = channel();
    (permit, written, Gate { permits, out, fail, began: Arc::default() })
}

fn line(target: &str) -> AccessLine<'_> {
    AccessLine::new(UNIX_EPOCH, "GET", target, Version::HTTP_11)
}

fn small() -> WriterOptions {
    WriterOptions::default().with_buffer_bytes(0).with_flush_interval(Duration::ZERO)
}

fn targets(written: &Receiver<Vec<u8>>) -> Vec<String> {
    let text = String::from_utf8(written.iter().flatten().collect()).unwrap();
    text.lines().map(|line| line.split(' ').nth(6).unwrap().to_owned()).collect()
}

#[test]
fn lines_come_out_in_their_order() {
    let (permit, written, gate) = gate(false);
    drop(permit);
    // 1000 lines fit into one buffer, whatever the thread does meanwhile
    let (writer, guard) = Writer::to(gate, &WriterOptions::default()).unwrap();
    for n in 0..1000 {
        writer.write(&line(&format!("/{n}")));
    }
    drop(guard);
    let expected: Vec<_> = (0..1000).map(|n| format!("/{n}")).collect();
    assert_eq!(targets(&written), expected);
    assert_eq!(writer.dropped(), 0);
}

#[test]
fn a_line_comes_out_without_another_and_without_the_guard_dropped() {
    let (permit, written, gate) = gate(false);
    drop(permit);
    let (writer, _guard) = Writer::to(gate, &small()).unwrap();
    for n in 0..50 {
        writer.write(&line(&format!("/{n}")));
        let text = String::from_utf8(written.recv().unwrap()).unwrap();
        assert!(text.contains(&format!("/{n} ")), "{text}");
    }
}

#[test]
fn half_a_buffer_does_not_wait_for_the_interval() {
    let (permit, written, gate) = gate(false);
    drop(permit);
    let options = small().with_flush_interval(Duration::from_secs(24 * 60 * 60));
    let (writer, _guard) = Writer::to(gate, &options).unwrap();
    while written.try_recv().is_err() {
        writer.write(&line("/"));
        thread::yield_now();
    }
}

#[test]
fn what_does_not_fit_is_dropped_and_counted() {
    const LINES: u64 = 20_000;
    let (permit, written, gate) = gate(false);
    let (writer, guard) = Writer::to(gate, &small()).unwrap();
    for n in 0..LINES {
        writer.write(&line(&format!("/{n}")));
    }
    let dropped = writer.dropped();
    assert!(dropped > LINES / 2, "{dropped}");
    drop(permit);
    drop(guard);
    let written = targets(&written);
    assert_eq!(written.len() as u64 + dropped, LINES);
    assert_eq!(written[0], "/0");
    // after the end
    writer.write(&line("/late"));
    assert_eq!(writer.dropped(), dropped + 1);
}

#[tokio::test]
async fn who_waits_for_room_loses_nothing() {
    const LINES: u64 = 20_000;
    let (permit, written, gate) = gate(false);
    let began = Arc::clone(&gate.began);
    let (writer, guard) = Writer::to(gate, &small()).unwrap();
    let mut waited = 0;
    let (reader, out) = (permit.clone(), writer.clone());
    // from here on the thread takes nothing but when it is let
    out.write(&line("/0"));
    while !began.load(Ordering::Acquire) {
        thread::yield_now();
    }
    for n in 1..LINES {
        if out.is_pressed() {
            let mut room = pin!(out.room());
            assert!(futures_poll(room.as_mut()).is_pending());
            waited += 1;
            // the disk is there again, for one write
            let _ = reader.send(());
            tokio::time::timeout(Duration::from_secs(10), room).await.expect("there is room again");
        }
        out.write(&line(&format!("/{n}")));
    }
    assert!(waited > 2, "{waited}");
    assert_eq!(writer.dropped(), 0);
    drop((permit, reader, guard));
    assert_eq!(targets(&written).len() as u64, LINES);
}

fn futures_poll(future: std::pin::Pin<&mut impl Future<Output = ()>>) -> std::task::Poll<()> {
    future.poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
}

#[cfg(unix)]
#[test]
fn each_line_is_a_message_to_syslog() {
    use std::os::unix::net::UnixDatagram;
    let folder = std::env::temp_dir().join(format!("portcullis-syslog-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("log");
    assert!(matches!(Writer::syslog(&path, &small()), Err(WriterError::Syslog { .. })));
    let daemon = UnixDatagram::bind(&path).unwrap();
    let (writer, guard) = Writer::syslog(&path, &small()).unwrap();
    let mut buffer = [0; 4096];
    let mut next = |daemon: &UnixDatagram| {
        let len = daemon.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    };
    for n in 0..3 {
        writer.write(&line(&format!("/{n}")));
        let message = next(&daemon);
        assert!(
            message.starts_with("<190>")
                && message.contains(&format!(" portcullis[{}]: - - - [", std::process::id()))
        );
        assert!(message.contains(&format!("GET /{n} ")) && !message.contains('\n'), "{message}");
    }
    // one that is started anew
    drop(daemon);
    std::fs::remove_file(&path).unwrap();
    let daemon = UnixDatagram::bind(&path).unwrap();
    writer.write(&line("/again"));
    assert!(next(&daemon).contains("/again"));
    drop(daemon);
    writer.write(&line("/lost"));
    drop(guard);
    assert_eq!(writer.dropped(), 1);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn what_cannot_be_written_is_counted() {
    let (permit, _written, gate) = gate(true);
    drop(permit);
    let (writer, guard) = Writer::to(gate, &small()).unwrap();
    for _ in 0..10 {
        writer.write(&line("/"));
    }
    drop(guard);
    assert_eq!(writer.dropped(), 10);
}

#[test]
fn threads_do_not_tear_lines() {
    let (permit, written, gate) = gate(false);
    drop(permit);
    let (writer, guard) = Writer::to(gate, &WriterOptions::default()).unwrap();
    thread::scope(|scope| {
        for worker in 0..12 {
            let writer = writer.clone();
            scope.spawn(move || {
                for n in 0..500 {
                    writer.write(&line(&format!("/{worker}/{n}")));
                }
            });
        }
    });
    drop(guard);
    let mut got = targets(&written);
    let mut expected: Vec<_> = (0..12).flat_map(|w| (0..500).map(move |n| format!("/{w}/{n}"))).collect();
    got.sort();
    expected.sort();
    assert_eq!(got, expected);
}

#[test]
fn a_rotated_file_is_opened_anew() {
    let folder = std::env::temp_dir().join(format!("portcullis-access-log-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (path, old) = (folder.join("access.log"), folder.join("access.log.1"));
    for file in [&path, &old] {
        let _ = std::fs::remove_file(file);
    }
    let count = |path: &Path| std::fs::read_to_string(path).map_or(0, |text| text.lines().count());

    let (writer, guard) = Writer::file(&path, &small()).unwrap();
    writer.write(&line("/before"));
    drop(guard);
    assert_eq!(count(&path), 1);
    // a second writer appends, and after the rename follows the path
    let (writer, guard) = Writer::file(&path, &small()).unwrap();
    std::fs::rename(&path, &old).unwrap();
    writer.reopen();
    while !path.exists() {
        thread::yield_now();
    }
    writer.write(&line("/after"));
    drop(guard);
    assert_eq!((count(&old), count(&path)), (1, 1));

    let missing = folder.join("no/such/folder/access.log");
    let error = Writer::file(&missing, &small()).unwrap_err();
    assert!(matches!(error, WriterError::Open { path, .. } if path == missing));
    std::fs::remove_dir_all(&folder).unwrap();
}
