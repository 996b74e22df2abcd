//! The routes of one host by their paths.

use std::ops::Range;

use regex::bytes::{Regex, RegexSet, RegexSetBuilder};

use super::{
    HostMap,
    build::RouteError,
    pattern::{End, PathKey},
};
use crate::matcher::{RegexError, anchored, whole};

/// Routes of one host and path, by their places among all.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Group {
    start: u32,
    end: u32,
}

impl Group {
    pub(super) fn new(range: &Range<usize>) -> Self {
        let place = |at: usize| u32::try_from(at).expect("there is no memory for so many routes");
        Self { start: place(range.start), end: place(range.end) }
    }

    pub(super) fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }

    fn is_empty(self) -> bool {
        self.start == self.end
    }
}

#[derive(Clone, Default)]
pub(super) struct Table {
    exact: HostMap<Group>,
    /// The longest path in it: a longer one is not hashed.
    longest: usize,
    regexes: Option<Box<Regexes>>,
    /// The first is the root.
    nodes: Vec<Node>,
}

/// Regular expressions and the places of their routes, in the order in which they are asked.
#[derive(Clone)]
enum Regexes {
    One(Regex, Group),
    Many(RegexSet, Vec<Group>),
}

/// What some routes have after the same segments.
#[derive(Clone, Default)]
struct Node {
    children: HostMap<u32>,
    /// After a segment of any kind.
    any: Option<u32>,
    here: Group,
    below: Group,
    here_or_below: Group,
}

/// The most memory that all regular expressions of a host take together, and their cache, in bytes.
const MAX_SET_BYTES: usize = 16 << 20;

impl Table {
    /// Adds the routes of a path. Those with regular expressions come together, each with its pattern.
    pub(super) fn insert(
        &mut self,
        key: &PathKey,
        group: Group,
        patterns: &[&str],
    ) -> Result<(), RouteError> {
        match key {
            PathKey::Exact(path) => {
                self.longest = self.longest.max(path.len());
                self.exact.insert(path.as_str().into(), group);
            }
            PathKey::Regex => self.regexes = Some(Box::new(Regexes::new(patterns, group)?)),
            PathKey::Tree(segments, end) => {
                let node = self.node(segments);
                match end {
                    End::Here => node.here = group,
                    End::Below => node.below = group,
                    End::HereOrBelow => node.here_or_below = group,
                }
            }
        }
        Ok(())
    }

    fn node(&mut self, segments: &[Option<String>]) -> &mut Node {
        if self.nodes.is_empty() {
            self.nodes.push(Node::default());
        }
        let mut at = 0;
        for segment in segments {
            let next = u32::try_from(self.nodes.len()).expect("there is no memory for so many routes");
            let child = match segment {
                Some(literal) => *self.nodes[at].children.entry(literal.as_str().into()).or_insert(next),
                None => *self.nodes[at].any.get_or_insert(next),
            };
            if child == next {
                self.nodes.push(Node::default());
            }
            at = child as usize;
        }
        &mut self.nodes[at]
    }

    /// Shows the routes that match a path, which begins with `/`, until one is accepted.
    pub(super) fn search<R>(&self, path: &str, accept: &mut impl FnMut(Group) -> Option<R>) -> Option<R> {
        if !self.exact.is_empty()
            && path.len() <= self.longest
            && let Some(group) = self.exact.get(path)
            && let Some(found) = accept(*group)
        {
            return Some(found);
        }
        if let Some(regexes) = &self.regexes
            && let Some(found) = regexes.search(path, accept)
        {
            return Some(found);
        }
        self.walk(self.nodes.first()?, Some(&path[1..]), accept)
    }

    /// Goes down as far as there are nodes, and back up to what covers everything below. Each node is visited once at most.
    fn walk<R>(
        &self,
        node: &Node,
        rest: Option<&str>,
        accept: &mut impl FnMut(Group) -> Option<R>,
    ) -> Option<R> {
        let mut offer = |group: Group| if group.is_empty() { None } else { accept(group) };
        let Some(rest) = rest else { return offer(node.here).or_else(|| offer(node.here_or_below)) };
        if !node.children.is_empty() || node.any.is_some() {
            let (segment, after) = match rest.bytes().position(|b| b == b'/') {
                Some(at) => (&rest[..at], Some(&rest[at + 1..])),
                None => (rest, None),
            };
            if let Some(child) = node.children.get(segment)
                && let Some(found) = self.walk(&self.nodes[*child as usize], after, accept)
            {
                return Some(found);
            }
            if let Some(child) = node.any
                && !segment.is_empty()
                && let Some(found) = self.walk(&self.nodes[child as usize], after, accept)
            {
                return Some(found);
            }
        }
        let mut offer = |group: Group| if group.is_empty() { None } else { accept(group) };
        offer(node.below).or_else(|| offer(node.here_or_below))
    }
}

impl Regexes {
    fn new(patterns: &[&str], group: Group) -> Result<Self, RouteError> {
        let bad = |pattern: &str, error| RouteError::BadRegex { pattern: pattern.to_owned(), error };
        if let [pattern] = patterns {
            return Ok(Self::One(whole(pattern).map_err(|error| bad(pattern, error))?, group));
        }
        let set = RegexSetBuilder::new(patterns.iter().map(|pattern| anchored(pattern)))
            .unicode(false)
            .size_limit(MAX_SET_BYTES)
            .dfa_size_limit(MAX_SET_BYTES)
            .build()
            .map_err(|error| {
                bad(patterns[0], RegexError::Invalid(format!("all of one host together: {error}")))
            })?;
        let groups = group.range().map(|at| Group::new(&(at..at + 1))).collect();
        Ok(Self::Many(set, groups))
    }

    fn search<R>(&self, path: &str, accept: &mut impl FnMut(Group) -> Option<R>) -> Option<R> {
        match self {
            Self::One(regex, group) => regex.is_match(path.as_bytes()).then(|| accept(*group)).flatten(),
            // in the order of their places, which is the one they are asked in
            Self::Many(set, groups) => set.matches(path.as_bytes()).iter().find_map(|at| accept(groups[at])),
        }
    }
}
