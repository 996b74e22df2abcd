//! The corner where this program meets C: two signals, and the unit of CPU time.
#![allow(unsafe_code, reason = "std has neither signal handlers, nor SIGTERM, nor sysconf")]

use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From now on Ctrl-C and SIGTERM are noted instead of ending the program at once, so that it can end what it
/// started.
pub(crate) fn note_interrupts() {
    let handler = note as extern "C" fn(libc::c_int);
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler only stores to an atomic, which is safe in a signal handler, and it lives for ever.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}

/// Whether one of them came.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Asks a process to end. The caller has started it and not yet waited for it, so the id is still its own.
pub(crate) fn terminate(pid: u32) {
    if let Ok(pid) = libc::pid_t::try_from(pid)
        && pid > 0
    {
        // SAFETY: kill takes two integers and touches no memory; pid > 0 names one process and no group.
        unsafe { libc::kill(pid, libc::SIGTERM) };
    }
}

/// How many of the units in /proc/PID/stat make a second.
pub(crate) fn ticks_per_second() -> u64 {
    // SAFETY: sysconf takes an integer and touches no memory.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    u64::try_from(ticks).ok().filter(|ticks| *ticks > 0).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_noted() {
        note_interrupts();
        assert!(!interrupted());
        terminate(std::process::id());
        // the kernel delivers a process-directed signal to some thread soon, not at once
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while !interrupted() && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert!(interrupted());
    }

    #[test]
    fn ticks_are_sane() {
        assert!((1..=1_000_000).contains(&ticks_per_second()));
    }
}
