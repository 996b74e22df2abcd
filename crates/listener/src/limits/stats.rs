//! What the listeners did, as plain numbers.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::accept::{ErrorClass, classify};

/// What listeners did since their limits were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListenerStats {
    /// Connections accepted and handed on.
    pub accepted: u64,
    /// Connections open now.
    pub open: u64,
    /// Connections closed or reset at once because there was no permit ([`crate::OverLimit`]).
    pub refused_over_limit: u64,
    /// Connections closed or reset because their client had its share ([`crate::OverClient`]), those included that
    /// were delayed in vain.
    pub refused_over_client: u64,
    /// Connections kept back because their client had its share ([`crate::OverClient::Delay`]).
    pub delayed: u64,
    /// Errors of single connections ([`ErrorClass::Connection`]).
    pub connection_errors: u64,
    /// Errors that meant a shortage ([`ErrorClass::Shortage`]).
    pub shortage_errors: u64,
    /// All errors by what they were.
    pub errors: ErrorCounts,
    /// Shortage episodes begun: several errors of several listeners in a row are one episode.
    pub shortages: u64,
    /// How many times a limit of connections, that of all or that of the listener, was reached, as it was told: an episode ends after five seconds in
    /// which nobody had to wait.
    pub limit_reached: u64,
    /// Time that acceptors rested because of errors, summed over them; a rest counts when it ends.
    pub paused: Duration,
    /// Time that acceptors waited for a permit, summed over them; a wait counts when it ends.
    pub at_limit: Duration,
}

/// Errors of `accept` by what they were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ErrorCounts {
    /// ECONNABORTED, ECONNRESET, EPROTO: the client was gone before it was accepted.
    pub gone: u64,
    /// ENETDOWN, EHOSTUNREACH and their like: pending errors of the network.
    pub network: u64,
    /// EPERM: a firewall rule.
    pub forbidden: u64,
    /// EMFILE: this process has no descriptor left.
    pub process_descriptors: u64,
    /// ENFILE: the system has none left.
    pub system_descriptors: u64,
    /// ENOBUFS, ENOMEM, ENOSPC: no memory for another socket.
    pub memory: u64,
    /// No error of the system: only the descriptors held in reserve were left ([`crate::AcceptOptions::headroom`]).
    pub headroom: u64,
    /// All others, EINTR among them.
    pub other: u64,
}

/// The fields of [`ErrorCounts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Gone,
    Network,
    Forbidden,
    ProcessDescriptors,
    SystemDescriptors,
    Memory,
    Headroom,
    Other,
}

const KINDS: usize = 8;

fn kind(error: &io::Error) -> Kind {
    use io::ErrorKind as E;
    #[cfg(unix)]
    if let Some(code) = error.raw_os_error() {
        match code {
            libc::EMFILE => return Kind::ProcessDescriptors,
            libc::ENFILE => return Kind::SystemDescriptors,
            libc::ENOBUFS | libc::ENOMEM | libc::ENOSPC => return Kind::Memory,
            libc::EPROTO => return Kind::Gone,
            libc::EHOSTDOWN => return Kind::Network,
            _ => {}
        }
    }
    #[cfg(not(unix))]
    match error.raw_os_error() {
        // WSAEMFILE, WSAENOBUFS
        Some(10024) => return Kind::ProcessDescriptors,
        Some(10055) => return Kind::Memory,
        _ => {}
    }
    if error.get_ref().is_some_and(|inner| inner.is::<HeadroomReached>()) {
        return Kind::Headroom;
    }
    match error.kind() {
        E::ConnectionAborted | E::ConnectionReset => Kind::Gone,
        E::NetworkDown | E::NetworkUnreachable | E::HostUnreachable | E::TimedOut => Kind::Network,
        E::PermissionDenied => Kind::Forbidden,
        E::OutOfMemory => Kind::Memory,
        _ => Kind::Other,
    }
}

/// No error of the system: accepting stops before it comes to one.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("only {left} descriptors are left, which are kept for the work on open connections")]
pub(crate) struct HeadroomReached {
    pub(crate) left: u64,
}

impl From<HeadroomReached> for io::Error {
    fn from(reached: HeadroomReached) -> Self {
        Self::other(reached)
    }
}

/// The counters of one listener.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    accepted: AtomicU64,
    refused_over_limit: AtomicU64,
    refused_over_client: AtomicU64,
    delayed: AtomicU64,
    connection_errors: AtomicU64,
    shortage_errors: AtomicU64,
    kinds: [AtomicU64; KINDS],
    shortages: AtomicU64,
    limit_reached: AtomicU64,
    paused_nanos: AtomicU64,
    at_limit_nanos: AtomicU64,
}

fn one(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn time(counter: &AtomicU64, passed: Duration) {
    counter.fetch_add(u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
}

impl Counters {
    pub(crate) fn accepted(&self) {
        one(&self.accepted);
    }

    pub(crate) fn refused_over_limit(&self) {
        one(&self.refused_over_limit);
    }

    pub(crate) fn refused_over_client(&self) {
        one(&self.refused_over_client);
    }

    pub(crate) fn delayed(&self) {
        one(&self.delayed);
    }

    pub(crate) fn error(&self, error: &io::Error) {
        match classify(error) {
            ErrorClass::Connection => one(&self.connection_errors),
            ErrorClass::Shortage => one(&self.shortage_errors),
            ErrorClass::Fatal => {}
        }
        one(&self.kinds[kind(error) as usize]);
    }

    pub(crate) fn shortage(&self) {
        one(&self.shortages);
    }

    pub(crate) fn limit_reached(&self) {
        one(&self.limit_reached);
    }

    pub(crate) fn paused(&self, rested: Duration) {
        time(&self.paused_nanos, rested);
    }

    pub(crate) fn at_limit(&self, waited: Duration) {
        time(&self.at_limit_nanos, waited);
    }

    /// Without what is open, which is no counter.
    pub(crate) fn read(&self) -> ListenerStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let of = |kind: Kind| get(&self.kinds[kind as usize]);
        ListenerStats {
            accepted: get(&self.accepted),
            open: 0,
            refused_over_limit: get(&self.refused_over_limit),
            refused_over_client: get(&self.refused_over_client),
            delayed: get(&self.delayed),
            connection_errors: get(&self.connection_errors),
            shortage_errors: get(&self.shortage_errors),
            errors: ErrorCounts {
                gone: of(Kind::Gone),
                network: of(Kind::Network),
                forbidden: of(Kind::Forbidden),
                process_descriptors: of(Kind::ProcessDescriptors),
                system_descriptors: of(Kind::SystemDescriptors),
                memory: of(Kind::Memory),
                headroom: of(Kind::Headroom),
                other: of(Kind::Other),
            },
            shortages: get(&self.shortages),
            limit_reached: get(&self.limit_reached),
            paused: Duration::from_nanos(get(&self.paused_nanos)),
            at_limit: Duration::from_nanos(get(&self.at_limit_nanos)),
        }
    }
}

impl ListenerStats {
    pub(crate) fn add(&mut self, other: &Self) {
        let Self { errors, .. } = self;
        errors.gone += other.errors.gone;
        errors.network += other.errors.network;
        errors.forbidden += other.errors.forbidden;
        errors.process_descriptors += other.errors.process_descriptors;
        errors.system_descriptors += other.errors.system_descriptors;
        errors.memory += other.errors.memory;
        errors.headroom += other.errors.headroom;
        errors.other += other.errors.other;
        self.accepted += other.accepted;
        self.open += other.open;
        self.refused_over_limit += other.refused_over_limit;
        self.refused_over_client += other.refused_over_client;
        self.delayed += other.delayed;
        self.connection_errors += other.connection_errors;
        self.shortage_errors += other.shortage_errors;
        self.shortages += other.shortages;
        self.limit_reached += other.limit_reached;
        self.paused += other.paused;
        self.at_limit += other.at_limit;
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_counted_by_what_they_were() {
        let counters = Counters::default();
        let codes = [
            libc::ECONNABORTED,
            libc::EPROTO,
            libc::ENETDOWN,
            libc::EPERM,
            libc::EMFILE,
            libc::ENFILE,
            libc::ENOMEM,
            libc::EINTR,
        ];
        for code in codes {
            counters.error(&io::Error::from_raw_os_error(code));
        }
        counters.error(&HeadroomReached { left: 3 }.into());
        let stats = counters.read();
        let errors = ErrorCounts {
            gone: 2,
            network: 1,
            forbidden: 1,
            process_descriptors: 1,
            system_descriptors: 1,
            memory: 1,
            headroom: 1,
            other: 1,
        };
        assert_eq!((stats.errors, stats.connection_errors, stats.shortage_errors), (errors, 5, 4));
        let mut sum = stats;
        sum.add(&stats);
        assert_eq!((sum.errors.gone, sum.connection_errors), (4, 10));
    }
}
