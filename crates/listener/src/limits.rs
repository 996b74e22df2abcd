//! A bound on open connections, as permits that live as long as the connections do; and the handle that changes and
//! watches all listeners.

use std::{fmt, net::IpAddr, sync::Arc, time::Duration};

mod client;
mod descriptors;
mod episode;
mod options;
mod permitted;
mod seat;
mod state;
mod stats;

#[cfg(test)]
pub(crate) use self::descriptors::LIMIT_IS_MINE;
use self::state::{Group, Take};
pub use self::{
    client::ClientRefused,
    descriptors::{
        DescriptorBudget, TooManyConnections, descriptor_limit, open_descriptors, raise_descriptor_limit,
    },
    options::{ClientLimit, LimitOptions, OverClient, OverLimit},
    permitted::Permitted,
    state::{ClientGuard, Permit},
    stats::{ErrorCounts, ListenerStats},
};
pub(crate) use self::{
    client::Enter,
    seat::{Reason, Reserve, Seat},
    state::{Own, Reservation},
    stats::HeadroomReached,
};

/// How many connections may be open, and the one handle for every listener and worker that holds a clone: its limits
/// change while they run, it pauses, resumes and drains them, and says what they did.
///
/// Past the limit nothing is accepted: clients wait in the kernel's queue (see [`crate::TcpOptions::backlog`]) until
/// a connection closes; or they are refused, see [`OverLimit`]. Taking and returning a permit are a few atomic
/// operations, without a lock unless somebody waits or clients are counted ([`ClientLimit`]: one of 64 locks, for a
/// look-up). An idle listener holds no permit, so a small limit serves many listeners.
///
/// ```
/// use portcullis_listener::{ClientLimit, LimitOptions, Limits};
///
/// let options = LimitOptions::default().with_max_connections(5000).with_per_client(Some(ClientLimit::new(100)));
/// let limits = Limits::with_options(options);
/// let permit = limits.try_acquire_for("192.0.2.1".parse().unwrap()).unwrap();
/// assert_eq!(limits.open(), 1);
/// drop(permit);
/// assert_eq!(limits.open(), 0);
/// ```
#[derive(Clone)]
pub struct Limits {
    group: Arc<Group>,
    /// For connections of no listener in particular.
    own: Arc<Own>,
}

impl Limits {
    /// At most `max` open connections, and clients wait past it; see [`LimitOptions`].
    pub fn new(max: usize) -> Self {
        Self::with_options(LimitOptions::default().with_max_connections(max))
    }

    /// Limits as the options say.
    pub fn with_options(options: LimitOptions) -> Self {
        let group = Arc::new(Group::new(options));
        let own = Own::new(&group, None, None);
        Self { group, own }
    }

    /// The part of one listener in these limits, with a name for logs and statistics and, if wanted, a maximum of its
    /// own. All sockets of one address (one for each worker, say) share a clone of it.
    pub fn listener(&self, name: impl Into<String>, max: Option<usize>) -> ListenerLimits {
        ListenerLimits { own: Own::new(&self.group, Some(name.into()), max) }
    }

    /// Changes the limit. A lower one closes nothing: it holds new connections back until enough have ended.
    pub fn set_max(&self, max: usize) {
        self.group.set_max(max);
    }

    /// The limit in force.
    pub fn max(&self) -> usize {
        self.group.max()
    }

    /// Changes what happens past it.
    pub fn set_over(&self, over: OverLimit) {
        self.group.set_over(over);
    }

    /// Changes the limit of each client. Open connections stay as they were counted; those that were opened without
    /// such a limit never are.
    pub fn set_per_client(&self, limit: Option<ClientLimit>) {
        self.group.set_per_client(limit);
    }

    /// The limit of each client in force.
    pub fn per_client(&self) -> Option<ClientLimit> {
        self.group.clients.limit().map(|limit| (*limit).clone())
    }

    /// Connections open now. What waits in the kernel's queue is not counted.
    pub fn open(&self) -> usize {
        self.group.open()
    }

    /// How many clients have a counted connection.
    pub fn clients(&self) -> usize {
        self.group.clients.len()
    }

    /// A permit for a connection that came by another way than [`crate::Incoming`]; `None` when the limit is
    /// reached, accepting is paused or [`Limits::close`] was called.
    pub fn try_acquire(&self) -> Option<Permit> {
        match self.own.take() {
            Take::Got(reservation) => Some(reservation.open()),
            Take::Full(_) | Take::Paused(_) | Take::Closed => None,
        }
    }

    /// The same for a connection of this client, which is counted. [`OverClient::Delay`] does not wait here.
    ///
    /// # Errors
    /// No permit is free, or the client has its share.
    pub fn try_acquire_for(&self, client: IpAddr) -> Result<Permit, Refused> {
        let mut permit = self.try_acquire().ok_or(Refused::Full)?;
        match self.group.clients.enter(client) {
            Enter::In(key) => {
                permit.rekey(key);
                Ok(permit)
            }
            Enter::Full(limit) => Err(limit.refused(client).into()),
        }
    }

    /// Counts a connection of this client that is under other limits than these, over QUIC say, so that a client has one share
    /// of all. It counts until the guard is dropped; it is not among [`Limits::open`]. [`OverClient::Delay`] does not
    /// wait here.
    ///
    /// # Errors
    /// The client has its share.
    pub fn count_client(&self, client: IpAddr) -> Result<ClientGuard, ClientRefused> {
        match self.group.clients.enter(client) {
            Enter::In(key) => Ok(ClientGuard::new(&self.own, key)),
            Enter::Full(limit) => {
                self.own.counters.refused_over_client();
                Err(limit.refused(client))
            }
        }
    }

    /// Holds every listener back: nothing is accepted until [`Limits::resume`], and clients wait in the kernel's
    /// queue. Open connections go on.
    pub fn pause(&self) {
        self.group.pause();
    }

    /// Ends [`Limits::pause`].
    pub fn resume(&self) {
        self.group.resume();
    }

    /// Whether [`Limits::pause`] is in force.
    pub fn is_paused(&self) -> bool {
        self.group.is_paused()
    }

    /// Gives no more permits, for good: every [`crate::Incoming`] ends, whether it waits for a permit, for a
    /// connection or for the end of a shortage. Open connections are left alone.
    pub fn close(&self) {
        self.group.close();
    }

    /// Whether [`Limits::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.group.is_closed()
    }

    /// Resolves when [`Limits::close`] is called: a signal to drain for those who hold a clone.
    pub async fn closed(&self) {
        self.group.closed().await;
    }

    /// Resolves when no connection is open. Call [`Limits::close`] first, and when this resolves none is open nor
    /// ever will be; without it a new one may come at any time.
    pub async fn drained(&self) {
        self.group.drained().await;
    }

    /// Closes, and waits until the last connection has ended.
    ///
    /// # Errors
    /// Connections are open after the deadline. They are not touched: their tasks are the caller's to abort.
    pub async fn drain(&self, deadline: Duration) -> Result<(), DrainTimeout> {
        self.close();
        let drained = tokio::time::timeout(deadline, self.drained()).await;
        drained.map_err(|_| DrainTimeout { left: self.open(), deadline })
    }

    /// What all listeners did so far.
    pub fn stats(&self) -> ListenerStats {
        self.group.stats()
    }

    /// What each listener with a name did so far, as long as it is alive.
    pub fn listeners(&self) -> Vec<(String, ListenerStats)> {
        self.group.named()
    }
}

impl fmt::Debug for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limits")
            .field("open", &self.open())
            .field("max", &self.max())
            .field("paused", &self.is_paused())
            .field("closed", &self.is_closed())
            .finish()
    }
}

/// The part of one listener in the [`Limits`] of all. Cheap to clone.
#[derive(Clone)]
pub struct ListenerLimits {
    own: Arc<Own>,
}

impl ListenerLimits {
    /// What the listener is called, if it has a name.
    pub fn name(&self) -> Option<&str> {
        self.own.name.as_deref()
    }

    /// Changes the maximum of this listener; `None` leaves it to that of all.
    pub fn set_max(&self, max: Option<usize>) {
        self.own.set_max(max);
    }

    /// The maximum of this listener.
    pub fn max(&self) -> Option<usize> {
        self.own.max()
    }

    /// Connections of this listener that are open now.
    pub fn open(&self) -> usize {
        self.own.open()
    }

    /// As [`Limits::pause`], for this listener.
    pub fn pause(&self) {
        self.own.pause();
    }

    /// Ends [`ListenerLimits::pause`].
    pub fn resume(&self) {
        self.own.resume();
    }

    /// Whether [`ListenerLimits::pause`] is in force.
    pub fn is_paused(&self) -> bool {
        self.own.is_paused()
    }

    /// What this listener did so far.
    pub fn stats(&self) -> ListenerStats {
        self.own.stats()
    }
}

impl From<Limits> for ListenerLimits {
    fn from(limits: Limits) -> Self {
        Self { own: limits.own }
    }
}

impl From<&Limits> for ListenerLimits {
    fn from(limits: &Limits) -> Self {
        Self { own: Arc::clone(&limits.own) }
    }
}

impl From<&ListenerLimits> for ListenerLimits {
    fn from(limits: &ListenerLimits) -> Self {
        limits.clone()
    }
}

impl fmt::Debug for ListenerLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListenerLimits")
            .field("name", &self.name())
            .field("open", &self.open())
            .field("max", &self.max())
            .finish_non_exhaustive()
    }
}

/// Why [`Limits::try_acquire_for`] gives no permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// The limit is reached, accepting is paused, or the limits are closed.
    #[error("no connection may be opened now")]
    Full,
    /// The client has its share.
    #[error(transparent)]
    Client(#[from] ClientRefused),
}

/// Connections outlived the deadline of [`Limits::drain`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{left} connections are still open after {deadline:?}")]
#[non_exhaustive]
pub struct DrainTimeout {
    /// How many are open.
    pub left: usize,
    /// How long was waited.
    pub deadline: Duration,
}

#[cfg(test)]
mod tests;
