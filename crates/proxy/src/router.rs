//! Which of many routes a request belongs to.
//!
//! **Precedence**, whatever the order in which routes were added. Of all routes that match a request the one with the most
//! specific host wins: the exact name, then the wildcard with the most labels, then any host. Of several with that host: an
//! exact path, then a regular expression, then the path that is more specific segment by segment from the left, where a
//! literal segment goes before `{name}` and that before everything below (`{*rest}`, a prefix), so that a longer prefix goes
//! before a shorter one. Of several with that path: the higher `priority`, then those with a method, with more fields, with
//! more query parameters, with more of client, protocol and scheme. Two that are equal in all of that and could both
//! match are an error when the router is made. A route whose conditions do not hold leaves the request to the next.
//! When there is none left, and some route would have taken the request with another method, the answer is 405.
//!
//! - A host is compared in its one form ([`crate::host::canonical`]): no case, port or trailing dot.
//! - `*.example.com` matches every name below `example.com`, at any depth, and not `example.com`.
//! - A prefix matches on segment borders: `/api` matches `/api` and `/api/x` and not `/apix`; `/api/` matches `/api/x` and
//!   not `/api`.
//! - Percent-encoded unreserved characters are compared as what they stand for (RFC 3986 section 6.2.2.2): `/%61pi` is
//!   `/api`. `%2F` is not a segment border. Case counts in a path, as do empty segments.
//!
//! A lookup costs a hash of the host, one more per label that some wildcard could match, and a hash of each segment that
//! some route has at that place: none depends on how many routes there are. Regular expressions of one host are tried
//! together, and only where there are some. It allocates nothing, but for a path with encoded unreserved characters, for a
//! host with more than one regular expression, and for fields and parameters that a condition has to decode.

use std::{
    borrow::Cow,
    collections::HashMap,
    fmt,
    hash::{BuildHasherDefault, Hasher},
};

use http::Method;

use crate::{
    host,
    matcher::{Asked, Conditions, Miss, RouteMatch},
    path::decode_unreserved,
};

mod build;
mod explain;
mod pattern;
mod table;

pub use build::{MAX_DEPTH, MAX_REGEXES, RouteError, RouterBuilder};
pub use explain::{Considered, Explanation};
pub(crate) use pattern::{Segment, canonical_path, segments};

use table::{Group, Table};

/// Routes, ready to be asked. Made by [`Router::builder`]; changing routes means building another.
#[derive(Clone)]
pub struct Router<T> {
    exact: HostMap<Table>,
    // by what follows the `*.`
    wildcard: HostMap<Table>,
    // the most labels that follow a `*.`
    wildcard_labels: usize,
    any: Table,
    // those of one host and path stand together, in the order in which they are asked
    routes: Vec<Route<T>>,
    looks_at_connection: bool,
}

type HostMap<V> = HashMap<Box<str>, V, BuildHasherDefault<Fnv>>;

#[derive(Clone)]
struct Route<T> {
    conditions: Option<Box<Conditions>>,
    value: T,
    matches: Box<RouteMatch>,
    number: usize,
}

/// The route that was found.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Found<'r, T> {
    /// What it matches, as it was added; the host in its one form.
    pub matches: &'r RouteMatch,
    /// How many routes were added before it.
    pub number: usize,
    /// What the route holds.
    pub value: &'r T,
}

impl<'r, T> Found<'r, T> {
    fn new(route: &'r Route<T>) -> Self {
        Self { matches: &route.matches, number: route.number, value: &route.value }
    }
}

/// What a router says.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Lookup<'r, T> {
    /// This route.
    Found(Found<'r, T>),
    /// There is a route for everything but the method; these would do (405, RFC 9110 section 15.5.6).
    MethodNotAllowed(Vec<Method>),
    /// No route (404).
    NotFound,
}

impl<T> Router<T> {
    /// A router without routes, to add some.
    pub fn builder() -> RouterBuilder<T> {
        RouterBuilder::default()
    }

    /// What a GET without fields for a host (with or without port, as received) and a path is routed to.
    pub fn find(&self, host: &str, path: &str) -> Option<&T> {
        match self.lookup(&Asked::new(host, path)) {
            Lookup::Found(found) => Some(found.value),
            _ => None,
        }
    }

    /// The route of a request.
    pub fn lookup(&self, asked: &Asked<'_>) -> Lookup<'_, T> {
        let mut method_missed = false;
        let found = self.search(asked, &mut |route| match &route.conditions {
            None => true,
            Some(conditions) => match conditions.test(asked) {
                None => true,
                Some(miss) => {
                    method_missed |= miss == Miss::Method;
                    false
                }
            },
        });
        match found {
            Some(route) => Lookup::Found(Found::new(route)),
            None if method_missed => Lookup::MethodNotAllowed(self.allowed(asked)),
            None => Lookup::NotFound,
        }
    }

    /// Whether some route asks for the client's address or whether its connection is encrypted. If not, [`Asked`] may go
    /// without.
    pub fn looks_at_connection(&self) -> bool {
        self.looks_at_connection
    }

    /// How many routes there are.
    pub fn len(&self) -> usize {
        self.routes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    /// Every route, in no particular order of hosts.
    pub fn iter(&self) -> impl Iterator<Item = Found<'_, T>> {
        self.routes.iter().map(Found::new)
    }

    #[cold]
    fn allowed(&self, asked: &Asked<'_>) -> Vec<Method> {
        let mut allowed = Vec::new();
        self.search(asked, &mut |route| {
            if let Some(conditions) = &route.conditions
                && conditions.test(asked) == Some(Miss::Method)
            {
                for method in conditions.methods() {
                    if !allowed.contains(method) {
                        allowed.push(method.clone());
                    }
                }
            }
            false
        });
        allowed
    }

    /// Shows the routes whose host and path match, the most specific first, until one is accepted.
    fn search<'r>(
        &'r self,
        asked: &Asked<'_>,
        accept: &mut impl FnMut(&'r Route<T>) -> bool,
    ) -> Option<&'r Route<T>> {
        let path = decode_unreserved(asked.path);
        let path = if path.starts_with('/') { &path } else { "/" };
        let mut accept = |group: Group| self.routes[group.range()].iter().find(|route| accept(route));
        if !(self.exact.is_empty() && self.wildcard.is_empty())
            && let Some(host) = host::canonical(asked.host)
        {
            if let Some(table) = self.exact.get(&*host)
                && let Some(found) = table.search(path, &mut accept)
            {
                return Some(found);
            }
            if let Some(found) = self.search_below(&host, path, &mut accept) {
                return Some(found);
            }
        }
        self.any.search(path, &mut accept)
    }

    fn search_below<R>(
        &self,
        host: &str,
        path: &str,
        accept: &mut impl FnMut(Group) -> Option<R>,
    ) -> Option<R> {
        if self.wildcard.is_empty() || host.starts_with('[') {
            return None;
        }
        let labels = host.bytes().filter(|&b| b == b'.').count() + 1;
        let mut parent = host;
        // from the longest parent to the shortest; those with more labels than any wildcard has are not looked up
        for left in (1..labels).rev() {
            parent = parent.split_once('.')?.1;
            if left <= self.wildcard_labels
                && let Some(table) = self.wildcard.get(parent)
                && let Some(found) = table.search(path, accept)
            {
                return Some(found);
            }
        }
        None
    }
}

impl<T> fmt::Debug for Router<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|found| explain::name(found.matches))).finish()
    }
}

/// FNV-1a, 64 bits. Only configured names are in the maps, so nobody can fill a bucket by asking.
#[derive(Clone, Copy)]
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests;
