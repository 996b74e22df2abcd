//! Connections whose client has its share open already, kept until it closes another one.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use portcullis_conn::ConnInfo;
use tokio::time::{Instant, Sleep};

use crate::limits::{Enter, Own, Permit};

/// More are not kept, for each acceptor.
pub(super) const MOST: usize = 128;

/// An accepted connection with what is known about it.
pub(super) type Accepted<Io> = (Io, ConnInfo, Permit);

pub(super) struct Delayed<Io> {
    own: Arc<Own>,
    kept: VecDeque<(Instant, Accepted<Io>)>,
    /// Made when first needed and reused.
    timer: Option<Pin<Box<Sleep>>>,
    /// What was told when it was looked through last: a look costs a lock for each.
    looked: Option<u64>,
}

impl<Io> Delayed<Io> {
    pub(super) fn new(own: Arc<Own>) -> Self {
        Self { own, kept: VecDeque::new(), timer: None, looked: None }
    }

    /// Keeps one; gives it back if too many are kept.
    pub(super) fn keep(&mut self, accepted: Accepted<Io>, up_to: Duration) -> Option<Accepted<Io>> {
        if self.kept.len() >= MOST {
            return Some(accepted);
        }
        self.own.counters.delayed();
        self.own.group.clients.delayed.fetch_add(1, Ordering::SeqCst);
        let now = Instant::now();
        let until = now.checked_add(up_to).unwrap_or(now + Duration::from_secs(86_400));
        self.kept.push_back((until, accepted));
        self.looked = None;
        None
    }

    /// One whose client has room again. Those that waited too long are closed. The task is woken when either may be
    /// the case: by the clock here, and by those who count clients through the acceptor's seat.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Accepted<Io>> {
        if self.kept.is_empty() {
            return Poll::Pending;
        }
        let mut elapsed = false;
        loop {
            let told = self.own.group.clients.told.load(Ordering::SeqCst);
            if elapsed || self.looked != Some(told) {
                if let Some(accepted) = self.look() {
                    // there may be another one
                    self.looked = None;
                    return Poll::Ready(accepted);
                }
                self.looked = Some(told);
            }
            // the limit may have changed meanwhile, so the first in is not always the first out
            let Some(next) = self.kept.iter().map(|(until, _)| *until).min() else { return Poll::Pending };
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(next)));
            if timer.deadline() != next {
                timer.as_mut().reset(next);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            elapsed = true;
        }
    }

    fn look(&mut self) -> Option<Accepted<Io>> {
        let now = Instant::now();
        let mut at = 0;
        while let Some((until, (_, info, permit))) = self.kept.get_mut(at) {
            if let Enter::In(key) = self.own.group.clients.enter(info.client_ip()) {
                permit.rekey(key);
                return self.take(at);
            }
            if *until <= now {
                self.own.counters.refused_over_client();
                drop(self.take(at));
            } else {
                at += 1;
            }
        }
        None
    }

    fn take(&mut self, at: usize) -> Option<Accepted<Io>> {
        let (_, accepted) = self.kept.remove(at)?;
        self.own.group.clients.delayed.fetch_sub(1, Ordering::SeqCst);
        Some(accepted)
    }
}

impl<Io> Drop for Delayed<Io> {
    fn drop(&mut self) {
        self.own.group.clients.delayed.fetch_sub(self.kept.len(), Ordering::SeqCst);
    }
}
