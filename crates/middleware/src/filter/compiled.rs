//! Rules made ready to be asked.

use std::{
    borrow::Cow,
    cell::OnceCell,
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use http::{HeaderName, HeaderValue, Method, Request, header::HOST};
use regex::bytes::{Regex, RegexBuilder};

use super::{
    Action, CidrSet, ClientSet, FieldPattern, PathPattern, Rule,
    path::{Prefixes, Readings, Written, is_under, trimmed},
};
#[cfg(feature = "country")]
use super::{Countries, CountryCode};
use crate::{host::Host, percent};

/// The longest text of a regular expression or glob.
const MAX_PATTERN: usize = 4096;
/// The most memory that one takes, and its automaton.
const MAX_COMPILED: usize = 1 << 20;

/// What rules refer to by name: content that comes from elsewhere and may be replaced while it is in use.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct FilterSets {
    /// Sets of networks by name.
    pub clients: HashMap<String, ClientSet>,
    /// Tells the countries of clients.
    #[cfg(feature = "country")]
    pub countries: Option<Countries>,
}

impl FilterSets {
    /// Adds a set of networks.
    #[must_use]
    pub fn with_clients(mut self, name: impl Into<String>, set: ClientSet) -> Self {
        self.clients.insert(name.into(), set);
        self
    }

    /// Sets [`FilterSets::countries`].
    #[cfg(feature = "country")]
    #[must_use]
    pub fn with_countries(mut self, countries: Countries) -> Self {
        self.countries = Some(countries);
        self
    }
}

/// Why rules can't be made ready.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilterError {
    /// A regular expression is wrong or too large.
    #[error("rule {rule}: the regular expression `{pattern}` is wrong or too large")]
    Regex {
        /// Which rule, from 1.
        rule: usize,
        /// The expression.
        pattern: String,
        /// What is wrong with it.
        source: Box<regex::Error>,
    },
    /// A glob is wrong.
    #[error("rule {rule}: the glob `{pattern}` is wrong")]
    Glob {
        /// Which rule, from 1.
        rule: usize,
        /// The glob.
        pattern: String,
        /// What is wrong with it.
        source: globset::Error,
    },
    /// A pattern is longer than 4096 bytes.
    #[error("rule {rule}: a pattern is longer than {MAX_PATTERN} bytes")]
    TooLong {
        /// Which rule, from 1.
        rule: usize,
    },
    /// A rule names a set that there is not.
    #[error("rule {rule}: there is no set of clients `{name}`")]
    UnknownSet {
        /// Which rule, from 1.
        rule: usize,
        /// The name.
        name: String,
    },
    /// A rule asks for countries and there is no database.
    #[error("rule {rule}: countries need a database")]
    NoCountries {
        /// Which rule, from 1.
        rule: usize,
    },
}

/// What of a request is worked out at most once, for all rules.
pub(super) struct Facts<'r, B> {
    request: &'r Request<B>,
    path: OnceCell<Readings<'r>>,
    query: OnceCell<Option<[Cow<'r, [u8]>; 3]>>,
    client: OnceCell<Option<IpAddr>>,
    #[cfg(feature = "country")]
    country: OnceCell<Option<CountryCode>>,
}

impl<'r, B> Facts<'r, B> {
    pub(super) fn of(request: &'r Request<B>) -> Self {
        Self {
            request,
            path: OnceCell::new(),
            query: OnceCell::new(),
            client: OnceCell::new(),
            #[cfg(feature = "country")]
            country: OnceCell::new(),
        }
    }

    pub(super) fn path(&self) -> &Readings<'r> {
        self.path.get_or_init(|| Readings::of(self.request.uri().path().as_bytes()))
    }

    fn query(&self) -> Option<&[Cow<'r, [u8]>; 3]> {
        let query = self.query.get_or_init(|| {
            let query = self.request.uri().query()?.as_bytes();
            if !query.iter().any(|byte| matches!(byte, b'%' | b'+')) {
                return Some([Cow::Borrowed(query), Cow::Borrowed(query), Cow::Borrowed(query)]);
            }
            // the form of HTML: a plus is a space
            let spaced: Vec<u8> = query.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
            let once = percent::decoded(&spaced);
            let twice = percent::decoded(&once);
            Some([Cow::Borrowed(query), Cow::Owned(once), Cow::Owned(twice)])
        });
        query.as_ref()
    }

    fn client(&self) -> Option<IpAddr> {
        *self.client.get_or_init(|| crate::client_ip(self.request.extensions()))
    }
}

/// A rule made ready.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) action: Action,
    /// Matches by one reading instead of all.
    denies: bool,
    paths: Vec<Path>,
    methods: Vec<Method>,
    hosts: Vec<HostPattern>,
    fields: Vec<(HeaderName, Field)>,
    query: Option<Regex>,
    clients: Option<Clients>,
    #[cfg(feature = "country")]
    countries: Option<(Countries, Vec<CountryCode>)>,
}

#[derive(Debug)]
struct Clients {
    inline: CidrSet,
    sets: Vec<ClientSet>,
}

impl Clients {
    fn contains(&self, client: IpAddr) -> bool {
        self.inline.contains(client) || self.sets.iter().any(|set| set.contains(client))
    }
}

#[derive(Debug)]
enum Path {
    /// What is written is read as paths are.
    Exact(Written),
    Prefix {
        written: Written,
        cover: Prefixes,
    },
    Regex(Regex),
}

#[derive(Debug)]
enum HostPattern {
    Name(Box<[u8]>),
    /// All names that end with this, a dot at first.
    Below(Box<[u8]>),
    Address(Ipv6Addr),
}

impl HostPattern {
    fn new(host: &str) -> Self {
        let name = host.trim_end_matches('.');
        match (Host::of(host.as_bytes()), name.strip_prefix('*')) {
            (Some(Host::Address(address)), _) => Self::Address(address),
            (_, Some(suffix)) => Self::Below(suffix.as_bytes().into()),
            (_, None) => Self::Name(name.as_bytes().into()),
        }
    }

    fn is(&self, host: Host<'_>) -> bool {
        match (self, host) {
            (Self::Name(own), Host::Name(name)) => name.eq_ignore_ascii_case(own),
            (Self::Below(own), Host::Name(name)) => name
                .len()
                .checked_sub(own.len())
                .is_some_and(|at| at > 0 && name[at..].eq_ignore_ascii_case(own)),
            (Self::Address(own), Host::Address(address)) => *own == address,
            _ => false,
        }
    }
}

#[derive(Debug)]
enum Field {
    Present,
    Absent,
    Equals(Box<[u8]>),
    Regex(Regex),
}

impl Compiled {
    pub(super) fn new(number: usize, rule: &Rule, sets: &FilterSets) -> Result<Self, FilterError> {
        let regex = |pattern: &str| regex(number, pattern);
        let paths = rule.paths.iter().map(|path| Path::new(number, path)).collect::<Result<_, _>>()?;
        let fields = rule
            .fields
            .iter()
            .map(|(name, pattern)| {
                let field = match pattern {
                    FieldPattern::Present => Field::Present,
                    FieldPattern::Absent => Field::Absent,
                    FieldPattern::Equals(value) => Field::Equals(value.as_bytes().into()),
                    FieldPattern::Regex(pattern) => Field::Regex(regex(pattern)?),
                };
                Ok((name.clone(), field))
            })
            .collect::<Result<_, FilterError>>()?;
        let set = |name: &String| {
            let set = sets.clients.get(name).cloned();
            set.ok_or_else(|| FilterError::UnknownSet { rule: number, name: name.clone() })
        };
        let named = rule.client_sets.iter().map(set).collect::<Result<Vec<_>, _>>()?;
        let by_client = !rule.clients.is_empty() || !named.is_empty();
        let clients =
            by_client.then(|| Clients { inline: rule.clients.iter().copied().collect(), sets: named });
        #[cfg(not(feature = "country"))]
        if !rule.countries.is_empty() {
            return Err(FilterError::NoCountries { rule: number });
        }
        #[cfg(feature = "country")]
        let countries = match (&sets.countries, rule.countries.is_empty()) {
            (_, true) => None,
            (Some(countries), false) => Some((countries.clone(), rule.countries.clone())),
            (None, false) => return Err(FilterError::NoCountries { rule: number }),
        };
        Ok(Self {
            action: rule.action,
            denies: rule.action != Action::Allow,
            paths,
            methods: rule.methods.clone(),
            hosts: rule.hosts.iter().map(|host| HostPattern::new(host)).collect(),
            fields,
            query: rule.query.as_deref().map(regex).transpose()?,
            clients,
            #[cfg(feature = "country")]
            countries,
        })
    }

    /// Whether all conditions hold. The cheap ones are asked first.
    pub(super) fn matches<B>(&self, facts: &Facts<'_, B>) -> bool {
        (self.methods.is_empty() || self.methods.contains(crate::method_of(facts.request)))
            && (self.hosts.is_empty() || self.host(facts.request))
            && (self.paths.is_empty() || self.path(facts.path()))
            && self.clients.as_ref().is_none_or(|own| facts.client().is_some_and(|ip| own.contains(ip)))
            && self.country(facts)
            && self.fields.iter().all(|(name, field)| self.field(facts.request, name, field))
            && self.query.as_ref().is_none_or(|regex| {
                facts.query().is_some_and(|readings| self.of(readings.iter(), |text| regex.is_match(text)))
            })
    }

    /// One of them, or all and at least one.
    fn of<T>(&self, mut values: impl Iterator<Item = T>, holds: impl Fn(T) -> bool) -> bool {
        if self.denies {
            return values.any(holds);
        }
        let mut none = true;
        values.all(|value| {
            none = false;
            holds(value)
        }) && !none
    }

    fn path(&self, readings: &Readings<'_>) -> bool {
        self.paths.iter().any(|path| match path {
            Path::Exact(written) if self.denies => {
                readings.any(|path| written.any(|own| trimmed(path) == own))
            }
            Path::Exact(written) => readings.agree(written, |path, own| trimmed(path) == own),
            Path::Prefix { written, cover } if self.denies => {
                cover.cover(readings) || readings.any(|path| written.any(|own| is_under(path, own)))
            }
            Path::Prefix { written, .. } => readings.agree(written, is_under),
            Path::Regex(regex) => {
                let matches = |path: &[u8]| {
                    let without = trimmed(path);
                    regex.is_match(path) || (without.len() < path.len() && regex.is_match(without))
                };
                if self.denies { readings.any(matches) } else { readings.every(matches) }
            }
        })
    }

    fn host<B>(&self, request: &Request<B>) -> bool {
        let authority = request.uri().authority().map(|authority| authority.as_str().as_bytes());
        let fields = request.headers().get_all(HOST).iter().map(HeaderValue::as_bytes);
        self.of(authority.into_iter().chain(fields), |authority| {
            Host::of(authority).is_some_and(|host| self.hosts.iter().any(|own| own.is(host)))
        })
    }

    #[cfg(feature = "country")]
    fn country<B>(&self, facts: &Facts<'_, B>) -> bool {
        self.countries.as_ref().is_none_or(|(database, wanted)| {
            facts.client().is_some_and(|ip| {
                let country = facts.country.get_or_init(|| database.country(ip));
                country.is_some_and(|country| wanted.contains(&country))
            })
        })
    }

    #[cfg(not(feature = "country"))]
    fn country<B>(&self, _: &Facts<'_, B>) -> bool {
        true
    }

    fn field<B>(&self, request: &Request<B>, name: &HeaderName, field: &Field) -> bool {
        let lines = request.headers().get_all(name).iter().map(HeaderValue::as_bytes);
        match field {
            Field::Present => request.headers().contains_key(name),
            Field::Absent => !request.headers().contains_key(name),
            Field::Equals(value) => self.of(lines, |line| line == &**value),
            Field::Regex(regex) => self.of(lines, |line| regex.is_match(line)),
        }
    }
}

impl Path {
    fn new(rule: usize, pattern: &PathPattern) -> Result<Self, FilterError> {
        Ok(match pattern {
            PathPattern::Exact(text) => Self::Exact(Written::of(text)),
            PathPattern::Prefix(text) => {
                let mut cover = Prefixes::default();
                cover.insert(text);
                Self::Prefix { written: Written::of(text), cover }
            }
            PathPattern::Glob(text) if text.len() > MAX_PATTERN => {
                return Err(FilterError::TooLong { rule });
            }
            PathPattern::Glob(text) => {
                let glob = globset::GlobBuilder::new(text).literal_separator(true).build();
                let wrong = |source| FilterError::Glob { rule, pattern: text.clone(), source };
                // `**` and `?` stand for a line feed, too, which is a character of a path like others once it is decoded
                let mut builder = builder(glob.map_err(wrong)?.regex());
                builder.dot_matches_new_line(true);
                Self::Regex(build(rule, text, &builder)?)
            }
            PathPattern::Regex(text) => Self::Regex(regex(rule, text)?),
        })
    }
}

fn regex(rule: usize, pattern: &str) -> Result<Regex, FilterError> {
    if pattern.len() > MAX_PATTERN {
        return Err(FilterError::TooLong { rule });
    }
    build(rule, pattern, &builder(pattern))
}

fn builder(pattern: &str) -> RegexBuilder {
    let mut builder = RegexBuilder::new(pattern);
    builder.unicode(false).size_limit(MAX_COMPILED).dfa_size_limit(MAX_COMPILED);
    builder
}

fn build(rule: usize, pattern: &str, builder: &RegexBuilder) -> Result<Regex, FilterError> {
    let wrong = |source| FilterError::Regex { rule, pattern: pattern.to_owned(), source: Box::new(source) };
    builder.build().map_err(wrong)
}

/// All rules made ready.
pub(super) fn compile(rules: &[Rule], sets: &FilterSets) -> Result<Arc<[Compiled]>, FilterError> {
    rules.iter().enumerate().map(|(at, rule)| Compiled::new(at + 1, rule, sets)).collect()
}
