//! The thread that says when the requests of an open loop are due.
//!
//! A runtime's timer counts whole milliseconds, which is ten times the latency that is measured here, so the
//! schedule is kept by one thread that sleeps on the system's clock and hands out permits.

use std::{
    fs,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;

use crate::clock::Schedule;

/// What is due in the last moment may still start for so long.
const LAST_START: Duration = Duration::from_millis(100);

/// Asks the system to wake the threads of this process within a microsecond of the time they asked for instead
/// of within 50; threads inherit it, so this comes before they start. Where it can't be had, wake-ups are later
/// and the report's late starts show it.
pub(crate) fn wake_up_promptly() {
    let _ = fs::write("/proc/self/timerslack_ns", "1");
}

/// Starts the pacer: request `i` becomes a permit of semaphore `i % n` when it is due; afterwards all are closed.
pub(crate) fn start(schedule: Schedule, gates: Vec<Arc<Semaphore>>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut index = 0;
        while let Some(due) = schedule.due(index) {
            sleep_until(due);
            gates[index as usize % gates.len()].add_permits(1);
            index += 1;
        }
        sleep_until(Instant::now() + LAST_START);
        for gate in gates {
            gate.close();
        }
    })
}

/// Sleeps on the calling thread, which is not one of a runtime.
#[allow(clippy::disallowed_methods, reason = "this thread runs no runtime")]
pub(crate) fn sleep_until(at: Instant) {
    let wait = at.saturating_duration_since(Instant::now());
    if !wait.is_zero() {
        thread::sleep(wait);
    }
}
