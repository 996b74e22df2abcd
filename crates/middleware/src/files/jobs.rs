//! Work that blocks: on tokio's threads for that, so much of it at once, and not begun for somebody who has left.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{JoinError, JoinHandle, spawn_blocking},
};

/// The places of all that serve the same directory.
#[derive(Clone, Debug)]
pub(super) struct Jobs {
    running: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

type Work<T> = Box<dyn FnOnce() -> T + Send + Sync>;
type Turn = Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send + Sync>>;

impl Jobs {
    pub(super) fn new(max_jobs: usize, max_waiting: usize) -> Self {
        Self { running: crate::places(max_jobs.max(1)), waiting: crate::places(max_waiting) }
    }

    /// Work for a request that has no answer yet; `None` where too many wait for their turn.
    pub(super) fn begin<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + Sync + 'static,
    ) -> Option<Job<T>> {
        if let Ok(place) = Arc::clone(&self.running).try_acquire_owned() {
            return Some(Job::run(place, work));
        }
        let waits = Arc::clone(&self.waiting).try_acquire_owned().ok()?;
        Some(self.queue(work, Some(waits)))
    }

    /// Work for an answer that has begun, which waits for its turn in any case.
    pub(super) fn go_on<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + Sync + 'static,
    ) -> Job<T> {
        match Arc::clone(&self.running).try_acquire_owned() {
            Ok(place) => Job::run(place, work),
            Err(_) => self.queue(work, None),
        }
    }

    fn queue<T>(
        &self,
        work: impl FnOnce() -> T + Send + Sync + 'static,
        waits: Option<OwnedSemaphorePermit>,
    ) -> Job<T> {
        let running = Arc::clone(&self.running);
        let turn = Box::pin(async move { running.acquire_owned().await.ok() });
        Job(State::Waiting { turn, work: Some(Box::new(work)), _waits: waits })
    }

    /// As if so many more were at work.
    #[cfg(test)]
    pub(super) fn hold(&self, count: u32) -> OwnedSemaphorePermit {
        Arc::clone(&self.running).try_acquire_many_owned(count).unwrap()
    }
}

/// Work that waits for its turn or runs. Dropped before it has begun it never does; what has begun can't be stopped, and keeps its place.
pub(super) struct Job<T>(State<T>);

enum State<T> {
    Waiting { turn: Turn, work: Option<Work<T>>, _waits: Option<OwnedSemaphorePermit> },
    Running { task: JoinHandle<T> },
}

impl<T: Send + 'static> Job<T> {
    fn run(place: OwnedSemaphorePermit, work: impl FnOnce() -> T + Send + 'static) -> Self {
        let task = spawn_blocking(move || {
            let done = work();
            drop(place);
            done
        });
        Self(State::Running { task })
    }
}

impl<T: Send + 'static> Future for Job<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match &mut self.0 {
                State::Waiting { turn, work, .. } => {
                    let place = ready!(turn.as_mut().poll(cx));
                    // the places are never closed, and the state is another one after this
                    let (Some(place), Some(work)) = (place, work.take()) else { return Poll::Pending };
                    *self = Self::run(place, work);
                }
                State::Running { task } => return Pin::new(task).poll(cx),
            }
        }
    }
}

impl<T> Drop for Job<T> {
    fn drop(&mut self) {
        if let State::Running { task } = &self.0 {
            task.abort();
        }
    }
}

impl<T> fmt::Debug for Job<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waits = matches!(self.0, State::Waiting { .. });
        f.debug_struct("Job").field("waits", &waits).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    };

    use super::*;

    #[tokio::test]
    async fn so_many_run_and_so_many_wait() {
        let jobs = Jobs::new(1, 1);
        let (release, released) = mpsc::channel::<()>();
        let released = std::sync::Mutex::new(released);
        let first = jobs.begin(move || released.lock().unwrap().recv().ok()).unwrap();
        let begun = Arc::new(AtomicUsize::new(0));
        let count = || {
            let begun = Arc::clone(&begun);
            move || begun.fetch_add(1, Ordering::Relaxed)
        };
        let left = jobs.begin(count()).unwrap();
        assert!(jobs.begin(count()).is_none(), "no more wait than may");
        let piece = jobs.go_on(count());
        // who leaves makes room, and what he wanted is not done
        drop(left);
        let last = jobs.begin(count()).unwrap();
        release.send(()).unwrap();
        first.await.unwrap();
        assert_eq!((piece.await.unwrap(), last.await.unwrap()), (0, 1));
    }

    #[test]
    fn what_tokio_has_not_begun_is_never_begun() {
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
        runtime.block_on(async {
            let jobs = Jobs::new(2, 0);
            let (release, released) = mpsc::channel::<()>();
            let busy = spawn_blocking(move || released.recv().ok());
            let begun = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&begun);
            // it has a place, and no thread yet
            let left = jobs.begin(move || count.fetch_add(1, Ordering::Relaxed)).unwrap();
            drop(left);
            release.send(()).unwrap();
            busy.await.unwrap();
            jobs.begin(|| ()).unwrap().await.unwrap();
            assert_eq!(begun.load(Ordering::Relaxed), 0);
            drop(jobs.hold(2));
        });
    }
}
