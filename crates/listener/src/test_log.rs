//! What the code under test logs, for the tests that look at it.
//!
//! One subscriber for the whole test program, writing to the thread that logs: a subscriber for each thread would
//! race with tests that log without one, whose call sites are then cached as unwanted.

use std::{
    cell::RefCell,
    io::{self, Write},
    marker::PhantomData,
    sync::Once,
};

thread_local! {
    static TEXT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

struct ToThread;

impl Write for ToThread {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        TEXT.with_borrow_mut(|text| text.extend_from_slice(buf));
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The log of this thread from here on.
pub(crate) struct Log(PhantomData<*const ()>);

impl Log {
    pub(crate) fn capture() -> Self {
        static INSTALL: Once = Once::new();
        INSTALL.call_once(|| {
            let subscriber =
                tracing_subscriber::fmt().with_ansi(false).without_time().with_writer(|| ToThread).finish();
            tracing::subscriber::set_global_default(subscriber).expect("nobody else installs one");
        });
        TEXT.with_borrow_mut(Vec::clear);
        Self(PhantomData)
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        TEXT.with_borrow(|text| {
            String::from_utf8_lossy(text).lines().map(|line| line.trim().to_owned()).collect()
        })
    }
}
