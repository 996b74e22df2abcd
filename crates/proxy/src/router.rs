//! Which of many routes a host and a path belong to.
//!
//! A route is a host pattern and a path prefix. Of all routes that match a request the one with the most specific host
//! wins: the exact name, then the wildcard with the most labels, then any host. Of several with that host the one with
//! the longest prefix wins. So a host's own routes may leave paths to a less specific host.
//!
//! - A host is compared in its one form ([`crate::host::canonical`]): no case, port or trailing dot.
//! - `*.example.com` matches every name below `example.com`, at any depth, and not `example.com`.
//! - A prefix matches on segment borders: `/api` matches `/api` and `/api/x` and not `/apix`; `/api/` matches `/api/x` and
//!   not `/api`.
//! - Percent-encoded unreserved characters are compared as what they stand for (RFC 3986 section 6.2.2.2): `/%61pi` is
//!   `/api`. `%2F` is not a segment border. Case counts in a path, as do empty segments.
//!
//! A lookup costs a hash of the host, one more per label that some wildcard could match, and a binary search over the
//! prefixes of a host: neither depends on how many hosts there are. It allocates nothing, but for a path with encoded
//! unreserved characters.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    fmt,
    hash::{BuildHasherDefault, Hasher},
};

use crate::host;

/// Routes, ready to be asked. Made by [`Router::builder`]; changing routes means building another.
#[derive(Clone)]
pub struct Router<T> {
    exact: HostMap<PathTable<T>>,
    // by what follows the `*.`
    wildcard: HostMap<PathTable<T>>,
    // the most labels that follow a `*.`
    wildcard_labels: usize,
    any: PathTable<T>,
}

type HostMap<V> = HashMap<Box<str>, V, BuildHasherDefault<Fnv>>;

/// The route that was found, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Found<'r, T> {
    /// The host pattern, in its one form.
    pub host: HostPattern<'r>,
    /// The path prefix.
    pub prefix: &'r str,
    /// What the route holds.
    pub value: &'r T,
}

/// A host pattern, from the most to the least specific kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HostPattern<'r> {
    /// This name.
    Exact(&'r str),
    /// Every name below this one.
    Below(&'r str),
    /// Every host.
    Any,
}

impl fmt::Display for HostPattern<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => f.write_str(host),
            Self::Below(parent) => write!(f, "*.{parent}"),
            Self::Any => f.write_str("*"),
        }
    }
}

/// Why a route can't be added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RouteError {
    /// A host is a name or an address, without port, with at most one `*.` before it.
    #[error("the host pattern {0:?} is not valid")]
    BadHost(String),
    /// A prefix begins with `/`, has no query and no dot segments.
    #[error("the path prefix {0:?} is not valid")]
    BadPrefix(String),
    /// The same host and prefix again.
    #[error("host {host:?} and path {prefix:?} are routed already")]
    Duplicate {
        /// The host pattern, `*` for any.
        host: String,
        /// The path prefix.
        prefix: String,
    },
}

impl<T> Router<T> {
    /// A router without routes, to add some.
    pub fn builder() -> RouterBuilder<T> {
        RouterBuilder { exact: BTreeMap::new(), wildcard: BTreeMap::new(), any: BTreeMap::new() }
    }

    /// What a host (with or without port, as received) and a path are routed to. A path that does not begin with `/`
    /// (`*`) counts as `/`.
    pub fn find(&self, host: &str, path: &str) -> Option<&T> {
        Some(self.explain(host, path)?.value)
    }

    /// As [`Self::find`], with the pattern and the prefix that matched.
    pub fn explain(&self, host: &str, path: &str) -> Option<Found<'_, T>> {
        let path = decode_unreserved(path);
        let path = if path.starts_with('/') { &path } else { "/" };
        if !(self.exact.is_empty() && self.wildcard.is_empty())
            && let Some(host) = host::canonical(host)
        {
            if let Some((name, table)) = self.exact.get_key_value(&*host)
                && let Some(found) = table.find(path, HostPattern::Exact(name))
            {
                return Some(found);
            }
            if let Some(found) = self.find_below(&host, path) {
                return Some(found);
            }
        }
        self.any.find(path, HostPattern::Any)
    }

    fn find_below(&self, host: &str, path: &str) -> Option<Found<'_, T>> {
        if self.wildcard.is_empty() || host.starts_with('[') {
            return None;
        }
        let labels = host.bytes().filter(|&b| b == b'.').count() + 1;
        let mut parent = host;
        // from the longest parent to the shortest; those with more labels than any wildcard has are not looked up
        for left in (1..labels).rev() {
            parent = parent.split_once('.')?.1;
            if left <= self.wildcard_labels
                && let Some((name, table)) = self.wildcard.get_key_value(parent)
                && let Some(found) = table.find(path, HostPattern::Below(name))
            {
                return Some(found);
            }
        }
        None
    }

    /// Every route, in no particular order of hosts, the prefixes of a host in order.
    pub fn iter(&self) -> impl Iterator<Item = Found<'_, T>> {
        let exact = self.exact.iter().map(|(name, table)| (HostPattern::Exact(name), table));
        let below = self.wildcard.iter().map(|(name, table)| (HostPattern::Below(name), table));
        exact
            .chain(below)
            .chain([(HostPattern::Any, &self.any)])
            .flat_map(|(host, table)| table.entries.iter().map(move |entry| entry.found(host)))
    }
}

impl<T> fmt::Debug for Router<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|found| format!("{} {}", found.host, found.prefix))).finish()
    }
}

/// Collects routes.
#[derive(Debug)]
pub struct RouterBuilder<T> {
    exact: BTreeMap<String, BTreeMap<String, T>>,
    wildcard: BTreeMap<String, BTreeMap<String, T>>,
    any: BTreeMap<String, T>,
}

impl<T> RouterBuilder<T> {
    /// Adds a route. `None` and `*` are any host.
    pub fn route(mut self, host: Option<&str>, prefix: &str, value: T) -> Result<Self, RouteError> {
        let canonical_prefix = canonical_prefix(prefix)?;
        let pattern = host.filter(|host| *host != "*");
        let prefixes = match pattern.map(|pattern| (pattern, pattern.strip_prefix("*."))) {
            None => &mut self.any,
            Some((pattern, Some(parent))) => {
                let parent = canonical_pattern(parent, pattern)?;
                if parent.starts_with('[') {
                    return Err(RouteError::BadHost(pattern.to_owned()));
                }
                self.wildcard.entry(parent).or_default()
            }
            Some((pattern, None)) => self.exact.entry(canonical_pattern(pattern, pattern)?).or_default(),
        };
        if prefixes.contains_key(&canonical_prefix) {
            let host = pattern.unwrap_or("*").to_owned();
            return Err(RouteError::Duplicate { host, prefix: prefix.to_owned() });
        }
        prefixes.insert(canonical_prefix, value);
        Ok(self)
    }

    /// Makes the router.
    pub fn build(self) -> Router<T> {
        let tables = |hosts: BTreeMap<String, BTreeMap<String, T>>| -> HostMap<PathTable<T>> {
            hosts.into_iter().map(|(host, paths)| (host.into(), PathTable::new(paths))).collect()
        };
        let labels = |parent: &String| parent.split('.').count();
        Router {
            wildcard_labels: self.wildcard.keys().map(labels).max().unwrap_or(0),
            exact: tables(self.exact),
            wildcard: tables(self.wildcard),
            any: PathTable::new(self.any),
        }
    }
}

fn canonical_pattern(host: &str, pattern: &str) -> Result<String, RouteError> {
    let bad = || RouteError::BadHost(pattern.to_owned());
    // without a port, an address in brackets or bare
    let host = match host.parse::<std::net::Ipv6Addr>() {
        Ok(address) => Cow::Owned(format!("[{address}]")),
        Err(_) if host::HostPort::parse(host.as_bytes()).is_some_and(|parsed| parsed.host == host) => {
            Cow::Borrowed(host)
        }
        Err(_) => return Err(bad()),
    };
    Ok(host::canonical(&host).ok_or_else(bad)?.to_owned())
}

fn canonical_prefix(prefix: &str) -> Result<String, RouteError> {
    let decoded = decode_unreserved(prefix);
    let dots = decoded.split('/').any(|segment| matches!(segment, "." | ".."));
    if !decoded.starts_with('/') || decoded.contains(['?', '#', ' ']) || dots {
        return Err(RouteError::BadPrefix(prefix.to_owned()));
    }
    Ok(decoded.into_owned())
}

/// The prefixes of one host, sorted by their bytes.
///
/// Every prefix that matches a path is at or before the path in that order, and whatever stands between it and the path
/// begins with it. So the search goes to the last prefix that is not after the path, and from there only through the
/// prefixes that it begins with.
#[derive(Clone)]
struct PathTable<T> {
    entries: Vec<Entry<T>>,
}

#[derive(Clone)]
struct Entry<T> {
    prefix: Box<str>,
    // the longest other entry that this one begins with
    parent: Option<usize>,
    value: T,
}

impl<T> Entry<T> {
    fn found<'r>(&'r self, host: HostPattern<'r>) -> Found<'r, T> {
        Found { host, prefix: &self.prefix, value: &self.value }
    }
}

impl<T> PathTable<T> {
    fn new(paths: BTreeMap<String, T>) -> Self {
        let mut entries: Vec<Entry<T>> = Vec::with_capacity(paths.len());
        for (prefix, value) in paths {
            // the entry before, or one that it begins with
            let mut parent = entries.len().checked_sub(1);
            while let Some(index) = parent
                && !prefix.starts_with(&*entries[index].prefix)
            {
                parent = entries[index].parent;
            }
            entries.push(Entry { prefix: prefix.into(), parent, value });
        }
        Self { entries }
    }

    fn find<'r>(&'r self, path: &str, host: HostPattern<'r>) -> Option<Found<'r, T>> {
        let after = self.entries.partition_point(|entry| *entry.prefix <= *path);
        let mut candidate = after.checked_sub(1);
        while let Some(index) = candidate {
            let entry = &self.entries[index];
            if covers(&entry.prefix, path) {
                return Some(entry.found(host));
            }
            candidate = entry.parent;
        }
        None
    }
}

/// Whether a path is at or below a prefix.
fn covers(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || prefix.ends_with('/') || rest.starts_with('/'))
}

/// The path with `%XX` of unreserved characters (RFC 3986 section 2.3) decoded and all else as it is.
fn decode_unreserved(path: &str) -> Cow<'_, str> {
    let Some(first) = path.find('%') else { return Cow::Borrowed(path) };
    let mut decoded = Vec::new();
    let (mut done, mut at) = (0, first);
    let bytes = path.as_bytes();
    while let Some(offset) = bytes[at..].iter().position(|&b| b == b'%') {
        at += offset;
        match bytes.get(at + 1..at + 3).and_then(unreserved) {
            Some(byte) => {
                decoded.extend_from_slice(&bytes[done..at]);
                decoded.push(byte);
                at += 3;
                done = at;
            }
            None => at += 1,
        }
    }
    if done == 0 {
        return Cow::Borrowed(path);
    }
    decoded.extend_from_slice(&bytes[done..]);
    Cow::Owned(String::from_utf8(decoded).expect("ascii replaced whole ascii sequences of a str"))
}

fn unreserved(hex: &[u8]) -> Option<u8> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let byte = digit(hex[0])? << 4 | digit(hex[1])?;
    (byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)).then_some(byte)
}

/// FNV-1a, 64 bits. Only configured hosts are in the maps, so nobody can fill a bucket by asking.
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
