//! Paths of routes, taken apart.

use super::{Cow, RouteError, decode_unreserved};
use crate::{host, matcher::PathMatch, path::has_dots};

/// A part of a path of a route.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Segment {
    /// This one.
    Literal(String),
    /// Any one that is not empty.
    Any(String),
    /// All that follow.
    Rest(String),
}

/// A path's pattern without the names of its captures: what makes two routes stand on one path.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum PathKey {
    Exact(String),
    Regex,
    /// `None` is any segment.
    Tree(Vec<Option<String>>, End),
}

/// Where a path in the tree of segments may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum End {
    /// There.
    Here,
    /// At least one segment further, which may be empty.
    Below,
    /// There or further.
    HereOrBelow,
}

impl PathKey {
    pub(super) fn of(path: &PathMatch) -> Result<Self, RouteError> {
        let bad = |text: &str| RouteError::BadPath(text.to_owned());
        Ok(match path {
            PathMatch::Exact(path) => Self::Exact(canonical_path(path).ok_or_else(|| bad(path))?),
            PathMatch::Regex(_) => Self::Regex,
            PathMatch::Prefix(prefix) => {
                let prefix = canonical_path(prefix).ok_or_else(|| bad(prefix))?;
                let below = prefix.strip_prefix('/').unwrap_or_default();
                let (below, end) = match below.strip_suffix('/') {
                    None if below.is_empty() => (None, End::Below),
                    None => (Some(below), End::HereOrBelow),
                    // `//`: the root, then one that is empty
                    Some(below) => (Some(below), End::Below),
                };
                let literals = below.map(|below| below.split('/').map(|one| Some(one.to_owned())).collect());
                Self::Tree(literals.unwrap_or_default(), end)
            }
            PathMatch::Segments(pattern) => {
                let parts = segments(pattern).ok_or_else(|| bad(pattern))?;
                if parts.iter().all(|part| matches!(part, Segment::Literal(_))) {
                    return Ok(Self::Exact(canonical_path(pattern).ok_or_else(|| bad(pattern))?));
                }
                let end = if matches!(parts.last(), Some(Segment::Rest(_))) { End::Below } else { End::Here };
                let literals = parts.into_iter().filter_map(|part| match part {
                    Segment::Literal(literal) => Some(Some(literal)),
                    Segment::Any(_) => Some(None),
                    Segment::Rest(_) => None,
                });
                Self::Tree(literals.collect(), end)
            }
        })
    }
}

/// A path of a route in the form that is compared: it begins with `/`, has no query and no dot segments.
pub(crate) fn canonical_path(path: &str) -> Option<String> {
    let decoded = decode_unreserved(path);
    let odd = |c: char| matches!(c, '?' | '#' | ' ') || c.is_control();
    (decoded.starts_with('/') && !decoded.contains(odd) && !has_dots(&decoded)).then(|| decoded.into_owned())
}

/// The parts of a pattern of segments. `None` for what is none: names of letters, digits and `_`, each once, in braces around the
/// whole segment.
pub(crate) fn segments(pattern: &str) -> Option<Vec<Segment>> {
    let pattern = canonical_path(pattern)?;
    let below = pattern.strip_prefix('/')?;
    let mut parts = Vec::new();
    let mut names: Vec<&str> = Vec::new();
    let count = below.split('/').count();
    for (at, segment) in below.split('/').enumerate() {
        let Some(name) = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) else {
            if segment.contains(['{', '}']) {
                return None;
            }
            parts.push(Segment::Literal(segment.to_owned()));
            continue;
        };
        let (name, rest) = match name.strip_prefix('*') {
            Some(name) => (name, true),
            None => (name, false),
        };
        if !is_name(name) || names.contains(&name) || rest && at + 1 != count {
            return None;
        }
        names.push(name);
        let name = name.to_owned();
        parts.push(if rest { Segment::Rest(name) } else { Segment::Any(name) });
    }
    Some(parts)
}

/// The name of a capture.
pub(crate) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && !name.starts_with(|c: char| c.is_ascii_digit())
}

/// A host's pattern.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum HostKey {
    Exact(String),
    Below(String),
    Any,
}

impl HostKey {
    pub(super) fn of(pattern: Option<&str>) -> Result<Self, RouteError> {
        let Some(pattern) = pattern.filter(|pattern| *pattern != "*") else { return Ok(Self::Any) };
        match pattern.strip_prefix("*.") {
            Some(parent) => {
                let parent = canonical_host(parent, pattern)?;
                if parent.starts_with('[') {
                    return Err(RouteError::BadHost(pattern.to_owned()));
                }
                Ok(Self::Below(parent))
            }
            None => canonical_host(pattern, pattern).map(Self::Exact),
        }
    }

    pub(super) fn pattern(&self) -> Option<String> {
        match self {
            Self::Exact(host) => Some(host.clone()),
            Self::Below(parent) => Some(format!("*.{parent}")),
            Self::Any => None,
        }
    }
}

fn canonical_host(host: &str, pattern: &str) -> Result<String, RouteError> {
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
