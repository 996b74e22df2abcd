//! The connections of one client that wait for requests, newest first, and the requests that wait for connections.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Notify, futures::OwnedNotified, oneshot},
    time::Instant,
};

use crate::{
    ClientAddresses, ClusterOptions, Protocol,
    h1::H1Conn,
    http2::{H2Conn, H2Lease},
    state::EndpointState,
};

/// One place per endpoint. The newest connection is taken first: it is the least likely to be stale, and the others get to age.
#[derive(Debug)]
pub(crate) struct Pool<Io> {
    slots: Mutex<Vec<Slot<Io>>>,
    max_idle: usize,
    max_connections: usize,
    idle_timeout: Duration,
    max_streams: usize,
    speaks: Speaks,
}

#[derive(Debug)]
struct Slot<Io> {
    idle: Vec<Box<H1Conn<Io>>>,
    waiting: VecDeque<oneshot::Sender<Box<H1Conn<Io>>>>,
    http2: Vec<H2Conn>,
    speaks: Speaks,
    /// Whether an HTTP/2 connection, or one that may become one, is being made.
    connecting: bool,
    connected: Arc<Notify>,
}

/// What an endpoint speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    Http1,
    Http2,
    /// The first connection will tell.
    Unknown,
}

/// What there is for a request to an endpoint.
pub(crate) enum Found<Io> {
    /// A connection to itself.
    H1(Box<H1Conn<Io>>),
    /// A connection that others use too.
    H2(H2Conn, H2Lease),
    /// None: one is to be made. With `true` it may become one for all.
    Connect(bool),
    /// One is being made that others may use too; this resolves when it is.
    Wait(OwnedNotified),
}

impl<Io> Pool<Io> {
    pub(crate) fn new(options: &ClusterOptions) -> Self {
        Self {
            slots: Mutex::new(Vec::new()),
            max_idle: options.max_idle,
            max_connections: options.max_connections,
            idle_timeout: options.idle_timeout,
            max_streams: options.http2.max_streams.max(1),
            speaks: match options.protocol {
                Protocol::Http1 => Speaks::Http1,
                Protocol::Http2 => Speaks::Http2,
                Protocol::ByAlpn => Speaks::Unknown,
            },
        }
    }

    fn with<T>(&self, slot: usize, then: impl FnOnce(&mut Slot<Io>) -> T) -> T {
        let mut slots = self.slots.lock();
        if slots.len() <= slot {
            let speaks = self.speaks;
            slots.resize_with(slot + 1, || Slot::new(speaks));
        }
        then(&mut slots[slot])
    }

    /// Gives a connection to whoever waits for one, or keeps it for the next request, unless enough are kept.
    pub(crate) fn put(&self, mut conn: Box<H1Conn<Io>>) {
        conn.rest();
        if conn.life.is_over(conn.idle_since) || conn.endpoint.is_removed() {
            return;
        }
        let full = conn.endpoint.is_full(self.max_connections) || conn.endpoint.has_waiting();
        let slot = conn.endpoint.slot;
        // what is not kept is closed outside of the lock
        let closed = self.with(slot, move |slot| {
            if conn.client.is_none() {
                while let Some(waiting) = slot.waiting.pop_front() {
                    match waiting.send(conn) {
                        Ok(()) => return None,
                        // it was tired of waiting
                        Err(back) => conn = back,
                    }
                }
            }
            // at the limit an idle connection here would keep another client of the cluster from making one
            if full || slot.idle.len() >= self.max_idle {
                return Some(conn);
            }
            slot.idle.push(conn);
            None
        });
        drop(closed);
    }

    /// Puts oneself in the line for a connection to an endpoint.
    pub(crate) fn wait(&self, slot: usize) -> oneshot::Receiver<Box<H1Conn<Io>>> {
        let (sender, receiver) = oneshot::channel();
        self.with(slot, |slot| {
            slot.waiting.retain(|waiting| !waiting.is_closed());
            slot.waiting.push_back(sender);
        });
        receiver
    }

    /// An HTTP/2 connection, or one that turned out not to be one, was made or was not.
    pub(crate) fn connected(&self, slot: usize, speaks: Option<Speaks>, conn: Option<H2Conn>) {
        self.with(slot, |slot| {
            // an endpoint may change its mind, or another one stand behind the same name
            if self.speaks == Speaks::Unknown
                && let Some(speaks) = speaks
            {
                slot.speaks = speaks;
            }
            slot.http2.extend(conn);
            slot.connecting = false;
            slot.connected.notify_waiters();
        });
    }

    /// Closes all that nobody uses.
    pub(crate) fn clear(&self) {
        let closed: Vec<_> = {
            let mut slots = self.slots.lock();
            slots
                .iter_mut()
                .map(|slot| {
                    let unused = slot.http2.extract_if(.., |conn| conn.streams() == 0).collect::<Vec<_>>();
                    (std::mem::take(&mut slot.idle), unused)
                })
                .collect()
        };
        drop(closed);
    }

    /// Connections that lie here, those of HTTP/2 among them.
    pub(crate) fn len(&self) -> usize {
        self.slots.lock().iter().map(|slot| slot.idle.len() + slot.http2.len()).sum()
    }

    /// A place on an HTTP/2 connection to an endpoint, if there is one.
    pub(crate) fn find_http2(
        &self,
        slot: usize,
        client: Option<ClientAddresses>,
    ) -> Option<(H2Conn, H2Lease)> {
        self.with(slot, |slot| slot.http2_with_room(client, self.max_streams))
    }

    /// Closes a connection to an endpoint that nobody uses, the one that was used the longest ago, to make room for another.
    pub(crate) fn evict(&self, slot: usize) {
        let closed = self.with(slot, |slot| {
            if slot.idle.is_empty() {
                let at = slot.http2.iter().position(|conn| conn.streams() == 0);
                return (None, at.map(|at| slot.http2.remove(at)));
            }
            (Some(slot.idle.remove(0)), None)
        });
        drop(closed);
    }

    /// Idle connections to an endpoint.
    pub(crate) fn idle(&self, slot: usize) -> usize {
        self.with(slot, |slot| slot.idle.len())
    }
}

impl<Io> Slot<Io> {
    fn new(speaks: Speaks) -> Self {
        Self {
            idle: Vec::new(),
            waiting: VecDeque::new(),
            http2: Vec::new(),
            speaks,
            connecting: false,
            connected: Arc::default(),
        }
    }

    fn http2_with_room(
        &mut self,
        client: Option<ClientAddresses>,
        max_streams: usize,
    ) -> Option<(H2Conn, H2Lease)> {
        let now = Instant::now();
        self.http2.retain(|conn| !conn.is_over(now));
        // the first with room: those behind it get to rest, and to be closed
        let conn = self.http2.iter().find(|conn| conn.is_for(client) && conn.has_room(max_streams))?;
        // taken under the lock, so that no two requests take the last place
        Some((conn.clone(), conn.lease()))
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Pool<Io> {
    /// A connection that is fit for use, or what to do for want of one; those that are not fit are closed on the way. `fresh` passes over
    /// HTTP/1.1 connections that were used before.
    pub(crate) fn find(
        &self,
        state: &EndpointState,
        fresh: bool,
        client: Option<ClientAddresses>,
    ) -> Found<Io> {
        loop {
            let taken = self.with(state.slot, |slot| {
                if !fresh && let Some(at) = slot.idle.iter().rposition(|conn| conn.client == client) {
                    return Err(slot.idle.remove(at));
                }
                if slot.speaks == Speaks::Http1 {
                    return Ok(Found::Connect(false));
                }
                if let Some((conn, lease)) = slot.http2_with_room(client, self.max_streams) {
                    return Ok(Found::H2(conn, lease));
                }
                if client.is_some() {
                    // nobody else could use what is made
                    return Ok(Found::Connect(false));
                }
                if slot.connecting {
                    // made under the lock, so that it misses nothing
                    return Ok(Found::Wait(Arc::clone(&slot.connected).notified_owned()));
                }
                slot.connecting = true;
                Ok(Found::Connect(true))
            });
            match taken {
                Ok(found) => return found,
                // looked at outside of the lock: it may be a system call
                Err(mut conn) => {
                    let now = Instant::now();
                    let rested = now.saturating_duration_since(conn.idle_since);
                    if rested < self.idle_timeout && !conn.life.is_over(now) && conn.is_alive() {
                        return Found::H1(conn);
                    }
                }
            }
        }
    }

    /// Closes what is too old or was closed by the peer.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        let count = self.slots.lock().len();
        for at in 0..count {
            // one endpoint at a time, and what is closed is closed outside of the lock
            let (idle, old) = self.with(at, |slot| {
                let old: Vec<_> = slot
                    .http2
                    .extract_if(.., |conn| {
                        conn.is_over(now) || conn.is_removed() || conn.is_idle_for(self.idle_timeout, now)
                    })
                    .collect();
                (std::mem::take(&mut slot.idle), old)
            });
            drop(old);
            let mut kept: Vec<_> = idle
                .into_iter()
                .filter_map(|mut conn| {
                    let fit = now.saturating_duration_since(conn.idle_since) < self.idle_timeout
                        && !conn.life.is_over(now)
                        && !conn.endpoint.is_removed()
                        && !conn.endpoint.has_waiting()
                        && conn.is_alive();
                    fit.then_some(conn)
                })
                .collect();
            self.with(at, |slot| {
                // what came back meanwhile is newer
                kept.append(&mut slot.idle);
                slot.idle = kept;
            });
        }
    }
}
