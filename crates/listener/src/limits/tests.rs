use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

#[test]
fn permits_are_counted_and_returned() {
    let limits = Limits::new(2);
    let first = limits.try_acquire().unwrap();
    let second = limits.try_acquire().unwrap();
    assert_eq!((limits.open(), limits.max()), (2, 2));
    assert!(limits.try_acquire().is_none());
    limits.set_max(3);
    let third = limits.try_acquire().unwrap();
    limits.set_max(1);
    drop((first, second));
    assert!(limits.try_acquire().is_none(), "one is open and one is allowed");
    drop(third);
    assert!(limits.try_acquire().is_some());
    assert_eq!(limits.open(), 0);
}

#[test]
fn a_reservation_is_not_an_open_connection() {
    let limits = Limits::new(1);
    let Take::Got(reservation) = limits.own.take() else { panic!("one is free") };
    assert_eq!(limits.open(), 0);
    assert!(limits.try_acquire().is_none());
    drop(reservation);
    assert!(limits.try_acquire().is_some());
}

#[test]
fn closed_is_for_good() {
    let limits = Limits::new(5);
    let kept = limits.try_acquire().unwrap();
    limits.close();
    assert!(limits.is_closed() && limits.try_acquire().is_none());
    assert_eq!(limits.open(), 1);
    drop(kept);
    limits.set_max(10);
    assert!(limits.try_acquire().is_none());
    assert_eq!(limits.open(), 0);
}

#[tokio::test]
async fn drained_waits_for_the_last() {
    let limits = Limits::new(5);
    limits.drained().await;
    let (a, b) = (limits.try_acquire().unwrap(), limits.try_acquire().unwrap());
    limits.close();
    let mut drained = tokio_test::task::spawn(limits.drained());
    tokio_test::assert_pending!(drained.poll());
    drop(a);
    tokio_test::assert_pending!(drained.poll());
    drop(b);
    assert!(drained.is_woken());
    tokio_test::assert_ready!(drained.poll());
}

#[test]
fn never_above_the_limit_from_many_threads() {
    let limits = Limits::new(7);
    let above = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5_000 {
                    let permit = limits.try_acquire();
                    if limits.open() > 7 {
                        above.fetch_add(1, Ordering::Relaxed);
                    }
                    drop(permit);
                }
            });
        }
    });
    assert_eq!(above.into_inner(), 0);
    assert_eq!(limits.open(), 0);
}
