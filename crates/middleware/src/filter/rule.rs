//! Rules as they are written down.

use std::fmt;

use http::{HeaderName, Method, StatusCode};
use ipnet::IpNet;

/// Who may pass: what is always denied, then rules in their order, then what becomes of the rest. Plain data, made ready by
/// [`FilterRules::compile`](super::FilterRules::compile).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FilterOptions {
    /// Everything at and under these prefixes is answered 404, before any rule is asked. See
    /// [`FilterRules::deny_prefixes`](super::FilterRules::deny_prefixes). Default empty.
    pub deny: Vec<String>,
    /// The rules. The first that matches decides. Default empty. A request's cost grows with their number, and each regular expression and
    /// glob takes 1 MiB of memory at most for itself and as much for its automaton.
    pub rules: Vec<Rule>,
    /// What happens to requests that no rule matches. Default [`Action::Allow`].
    pub default: Action,
}

impl FilterOptions {
    /// Sets [`FilterOptions::deny`].
    #[must_use]
    pub fn with_deny(mut self, prefixes: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.deny = prefixes.into_iter().map(Into::into).collect();
        self
    }

    /// Adds a rule behind the others.
    #[must_use]
    pub fn with_rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    /// Sets [`FilterOptions::default`].
    #[must_use]
    pub fn with_default(mut self, action: Action) -> Self {
        self.default = action;
        self
    }

    /// Whether every request passes.
    pub fn is_empty(&self) -> bool {
        self.deny.is_empty() && self.rules.is_empty() && self.default == Action::Allow
    }
}

/// What a rule does with a request that it matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// Passes, whatever rules come later.
    #[default]
    Allow,
    /// Answered with this status and no body. 404 (RFC 9110 section 15.5.5) doesn't tell that there is something.
    Deny(StatusCode),
    /// As 403, and the connection is told to be closed: on HTTP/1 with `Connection: close`, which ends it after the answer. HTTP/2 and HTTP/3 have no such
    /// field, since other requests share the connection (RFC 9113 section 8.2.2), and there it is a plain 403.
    Close,
}

/// A rule: conditions that must all hold, and what happens then. A condition with several values holds if one of them does. One
/// without any condition matches every request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rule {
    /// What happens. Default [`Action::Allow`].
    pub action: Action,
    /// Paths. A rule that denies matches if one of the readings of the path does (see the module), one that allows only if all do. A path longer than
    /// 8 KiB that has more than one reading is not read: each rule with paths that denies matches it, and none that allows.
    pub paths: Vec<PathPattern>,
    /// Methods, compared with letter case (RFC 9110 section 9.1). `GET` is not `HEAD`.
    pub methods: Vec<Method>,
    /// Hosts, without port: `a.example`, `*.example` for all names below, or an IPv6 address in brackets, in any spelling. A request that names two (in its target and in `Host`) is
    /// denied for one of them, and allowed only for both.
    pub hosts: Vec<String>,
    /// Fields of the request; all of them must hold.
    pub fields: Vec<(HeaderName, FieldPattern)>,
    /// A regular expression that is searched in the query, without the `?`: as it came and decoded once and twice. Denied if found in
    /// one of these, allowed only if in all; a request without a query has no match.
    pub query: Option<String>,
    /// The client's networks: few of them, compared one by one with the sets.
    pub clients: Vec<IpNet>,
    /// Names of sets of networks, of those that [`FilterSets`](super::FilterSets) has. `clients` and these are one condition: the client is in
    /// one of all.
    ///
    /// A client whose address is not known is in no network. A request that comes before its handshake is complete (0-RTT) has the address that its
    /// packets came from, which has to be proven by then (RFC 9000 section 8.1): portcullis-h3 hands out none without a token that proves it.
    pub client_sets: Vec<String>,
    /// The client's countries, by the database in [`FilterSets`](super::FilterSets); one whose address is not known is in none.
    pub countries: Vec<CountryCode>,
}

impl Rule {
    /// A rule that matches every request, to be narrowed.
    pub fn new(action: Action) -> Self {
        Self { action, ..Self::default() }
    }

    /// Passes.
    pub fn allow() -> Self {
        Self::new(Action::Allow)
    }

    /// Answers with this status.
    pub fn deny(status: StatusCode) -> Self {
        Self::new(Action::Deny(status))
    }

    /// Adds to [`Rule::paths`].
    #[must_use]
    pub fn with_path(mut self, path: PathPattern) -> Self {
        self.paths.push(path);
        self
    }

    /// Adds to [`Rule::methods`].
    #[must_use]
    pub fn with_method(mut self, method: Method) -> Self {
        self.methods.push(method);
        self
    }

    /// Adds to [`Rule::hosts`].
    #[must_use]
    pub fn with_host(mut self, host: impl Into<String>) -> Self {
        self.hosts.push(host.into());
        self
    }

    /// Adds to [`Rule::fields`].
    #[must_use]
    pub fn with_field(mut self, name: HeaderName, pattern: FieldPattern) -> Self {
        self.fields.push((name, pattern));
        self
    }

    /// Sets [`Rule::query`].
    #[must_use]
    pub fn with_query(mut self, regex: impl Into<String>) -> Self {
        self.query = Some(regex.into());
        self
    }

    /// Adds to [`Rule::clients`].
    #[must_use]
    pub fn with_client(mut self, network: IpNet) -> Self {
        self.clients.push(network);
        self
    }

    /// Adds to [`Rule::client_sets`].
    #[must_use]
    pub fn with_client_set(mut self, name: impl Into<String>) -> Self {
        self.client_sets.push(name.into());
        self
    }

    /// Adds to [`Rule::countries`].
    #[must_use]
    pub fn with_country(mut self, country: CountryCode) -> Self {
        self.countries.push(country);
        self
    }
}

/// Which paths. A trailing slash is no difference; letter case is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PathPattern {
    /// This one.
    Exact(String),
    /// This one and all below, on segment borders.
    Prefix(String),
    /// The whole path: `*` and `?` within a segment, `**` over several, `[a-z]`, `{a,b}`.
    Glob(String),
    /// Searched anywhere in the path, over bytes, without Unicode classes; `^` and `$` are its ends.
    Regex(String),
}

/// What is asked of a field. Several lines of one name are looked at one by one: a rule that denies matches if one line does, a rule
/// that allows only if all do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FieldPattern {
    /// It is there.
    Present,
    /// It isn't.
    Absent,
    /// It is exactly this.
    Equals(String),
    /// A regular expression, searched anywhere in the value, over bytes.
    Regex(String),
}

/// A country by its two letters (ISO 3166-1 alpha-2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CountryCode([u8; 2]);

impl CountryCode {
    /// From two ASCII letters, in either case.
    pub fn new(code: &str) -> Option<Self> {
        let code: [u8; 2] = code.as_bytes().try_into().ok()?;
        code.iter().all(u8::is_ascii_alphabetic).then(|| Self(code.map(|letter| letter.to_ascii_uppercase())))
    }

    /// The two letters, capital.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("it is made of ASCII letters only")
    }
}

impl fmt::Display for CountryCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for CountryCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
