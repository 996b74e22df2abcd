//! Idle connections of one client, newest first.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};

use crate::{ClusterOptions, h1::H1Conn};

/// One stack per endpoint. The newest is taken first: it is the least likely to be stale, and the others get to age.
#[derive(Debug)]
pub(crate) struct Pool<Io> {
    idle: Vec<Mutex<Vec<Box<H1Conn<Io>>>>>,
    max_idle: usize,
    max_connections: usize,
    idle_timeout: Duration,
}

impl<Io> Pool<Io> {
    pub(crate) fn new(endpoints: usize, options: &ClusterOptions) -> Self {
        Self {
            idle: (0..endpoints).map(|_| Mutex::new(Vec::new())).collect(),
            max_idle: options.max_idle,
            max_connections: options.max_connections,
            idle_timeout: options.idle_timeout,
        }
    }

    /// Keeps a connection for the next request, unless enough are kept.
    pub(crate) fn put(&self, endpoint: usize, mut conn: Box<H1Conn<Io>>) {
        conn.rest();
        // at the limit an idle connection here would keep another client of the cluster from making one
        if conn.endpoint.is_full(self.max_connections) {
            return;
        }
        let mut idle = self.idle[endpoint].lock();
        if idle.len() < self.max_idle {
            idle.push(conn);
        }
    }

    /// Closes all.
    pub(crate) fn clear(&self) {
        for idle in &self.idle {
            let closed = std::mem::take(&mut *idle.lock());
            drop(closed);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.idle.iter().map(|idle| idle.lock().len()).sum()
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Pool<Io> {
    /// A connection that is fit for use; those that are not are closed on the way.
    pub(crate) fn take(&self, endpoint: usize) -> Option<Box<H1Conn<Io>>> {
        loop {
            let mut conn = self.idle[endpoint].lock().pop()?;
            if conn.idle_since.elapsed() < self.idle_timeout && conn.is_alive() {
                return Some(conn);
            }
        }
    }

    /// Closes what is too old or was closed by the peer.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        for idle in &self.idle {
            let mut idle = idle.lock();
            idle.retain_mut(|conn| {
                now.duration_since(conn.idle_since) < self.idle_timeout && conn.is_alive()
            });
            if idle.is_empty() {
                idle.shrink_to_fit();
            }
        }
    }
}
