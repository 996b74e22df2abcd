//! From routes to the tables that they are looked up in.

use std::collections::{BTreeMap, HashMap};

use super::{
    HostMap, Route, Router, explain,
    pattern::{HostKey, PathKey},
    table::{Group, Table},
};
use crate::matcher::{Conditions, PathMatch, RegexError, RouteMatch, are_disjoint, rank, whole};

/// The most segments of a route's path.
pub const MAX_DEPTH: usize = 128;

/// The most regular expressions of one host.
pub const MAX_REGEXES: usize = 1000;

/// Why a route can't be added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RouteError {
    /// A host is a name or an address, without port, with at most one `*.` before it.
    #[error("the host pattern {0:?} is not valid")]
    BadHost(String),
    /// A path begins with `/`, has no query and no dot segments; names of captures stand in braces around a whole
    /// segment, each once, and `{*name}` last.
    #[error("the path {0:?} is not valid")]
    BadPath(String),
    /// A path has at most [`MAX_DEPTH`] segments.
    #[error("the path {0:?} has more than {MAX_DEPTH} segments")]
    TooDeep(String),
    /// A regular expression that is none, or too large.
    #[error("the regular expression {pattern:?} is not valid: {error}")]
    BadRegex {
        /// The expression.
        pattern: String,
        /// What is wrong with it.
        error: RegexError,
    },
    /// A host has at most [`MAX_REGEXES`] routes with regular expressions.
    #[error("the host {0:?} has more than {MAX_REGEXES} regular expressions")]
    TooManyRegexes(String),
    /// A condition's name or value.
    #[error("a condition is not valid: {0}")]
    BadCondition(String),
    /// Both could match the same request, and nothing says which one does.
    #[error("{route} could match the same requests as another route: give one of them a `priority`")]
    Ambiguous {
        /// The route.
        route: String,
        /// How many routes were added before the other one.
        other: usize,
    },
}

/// Collects routes.
#[derive(Debug)]
pub struct RouterBuilder<T> {
    routes: Vec<Pending<T>>,
    // those of one host and path
    groups: HashMap<(HostKey, PathKey), Vec<usize>>,
}

#[derive(Debug)]
struct Pending<T> {
    matches: RouteMatch,
    conditions: Option<Box<Conditions>>,
    value: T,
}

impl<T> Default for RouterBuilder<T> {
    fn default() -> Self {
        Self { routes: Vec::new(), groups: HashMap::new() }
    }
}

impl<T> RouterBuilder<T> {
    /// Adds a route for a path prefix without further conditions. `None` and `*` are any host.
    pub fn route(mut self, host: Option<&str>, prefix: &str, value: T) -> Result<Self, RouteError> {
        let matches = RouteMatch::new(host).with_path(PathMatch::Prefix(prefix.to_owned()));
        self.add(matches, value)?;
        Ok(self)
    }

    /// Adds a route. After an error the builder is as it was before.
    pub fn add(&mut self, mut matches: RouteMatch, value: T) -> Result<(), RouteError> {
        let host = HostKey::of(matches.host.as_deref())?;
        matches.host = host.pattern();
        let path = PathKey::of(&matches.path)?;
        if let PathKey::Tree(segments, _) = &path
            && segments.len() > MAX_DEPTH
        {
            return Err(RouteError::TooDeep(matches.path.to_string()));
        }
        if let PathMatch::Regex(pattern) = &matches.path {
            whole(pattern).map_err(|error| RouteError::BadRegex { pattern: pattern.clone(), error })?;
        }
        if matches.query.iter().any(|(name, _)| name.is_empty()) {
            return Err(RouteError::BadCondition("a query parameter has no name".to_owned()));
        }
        let conditions =
            Conditions::new(&matches).map_err(|error| RouteError::BadCondition(error.to_string()))?;
        let number = self.routes.len();
        let wanted = rank(&matches);
        let same = self.groups.entry((host, path)).or_default();
        if matches!(matches.path, PathMatch::Regex(_)) && same.len() == MAX_REGEXES {
            return Err(RouteError::TooManyRegexes(matches.host.unwrap_or_else(|| "*".to_owned())));
        }
        let equal = |other: &&usize| {
            let other = &self.routes[**other].matches;
            rank(other) == wanted && !are_disjoint(other, &matches)
        };
        if let Some(&other) = same.iter().find(equal) {
            return Err(RouteError::Ambiguous { route: explain::name(&matches), other });
        }
        same.push(number);
        self.routes.push(Pending { matches, conditions, value });
        Ok(())
    }

    /// Makes the router.
    ///
    /// # Errors
    ///
    /// [`RouteError::BadRegex`] when all regular expressions of a host take too much together.
    pub fn build(self) -> Result<Router<T>, RouteError> {
        let looks_at_connection =
            self.routes.iter().filter_map(|route| route.conditions.as_ref()).any(|c| c.look_at_connection());
        let mut pending: Vec<Option<Pending<T>>> = self.routes.into_iter().map(Some).collect();
        let mut tables: BTreeMap<HostKey, Table> = BTreeMap::new();
        let mut routes = Vec::with_capacity(pending.len());
        for ((host, path), mut numbers) in self.groups {
            // a stable order, so that equal ones, which exclude each other, stand as they were added
            numbers.sort_by_key(|number| pending[*number].as_ref().map(|route| rank(&route.matches)));
            let start = routes.len();
            for number in numbers {
                if let Some(Pending { matches, conditions, value }) = pending[number].take() {
                    routes.push(Route { conditions, value, matches: Box::new(matches), number });
                }
            }
            let group = start..routes.len();
            let patterns: Vec<&str> = routes[group.clone()]
                .iter()
                .filter_map(|route| match &route.matches.path {
                    PathMatch::Regex(pattern) => Some(pattern.as_str()),
                    _ => None,
                })
                .collect();
            tables.entry(host).or_default().insert(&path, Group::new(&group), &patterns)?;
        }
        let (mut exact, mut wildcard) = (HostMap::default(), HostMap::default());
        let (mut any, mut wildcard_labels) = (Table::default(), 0);
        for (host, table) in tables {
            match host {
                HostKey::Exact(host) => drop(exact.insert(host.into(), table)),
                HostKey::Below(parent) => {
                    wildcard_labels = wildcard_labels.max(parent.split('.').count());
                    wildcard.insert(parent.into(), table);
                }
                HostKey::Any => any = table,
            }
        }
        Ok(Router { exact, wildcard, wildcard_labels, any, routes, looks_at_connection })
    }
}
