//! What a person or a metric wants to know.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

/// How it stands with one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CertStatus {
    /// Its names.
    pub names: Vec<String>,
    /// Whether a client asked for it.
    pub on_demand: bool,
    /// What is being done about it.
    pub state: CertState,
    /// Until when the certificate that is served is valid; `None` while there is none.
    pub not_after: Option<SystemTime>,
    /// When it will be renewed, as it looks now; `None` while there is none.
    pub next_renewal: Option<SystemTime>,
    /// The last failure; it stays after a success.
    pub last_error: Option<LastError>,
    /// Failures since the last success.
    pub attempts: u32,
    /// How many certificates this instance had issued for it.
    pub issued: u64,
}

/// What is being done about a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CertState {
    /// There is none yet, and an order is to begin.
    Missing,
    /// One is served that is valid, and it is not yet time to renew it.
    Valid,
    /// One is served that is valid, and it is time to renew it.
    Due,
    /// One is served that has expired: better than none, and a new one is tried for.
    Expired,
    /// This instance is at it.
    Issuing,
    /// It failed, or another instance is at it; until then nothing is done. What is served stays.
    Waiting {
        /// When it is tried again, or looked for in the storage.
        until: SystemTime,
    },
}

/// A failure.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LastError {
    /// When.
    pub at: SystemTime,
    /// What, with its causes.
    pub text: String,
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AcmeStats {
    /// Orders that brought a certificate.
    pub orders_ok: u64,
    /// Orders that failed.
    pub orders_failed: u64,
    /// Of `orders_ok`, those that took the place of a certificate.
    pub renewals: u64,
    /// Certificates taken over that another instance had issued.
    pub adopted: u64,
    /// Names that clients asked for and that were put before the policy.
    pub on_demand_asked: u64,
    /// Of those, what the policy refused.
    pub on_demand_refused: u64,
    /// Names that were not put before the policy since a bound was reached.
    pub on_demand_over_bound: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) orders_ok: AtomicU64,
    pub(crate) orders_failed: AtomicU64,
    pub(crate) renewals: AtomicU64,
    pub(crate) adopted: AtomicU64,
    pub(crate) on_demand_asked: AtomicU64,
    pub(crate) on_demand_refused: AtomicU64,
    pub(crate) on_demand_over_bound: AtomicU64,
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counters {
    pub(crate) fn read(&self) -> AcmeStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        AcmeStats {
            orders_ok: read(&self.orders_ok),
            orders_failed: read(&self.orders_failed),
            renewals: read(&self.renewals),
            adopted: read(&self.adopted),
            on_demand_asked: read(&self.on_demand_asked),
            on_demand_refused: read(&self.on_demand_refused),
            on_demand_over_bound: read(&self.on_demand_over_bound),
        }
    }
}
