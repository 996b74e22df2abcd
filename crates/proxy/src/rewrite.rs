//! What a route makes of a request's target.
//!
//! A rewrite begins with the path that was routed, in the form that was compared, so that nothing is forwarded that was
//! not looked at. What it makes is looked at again: it begins with `/`, has no space, control character, `#` or dot
//! segment, and no more than [`MAX_TARGET`] bytes. A request whose target would be anything else is refused.
//!
//! A [`Template`] is text with `{name}` in it. The names are those of the route's path: the captures of its segments, the
//! groups of its regular expression, and `rest` for what follows a prefix (without the slash between).

use std::borrow::Cow;

use http::uri::PathAndQuery;
use regex::bytes::Regex;

use crate::{
    fault::{ClientFault, Fault},
    matcher::{PathMatch, RegexError, whole},
    path::{covers, decode_unreserved, has_dots},
    router::{Segment, canonical_path, segments},
};

/// The most bytes that a rewritten target may have: captures may stand in it more than once.
pub const MAX_TARGET: usize = 16 << 10;

/// Why a rewrite can't be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RewriteError {
    /// It begins with `/` and has no dot segments.
    #[error("{0:?} is no path")]
    BadPath(String),
    /// A brace that is not closed, or closes nothing.
    #[error("a brace in {0:?} has no other one")]
    Brace(String),
    /// A capture that the route's path does not have.
    #[error("the path captures nothing called {name:?}; it has: {known}")]
    UnknownCapture {
        /// The name.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// The route's path does not begin with the prefix that is to be replaced.
    #[error("the route's path is not below {0:?}")]
    NotBelow(String),
    /// The route's path is none.
    #[error("the route's path is not valid")]
    BadRoute,
    /// The route's regular expression is none.
    #[error(transparent)]
    BadRegex(#[from] RegexError),
}

/// A request whose target would be none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// A character that no target has, or no slash at its beginning.
    #[error("the rewritten target is not valid")]
    Invalid,
    /// A `.` or `..` segment, in any spelling.
    #[error("the rewritten path has dot segments")]
    DotSegments,
    /// More than [`MAX_TARGET`] bytes.
    #[error("the rewritten target is too long")]
    TooLong,
}

impl From<TargetError> for Fault {
    fn from(error: TargetError) -> Self {
        let fault = match error {
            TargetError::TooLong => ClientFault::TargetTooLong,
            _ => ClientFault::Malformed,
        };
        Fault::client(fault).with_source(error)
    }
}

/// Where a capture is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The segment of this number.
    Segment(usize),
    /// This segment and all that follow.
    From(usize),
    /// What follows so many bytes, without a slash in front.
    After(usize),
    /// The group of this number.
    Group(usize),
}

/// What the path of a route captures.
#[derive(Clone, Debug)]
struct Captures {
    names: Vec<(String, Place)>,
    regex: Option<Regex>,
}

impl Captures {
    fn new(path: &PathMatch) -> Result<Self, RewriteError> {
        let mut regex = None;
        let names = match path {
            PathMatch::Exact(_) => Vec::new(),
            PathMatch::Prefix(prefix) => {
                let prefix = canonical_path(prefix).ok_or(RewriteError::BadRoute)?;
                vec![("rest".to_owned(), Place::After(prefix.trim_end_matches('/').len()))]
            }
            PathMatch::Segments(pattern) => segments(pattern)
                .ok_or(RewriteError::BadRoute)?
                .into_iter()
                .enumerate()
                .filter_map(|(at, segment)| match segment {
                    Segment::Literal(_) => None,
                    Segment::Any(name) => Some((name, Place::Segment(at))),
                    Segment::Rest(name) => Some((name, Place::From(at))),
                })
                .collect(),
            PathMatch::Regex(pattern) => {
                let compiled = regex.insert(whole(pattern)?);
                let groups = compiled.capture_names().enumerate();
                groups
                    .flat_map(|(at, name)| {
                        [Some(at.to_string()), name.map(str::to_owned)].map(|name| (name, at))
                    })
                    .filter_map(|(name, at)| Some((name?, Place::Group(at))))
                    .collect()
            }
        };
        Ok(Self { names, regex })
    }

    fn place(&self, name: &str) -> Result<Place, RewriteError> {
        self.names.iter().find(|(known, _)| known == name).map(|(_, place)| *place).ok_or_else(|| {
            let known: Vec<_> = self.names.iter().map(|(name, _)| name.as_str()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            RewriteError::UnknownCapture { name: name.to_owned(), known }
        })
    }
}

/// The part of a path where a capture is. A group that took no part is empty.
fn captured<'p>(place: Place, path: &'p str, groups: Option<&regex::bytes::Captures<'_>>) -> Option<&'p str> {
    let below = path.strip_prefix('/')?;
    match place {
        Place::Segment(at) => below.split('/').nth(at),
        Place::From(at) => below.splitn(at + 1, '/').nth(at),
        Place::After(len) => {
            let rest = path.get(len..)?;
            Some(rest.strip_prefix('/').unwrap_or(rest))
        }
        Place::Group(at) => match groups?.get(at) {
            // not in the middle of a character
            Some(found) => path.get(found.range()),
            None => Some(""),
        },
    }
}

#[derive(Clone, Debug)]
enum Part {
    Text(String),
    Capture(Place),
}

/// Text with captures of a route's path in it.
#[derive(Clone, Debug)]
pub struct Template {
    parts: Vec<Part>,
    regex: Option<Regex>,
}

impl Template {
    /// Reads one for a route with this path.
    pub fn new(text: &str, path: &PathMatch) -> Result<Self, RewriteError> {
        let captures = Captures::new(path)?;
        let brace = || RewriteError::Brace(text.to_owned());
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, from) = rest.split_at(at);
            let inner = from.strip_prefix('{').ok_or_else(brace)?;
            let (name, after) = inner.split_once('}').ok_or_else(brace)?;
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            // `{*rest}` may be written as it is in the path
            let place = captures.place(name.strip_prefix('*').unwrap_or(name))?;
            parts.push(Part::Capture(place));
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        let groups = parts.iter().any(|part| matches!(part, Part::Capture(Place::Group(_))));
        Ok(Self { parts, regex: captures.regex.filter(|_| groups) })
    }

    /// Whether it is the same for every request.
    pub fn is_constant(&self) -> bool {
        self.parts.iter().all(|part| matches!(part, Part::Text(_)))
    }

    /// The text for a path, as received, that the route matched.
    pub fn render(&self, path: &str) -> Result<String, TargetError> {
        let path = decode_unreserved(path);
        let path: &str = if path.starts_with('/') { &path } else { "/" };
        let groups = self.regex.as_ref().and_then(|regex| regex.captures(path.as_bytes()));
        let mut text = String::new();
        let mut in_query = false;
        for part in &self.parts {
            match part {
                Part::Text(part) => {
                    text.push_str(part);
                    in_query |= part.contains('?');
                }
                Part::Capture(place) => {
                    let value = captured(*place, path, groups.as_ref()).ok_or(TargetError::Invalid)?;
                    push_capture(&mut text, value, in_query);
                }
            }
            if text.len() > MAX_TARGET {
                return Err(TargetError::TooLong);
            }
        }
        Ok(text)
    }
}

/// What was captured in a path stays one value in a query: what divides parameters there is encoded (RFC 3986 section 2.2).
fn push_capture(text: &mut String, value: &str, in_query: bool) {
    if !in_query || !value.contains(['&', '=', '+', ';', '?']) {
        text.push_str(value);
        return;
    }
    for c in value.chars() {
        match c {
            '&' => text.push_str("%26"),
            '=' => text.push_str("%3D"),
            '+' => text.push_str("%2B"),
            ';' => text.push_str("%3B"),
            '?' => text.push_str("%3F"),
            c => text.push(c),
        }
    }
}

/// What becomes of a target on its way to a cluster.
#[derive(Clone, Debug)]
pub struct Rewrite(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Prefix { from: Box<str>, to: Box<str> },
    Template(Template),
}

impl Rewrite {
    /// Takes a prefix away, on a segment border: with `/api` a request for `/api/x` goes on as `/x`, one for `/api` as `/`.
    pub fn strip_prefix(prefix: &str, route: &PathMatch) -> Result<Self, RewriteError> {
        Self::replace_prefix(prefix, "/", route)
    }

    /// Puts another prefix in the place of one. The route's path must be at or below it; the path of a regular expression
    /// can't be, [`Self::template`] is for that.
    pub fn replace_prefix(prefix: &str, by: &str, route: &PathMatch) -> Result<Self, RewriteError> {
        let canonical = |path: &str| {
            let path = canonical_path(path).filter(|path| !path.contains(['{', '}']));
            path.map(|path| path.trim_end_matches('/').to_owned())
        };
        let from = canonical(prefix).ok_or_else(|| RewriteError::BadPath(prefix.to_owned()))?;
        let to = canonical(by).ok_or_else(|| RewriteError::BadPath(by.to_owned()))?;
        let path = match route {
            PathMatch::Prefix(path) | PathMatch::Exact(path) | PathMatch::Segments(path) => {
                canonical_path(path)
            }
            PathMatch::Regex(_) => None,
        };
        if !path.is_some_and(|path| covers(&from, &path)) {
            return Err(RewriteError::NotBelow(prefix.to_owned()));
        }
        Ok(Self(Kind::Prefix { from: from.into(), to: to.into() }))
    }

    /// Puts a [`Template`] in the place of the path, and of the query if the template has one.
    pub fn template(text: &str, route: &PathMatch) -> Result<Self, RewriteError> {
        if !text.starts_with('/') {
            return Err(RewriteError::BadPath(text.to_owned()));
        }
        let template = Template::new(text, route)?;
        if template.is_constant() && check(text).is_err() {
            return Err(RewriteError::BadPath(text.to_owned()));
        }
        Ok(Self(Kind::Template(template)))
    }

    /// The target that is forwarded in place of the one that was routed. A server-wide OPTIONS (`*`) stays as it is.
    pub fn apply(&self, target: &PathAndQuery) -> Result<PathAndQuery, TargetError> {
        if target.as_str() == "*" {
            return Ok(target.clone());
        }
        let mut made = match &self.0 {
            Kind::Template(template) => template.render(target.path())?,
            Kind::Prefix { from, to } => {
                let path = decode_unreserved(target.path());
                let rest = path.strip_prefix(&**from).filter(|rest| rest.is_empty() || rest.starts_with('/'));
                let rest = rest.ok_or(TargetError::Invalid)?;
                match (&**to, rest) {
                    ("", "") => "/".to_owned(),
                    (to, rest) => format!("{to}{rest}"),
                }
            }
        };
        // who reads the target as a reference would take what is behind two slashes for a host (RFC 3986 section 4.2)
        if made.starts_with("//") && !target.path().starts_with("//") {
            let slashes = made.bytes().take_while(|&b| b == b'/').count();
            made.drain(..slashes - 1);
        }
        if let Some(query) = target.query()
            && !made.contains('?')
        {
            made.push('?');
            made.push_str(query);
        }
        check(&made)
    }
}

/// A target that may be forwarded.
fn check(target: &str) -> Result<PathAndQuery, TargetError> {
    if target.len() > MAX_TARGET {
        return Err(TargetError::TooLong);
    }
    if !target.starts_with('/') || target.bytes().any(|b| b <= b' ' || b == 0x7f || b == b'#') {
        return Err(TargetError::Invalid);
    }
    let path = target.split('?').next().unwrap_or_default();
    if has_dots(path) {
        return Err(TargetError::DotSegments);
    }
    PathAndQuery::try_from(target).map_err(|_| TargetError::Invalid)
}

/// The target of a redirect: a URI whose authority is fixed, and whose path may have captures in it.
#[derive(Clone, Debug)]
pub struct RedirectTarget {
    origin: String,
    /// `None`: the path of the request.
    path: Option<Template>,
    keep_query: bool,
}

impl RedirectTarget {
    /// To an absolute URI. Without a path (or with `/`) the request's own path is kept. `keep_query` says whether its
    /// query is kept; by default it is where the path is. A query of the URI's own goes before it.
    pub fn new(to: &http::Uri, keep_query: Option<bool>, route: &PathMatch) -> Result<Self, RewriteError> {
        let text = to.path_and_query().map_or("", |target| target.as_str());
        let rooted = format!("/{text}");
        let text = if text.starts_with('?') { &rooted } else { text };
        let path = match text {
            "" | "/" => None,
            text => Some(Template::new(text, route)?),
        };
        let scheme = to.scheme_str().unwrap_or("https");
        let authority = to.authority().map_or("", |authority| authority.as_str());
        Ok(Self {
            origin: format!("{scheme}://{authority}"),
            keep_query: keep_query.unwrap_or(path.is_none()),
            path,
        })
    }

    /// The value of `Location` for a request's target.
    pub fn location(&self, target: &PathAndQuery) -> Result<http::HeaderValue, TargetError> {
        let path = match &self.path {
            None => Cow::Borrowed(target.path()),
            Some(template) => Cow::Owned(template.render(target.path())?),
        };
        // an absolute form without a path, or a server-wide OPTIONS
        let path = if path.starts_with('/') { path } else { Cow::Borrowed("/") };
        let mut location = format!("{}{path}", self.origin);
        if self.keep_query
            && let Some(query) = target.query()
        {
            location.push(if path.contains('?') { '&' } else { '?' });
            location.push_str(query);
        }
        if location.bytes().any(|b| b <= b' ' || b == 0x7f) {
            return Err(TargetError::Invalid);
        }
        http::HeaderValue::from_maybe_shared(bytes::Bytes::from(location)).map_err(|_| TargetError::Invalid)
    }
}

#[cfg(test)]
mod tests;
