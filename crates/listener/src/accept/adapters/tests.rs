use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use tokio_test::{assert_pending, assert_ready, task};

use super::*;
use crate::test_log::Log;

/// Sockets and errors in order; then nothing comes.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<VecDeque<Result<u32, i32>>>>, Arc<AtomicUsize>);

impl Script {
    fn new(answers: impl IntoIterator<Item = Result<u32, i32>>) -> Self {
        let script = Self::default();
        script.0.lock().extend(answers);
        script
    }
}

impl Stream for Script {
    type Item = io::Result<u32>;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.1.fetch_add(1, Ordering::SeqCst);
        let next = self.0.lock().pop_front();
        next.map_or(Poll::Pending, |answer| Poll::Ready(Some(answer.map_err(io::Error::from_raw_os_error))))
    }
}

async fn advance(millis: u64) {
    tokio::time::advance(Duration::from_millis(millis)).await;
}

const PAUSE: Duration = Duration::from_millis(500);

#[tokio::test(start_paused = true)]
async fn the_three_in_their_order() {
    let limits = Limits::new(2);
    let script = Script::new([
        Ok(1),
        Err(libc::ECONNABORTED),
        Ok(2),
        Ok(3),
        Err(libc::EMFILE),
        Err(libc::EMFILE),
        Ok(4),
    ]);
    let stream = script.clone().log_warnings("web").handle_errors_with(PAUSE, &limits).backpressure(&limits);
    let mut stream = task::spawn(stream);
    let first = assert_ready!(stream.poll_next()).unwrap();
    let second = assert_ready!(stream.poll_next()).unwrap();
    assert_eq!((*first.get_ref(), *second.get_ref(), limits.open()), (1, 2, 2));
    assert_pending!(stream.poll_next());
    assert_eq!(script.1.load(Ordering::SeqCst), 3, "nothing is asked for without a permit");
    drop(first);
    assert!(stream.is_woken());
    let third = assert_ready!(stream.poll_next()).unwrap();
    drop(second);
    let log = Log::capture();

    // a shortage: one warning, and a pause for each error
    assert_pending!(stream.poll_next());
    advance(501).await;
    assert!(stream.is_woken());
    assert_pending!(stream.poll_next());
    let lines = log.lines();
    assert_eq!(lines.len(), 1, "{lines:?}");
    for part in ["WARN", "accepting connections fails", "web", "ulimit -n"] {
        assert!(lines[0].contains(part), "{part} is missing in {}", lines[0]);
    }
    advance(100).await;
    assert_pending!(stream.poll_next());
    // a connection that closes ends the pause
    drop(third);
    assert!(stream.is_woken());
    let fourth = assert_ready!(stream.poll_next()).unwrap();
    assert_eq!(*fourth.get_ref(), 4);
    advance(1001).await;
    script.0.lock().push_back(Ok(5));
    let fifth = assert_ready!(stream.poll_next()).unwrap();
    let lines = log.lines();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[1].contains("accepting connections again") && lines[1].contains("errors=2"), "{lines:?}");
    let stats = limits.stats();
    assert_eq!((stats.accepted, stats.errors.process_descriptors, stats.errors.gone), (5, 2, 1));

    assert_pending!(stream.poll_next());
    limits.close();
    assert!(stream.is_woken());
    assert!(assert_ready!(stream.poll_next()).is_none());
    drop((fourth, fifth));
    assert_eq!(limits.open(), 0);
}

#[tokio::test(start_paused = true)]
async fn each_alone() {
    let log = Log::capture();
    let script = Script::new([Err(libc::ENFILE), Ok(1)]);
    let mut logged = task::spawn(script.log_warnings("web"));
    assert!(assert_ready!(logged.poll_next()).unwrap().is_err(), "errors are passed on");
    assert_eq!(assert_ready!(logged.poll_next()).unwrap().unwrap(), 1);
    assert_eq!(log.lines().len(), 1);
    let log = Log::capture();

    let script = Script::new([Err(libc::EMFILE), Ok(1), Err(libc::EBADF), Ok(2)]);
    let mut handled = task::spawn(script.handle_errors(PAUSE));
    assert_pending!(handled.poll_next());
    advance(501).await;
    assert_eq!(assert_ready!(handled.poll_next()), Some(1));
    assert!(log.lines().is_empty(), "what is handled is not told here: {:?}", log.lines());
    assert_eq!(assert_ready!(handled.poll_next()), None, "there is no listener any more");
    assert_eq!(assert_ready!(handled.poll_next()), None);

    let limits = Limits::new(1);
    let mut held = task::spawn(Script::new([Ok(1), Ok(2)]).backpressure(&limits));
    let first = assert_ready!(held.poll_next()).unwrap();
    assert!(first.get_ref().is_ok());
    assert_pending!(held.poll_next());
    drop(first);
    assert!(assert_ready!(held.poll_next()).is_some());
}
