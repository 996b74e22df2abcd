//! Polls only what has something to say.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;

/// Remembers that a source was pending and has not woken anybody since, so that a task which waits for several
/// sources does not ask the silent ones again (each time a lock) whenever one of them speaks.
pub(crate) struct Quiet {
    flag: Arc<Flag>,
    waker: Waker,
}

struct Flag {
    woken: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl Quiet {
    pub(crate) fn new() -> Self {
        let flag = Arc::new(Flag { woken: AtomicBool::new(true), task: AtomicWaker::new() });
        Self { waker: Waker::from(flag.clone()), flag }
    }

    /// Polls the source if it has not been polled yet, was ready the last time, or has woken us since.
    pub(crate) fn poll<T>(
        &self,
        cx: &mut Context<'_>,
        source: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        // registered before the flag is read: a wake in between reaches the new waker
        self.flag.task.register(cx.waker());
        if !self.flag.woken.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        let polled = source(&mut Context::from_waker(&self.waker));
        if polled.is_ready() {
            self.flag.woken.store(true, Ordering::Release);
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_silent_source_is_asked_once() {
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(count.clone());
        let mut cx = Context::from_waker(&waker);
        let quiet = Quiet::new();
        let mut kept = None;
        let mut asked = 0;
        for _ in 0..3 {
            let polled: Poll<()> = quiet.poll(&mut cx, |cx| {
                asked += 1;
                kept = Some(cx.waker().clone());
                Poll::Pending
            });
            assert!(polled.is_pending());
        }
        assert_eq!(asked, 1);
        kept.unwrap().wake();
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert_eq!(quiet.poll(&mut cx, |_| Poll::Ready(7)), Poll::Ready(7));
        // ready once more without a wake
        assert_eq!(quiet.poll(&mut cx, |_| Poll::Ready(8)), Poll::Ready(8));
    }
}
