//! Which route a request has, and why.

use std::fmt;

use super::{Found, Lookup, Router};
use crate::matcher::{Asked, Miss, RouteMatch, ValueMatch};

/// A route in one line.
pub(super) fn name(matches: &RouteMatch) -> String {
    let mut name = format!("host {}, {}", matches.host.as_deref().unwrap_or("*"), matches.path);
    let mut add = |what: String| {
        name.push_str(", ");
        name.push_str(&what);
    };
    if !matches.methods.is_empty() {
        let methods: Vec<_> = matches.methods.iter().map(http::Method::as_str).collect();
        add(format!("method {}", methods.join("|")));
    }
    for (header, value) in &matches.headers {
        add(format!("field {header} {}", Shown(value)));
    }
    for (parameter, value) in &matches.query {
        add(format!("query {parameter} {}", Shown(value)));
    }
    if !matches.clients.is_empty() {
        let networks: Vec<_> = matches.clients.iter().map(ToString::to_string).collect();
        add(format!("client {}", networks.join("|")));
    }
    if !matches.protocols.is_empty() {
        add(format!("protocol {:?}", matches.protocols).to_ascii_lowercase());
    }
    if let Some(scheme) = matches.scheme {
        add(format!("scheme {scheme:?}").to_ascii_lowercase());
    }
    if matches.priority != 0 {
        add(format!("priority {}", matches.priority));
    }
    name
}

struct Shown<'a>(&'a ValueMatch);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ValueMatch::Present => f.write_str("present"),
            ValueMatch::Absent => f.write_str("absent"),
            ValueMatch::Exact(value) => write!(f, "is {value:?}"),
            ValueMatch::Regex(pattern) => write!(f, "matches {pattern:?}"),
        }
    }
}

/// A route whose host and path match.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Considered {
    /// The route in words.
    pub route: String,
    /// How many routes were added before it.
    pub number: usize,
    /// Why it does not take the request.
    pub miss: Option<Miss>,
}

/// Every route whose host and path match a request, in the order in which they were asked, to the one that takes it.
/// `Display` says it in lines of text.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Explanation {
    /// The routes. The last one takes the request if it has no miss.
    pub considered: Vec<Considered>,
    /// The methods of a 405; empty otherwise.
    pub allowed: Vec<http::Method>,
}

impl Explanation {
    /// The number of the route that takes the request.
    pub fn route(&self) -> Option<usize> {
        self.considered.last().filter(|last| last.miss.is_none()).map(|last| last.number)
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for considered in &self.considered {
            let number = considered.number + 1;
            match &considered.miss {
                Some(miss) => writeln!(f, "  not route {number} ({}): {miss}", considered.route)?,
                None if self.considered.len() == 1 => {
                    writeln!(f, "route {number} ({}): the most specific host and path", considered.route)?;
                }
                None => {
                    writeln!(f, "route {number} ({}): the next one whose conditions hold", considered.route)?;
                }
            }
        }
        if self.route().is_some() {
            return Ok(());
        }
        if self.allowed.is_empty() {
            return writeln!(f, "no route: 404");
        }
        let methods: Vec<_> = self.allowed.iter().map(http::Method::as_str).collect();
        writeln!(f, "no route for this method: 405, Allow: {}", methods.join(", "))
    }
}

impl<T> Router<T> {
    /// As [`Self::lookup`], with everything that was looked at on the way.
    pub fn explain(&self, asked: &Asked<'_>) -> Explanation {
        let mut considered = Vec::new();
        self.search(asked, &mut |route| {
            let miss = route.conditions.as_ref().and_then(|conditions| conditions.test(asked));
            let taken = miss.is_none();
            considered.push(Considered { route: name(&route.matches), number: route.number, miss });
            taken
        });
        let allowed = match self.lookup(asked) {
            Lookup::MethodNotAllowed(allowed) => allowed,
            _ => Vec::new(),
        };
        Explanation { considered, allowed }
    }
}

impl<T> fmt::Display for Found<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&name(self.matches))
    }
}
