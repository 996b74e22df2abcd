use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// Remembers what it was given to send.
#[derive(Debug, Default)]
struct Recorder {
    sent: Mutex<Vec<(SocketAddr, usize, Option<usize>)>>,
    full: AtomicBool,
    segments: usize,
}

#[derive(Debug)]
struct Always;

impl UdpPoller for Always {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // a real one registers; the tests poll again
        cx.waker().wake_by_ref();
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for Recorder {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Always)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.full.swap(false, Ordering::Relaxed) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let entry = (transmit.destination, transmit.contents.len(), transmit.segment_size);
        self.sent.lock().unwrap().push(entry);
        Ok(())
    }

    fn poll_recv(
        &self,
        _: &mut Context<'_>,
        _: &mut [IoSliceMut<'_>],
        _: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(client(0))
    }

    fn max_transmit_segments(&self) -> usize {
        self.segments
    }
}

fn client(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

const SIZE: usize = 1_400;

fn socket() -> (Arc<Recorder>, Arc<dyn AsyncUdpSocket>) {
    let recorder = Arc::new(Recorder { segments: 64, ..Recorder::default() });
    (recorder.clone(), batched(recorder))
}

/// Sends so many packets of which the last may be shorter.
fn send(socket: &Arc<dyn AsyncUdpSocket>, port: u16, len: usize) -> io::Result<()> {
    let contents = vec![0; len];
    socket.try_send(&Transmit {
        destination: client(port),
        ecn: None,
        contents: &contents,
        segment_size: (len > SIZE).then_some(SIZE),
        src_ip: None,
    })
}

fn sent(recorder: &Recorder) -> Vec<(u16, usize)> {
    std::mem::take(&mut *recorder.sent.lock().unwrap())
        .into_iter()
        .map(|(to, len, _)| (to.port(), len))
        .collect()
}

async fn turns() {
    for _ in 0..4 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn short_ones_go_at_once() {
    let (recorder, socket) = socket();
    send(&socket, 1, 100).unwrap();
    send(&socket, 1, 3 * SIZE + 5).unwrap();
    assert_eq!(sent(&recorder), [(1, 100), (1, 3 * SIZE + 5)]);
}

#[tokio::test]
async fn full_hands_wait_for_more_and_go_with_what_ends_them() {
    let (recorder, socket) = socket();
    send(&socket, 1, 10 * SIZE).unwrap();
    send(&socket, 1, 10 * SIZE).unwrap();
    assert_eq!(sent(&recorder), []);
    send(&socket, 1, 2 * SIZE + 7).unwrap();
    assert_eq!(sent(&recorder), [(1, 22 * SIZE + 7)]);
    // a single packet ends them too, and one that is longer than theirs goes behind them
    send(&socket, 1, 10 * SIZE).unwrap();
    send(&socket, 1, 10).unwrap();
    assert_eq!(sent(&recorder), [(1, 10 * SIZE + 10)]);
    let longer = vec![0; SIZE + 1];
    send(&socket, 1, 10 * SIZE).unwrap();
    let one =
        Transmit { destination: client(1), ecn: None, contents: &longer, segment_size: None, src_ip: None };
    socket.try_send(&one).unwrap();
    assert_eq!(sent(&recorder), [(1, 10 * SIZE), (1, SIZE + 1)]);
}

#[tokio::test]
async fn what_is_full_goes_at_once() {
    let (recorder, socket) = socket();
    for _ in 0..4 {
        send(&socket, 1, 10 * SIZE).unwrap();
    }
    assert_eq!(sent(&recorder), [(1, 40 * SIZE)]);
}

#[tokio::test]
async fn what_nobody_adds_to_goes_after_a_turn() {
    let (recorder, socket) = socket();
    send(&socket, 1, 10 * SIZE).unwrap();
    send(&socket, 2, 10 * SIZE).unwrap();
    send(&socket, 1, 10 * SIZE).unwrap();
    turns().await;
    let mut both = sent(&recorder);
    both.sort_unstable();
    assert_eq!(both, [(1, 20 * SIZE), (2, 10 * SIZE)]);
}

#[tokio::test]
async fn clients_are_bounded() {
    let (recorder, socket) = socket();
    for port in 1..=5 {
        send(&socket, port, 10 * SIZE).unwrap();
    }
    assert_eq!(sent(&recorder), [(1, 10 * SIZE)]);
    turns().await;
    assert_eq!(sent(&recorder).len(), 4);
}

#[tokio::test]
async fn a_full_kernel_loses_and_reorders_nothing() {
    let (recorder, socket) = socket();
    send(&socket, 1, 10 * SIZE).unwrap();
    recorder.full.store(true, Ordering::Relaxed);
    // it does not fit behind, and what is before it can't go
    let longer = vec![0; SIZE + 1];
    let one =
        Transmit { destination: client(1), ecn: None, contents: &longer, segment_size: None, src_ip: None };
    assert_eq!(socket.try_send(&one).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    socket.try_send(&one).unwrap();
    assert_eq!(sent(&recorder), [(1, 10 * SIZE), (1, SIZE + 1)]);
    // taken although there is no room: the flusher sends it
    send(&socket, 1, 10 * SIZE).unwrap();
    recorder.full.store(true, Ordering::Relaxed);
    send(&socket, 1, 5).unwrap();
    assert_eq!(sent(&recorder), []);
    // nothing goes behind the short one, whoever comes first
    recorder.full.store(true, Ordering::Relaxed);
    assert_eq!(send(&socket, 1, 10 * SIZE).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    turns().await;
    assert_eq!(sent(&recorder), [(1, 10 * SIZE + 5)]);
}

#[tokio::test]
async fn without_offload_nothing_is_put_around() {
    let recorder: Arc<dyn AsyncUdpSocket> = Arc::new(Recorder { segments: 1, ..Recorder::default() });
    assert!(Arc::ptr_eq(&batched(Arc::clone(&recorder)), &recorder));
}
