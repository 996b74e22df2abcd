//! How requests are spread over the endpoints of a cluster.

use std::{sync::Arc, time::Duration};

use http::HeaderName;

/// The rule by which an endpoint is chosen among those that may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Policy {
    /// Of two candidates in (weighted) turn the one with fewer requests under way for its weight. The default: it is as
    /// even as taking turns while all are equally fast, and passes over one that is slow.
    #[default]
    LeastRequest,
    /// In turn, each as often as its weight says and its turns spread evenly.
    RoundRobin,
    /// By chance, in proportion to the weights.
    Random,
    /// Of two random candidates the one whose latency (the recent peak, falling off within about 10 s) times its
    /// requests under way is less. A failure counts as 5 s, so an endpoint that fails fast draws nothing.
    PeakEwma,
    /// Consistent hashing by a Maglev table: the same hash goes to the same endpoint in every process that has the same
    /// members. Even to about a percent; a change of the members moves a few requests more than it must.
    Maglev {
        /// Positions of the table: from 1 to 5 000 011, raised to the next prime, and to the number of endpoints if there
        /// are more. Default 65 537, about a hundred for each of 650 endpoints. Memory: 4 bytes each, for each priority
        /// and for the own zone.
        table_size: u32,
    },
    /// Consistent hashing by a ring: less even than [`Policy::Maglev`], but a change of the members moves only what it
    /// must.
    RingHash {
        /// Points on the ring for each unit of weight: from 1 to 10 000. Default 160. At most 1 048 576 points in all
        /// (16 bytes each): past that all endpoints have proportionally fewer.
        replicas: u32,
    },
}

impl Policy {
    /// [`Policy::Maglev`] with its default size.
    pub fn maglev() -> Self {
        Self::Maglev { table_size: 65_537 }
    }

    /// [`Policy::RingHash`] with its default number of points.
    pub fn ring_hash() -> Self {
        Self::RingHash { replicas: 160 }
    }
}

/// A part of a request that is hashed for [`Policy::Maglev`] and [`Policy::RingHash`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HashKey {
    /// The first field line of that name.
    Header(HeaderName),
    /// The first cookie of that name.
    Cookie(String),
    /// The client's full address. An IPv4 address mapped into IPv6 is the IPv4 address.
    ClientIp,
    /// Path and query.
    Uri,
    /// The path.
    Path,
    /// The first parameter of that name in the query, as it is written: nothing is decoded.
    Query(String),
    /// The host without its port, in lower case: of the target if it has one, else of the Host field.
    Host,
}

/// How requests are spread over the endpoints of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BalanceOptions {
    /// The rule. Default [`Policy::LeastRequest`].
    pub policy: Policy,
    /// What is hashed: the first of these that the request has. Default none. A request that has none of them is balanced
    /// by [`Policy::LeastRequest`]. Other policies do not hash.
    pub hash_on: Vec<HashKey>,
    /// With a hashing policy: no endpoint is given more than so many percent of the average of requests under way (for
    /// its weight); what is above goes on to the next position. From 100, lower values count as 100; for example 125.
    /// Default 0: off. It costs a look at all endpoints for each request.
    pub hash_balance_factor: u32,
    /// How long an endpoint that became available again is given less than its share: from a tenth of its weight up to
    /// all of it, evenly. Default 0: off. Hashing policies do without: it would move keys twice.
    pub slow_start: Duration,
    /// Percent of a priority's weight that has to be available for it to be used: below it the next priority is. When no
    /// priority has so much, availability is ignored and all endpoints are candidates, since the few that are left would
    /// break down as well. At most 100; default 50, as in Envoy. 0: only when none at all is available.
    pub panic_threshold: u8,
    /// The zone that this proxy runs in. Default none: zones do not matter.
    pub zone: Option<Arc<str>>,
    /// Percent of the own zone's weight that has to be available for it to take all requests of its priority; below it
    /// all zones share them. At most 100; default 70.
    pub zone_threshold: u8,
}

impl Default for BalanceOptions {
    fn default() -> Self {
        Self {
            policy: Policy::LeastRequest,
            hash_on: Vec::new(),
            hash_balance_factor: 0,
            slow_start: Duration::ZERO,
            panic_threshold: 50,
            zone: None,
            zone_threshold: 70,
        }
    }
}

macro_rules! with {
    ($($name:ident => $field:ident: $type:ty),* $(,)?) => {
        impl BalanceOptions {
            $(
                #[doc = concat!("Sets [`BalanceOptions::", stringify!($field), "`].")]
                #[must_use]
                pub fn $name(mut self, value: $type) -> Self {
                    self.$field = value;
                    self
                }
            )*
        }
    };
}

with! {
    with_policy => policy: Policy,
    with_hash_on => hash_on: Vec<HashKey>,
    with_hash_balance_factor => hash_balance_factor: u32,
    with_slow_start => slow_start: Duration,
    with_panic_threshold => panic_threshold: u8,
    with_zone => zone: Option<Arc<str>>,
    with_zone_threshold => zone_threshold: u8,
}
