//! Endpoints from DNS: the addresses of a name (A and AAAA, RFC 1035, RFC 3596), or what its SRV records tell (RFC 2782).
//!
//! A name among the endpoints of a cluster is resolved by the system whenever a connection is made, and is one endpoint. Here each address is an
//! endpoint of its own: it has its share of the requests, its own health and its own connections, and lists follow the records' TTL.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::try_join_all;
use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ServerOrderingStrategy},
    lookup::Lookup,
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::{Name, RData, RecordType, rdata::SRV},
};
use tracing::warn;

use super::{Found, Resolve};
use crate::{BoxError, Endpoint, connect::MAX_WEIGHT};

/// The most endpoints that are taken from one list.
pub const MAX_ENDPOINTS: usize = 1024;

/// The most hosts of SRV records whose addresses are asked for.
const MAX_TARGETS: usize = 64;

/// What is asked of DNS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DnsRecords {
    /// Every address of the name, at this port.
    Addresses {
        /// The port.
        port: u16,
    },
    /// SRV records: of a name such as `_http._tcp.app.internal`. Port, priority and weight are theirs.
    Services,
}

/// The kinds of addresses that are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DnsFamily {
    /// A and AAAA. A list is there when both questions have an answer, be it that there are none.
    #[default]
    Both,
    /// A alone.
    V4,
    /// AAAA alone.
    V6,
}

/// Who is asked, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DnsOptions {
    /// The resolvers to ask. Default none: those of the system (`/etc/resolv.conf`), read when the source is made.
    pub servers: Vec<SocketAddr>,
    /// How long one of them has for an answer. Default 2 s.
    pub timeout: Duration,
    /// How often a question without answer is asked. Default 2. A source fails after about `timeout` times this.
    pub attempts: usize,
    /// The kinds of addresses. Default both.
    pub family: DnsFamily,
    /// A list is used for so long at least, whatever its records' TTL. Default 1 s, so that a TTL of zero is no storm of questions.
    pub min_ttl: Duration,
    /// And for so long at most. Default 60 s, so that a wrong TTL of days does no harm for days.
    pub max_ttl: Duration,
}

impl Default for DnsOptions {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            timeout: Duration::from_secs(2),
            attempts: 2,
            family: DnsFamily::Both,
            min_ttl: Duration::from_secs(1),
            max_ttl: Duration::from_secs(60),
        }
    }
}

/// A name whose records are endpoints; at most [`MAX_ENDPOINTS`] of them, the first by address.
///
/// The name is taken as it is, as if a dot ended it: search domains and the file of hosts have no part in it. Each endpoint goes by that name
/// where it has to prove it over TLS, for SRV records without its `_service._proto`: a host that an unprotected answer names is no identity (RFC 9525
/// section 6.1.1).
#[derive(Clone, Debug)]
pub struct DnsSource {
    resolver: TokioResolver,
    name: Name,
    host: Arc<str>,
    records: DnsRecords,
    options: DnsOptions,
}

/// Why DNS gives no endpoints.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DnsError {
    /// The name can't be one.
    #[error("`{0}` is no name that DNS could know")]
    Name(String),
    /// The system's resolvers could not be read.
    #[error("the system's resolvers are not known: {0}")]
    System(#[source] BoxError),
    /// There was no answer.
    #[error("{name} {kind}: {source}")]
    Lookup {
        /// The name that was asked for.
        name: String,
        /// The records' type.
        kind: &'static str,
        /// What happened.
        source: BoxError,
    },
}

impl DnsSource {
    /// A source that asks for these records of a name. Reads `/etc/resolv.conf` where no resolvers are given.
    ///
    /// # Errors
    /// When the name can't be one, or the system's resolvers can't be read.
    pub fn new(name: &str, records: DnsRecords, options: DnsOptions) -> Result<Self, DnsError> {
        let parsed = parse_name(name).ok_or_else(|| DnsError::Name(name.to_owned()))?;
        let mut builder = if options.servers.is_empty() {
            TokioResolver::builder_tokio().map_err(system)?
        } else {
            let servers = options.servers.iter().map(|addr| name_server(*addr)).collect();
            let config = ResolverConfig::from_parts(None, Vec::new(), servers);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        };
        let to = builder.options_mut();
        to.timeout = options.timeout;
        // what it calls attempts are those after the first
        to.attempts = options.attempts.saturating_sub(1);
        to.use_hosts_file = ResolveHosts::Never;
        // asked for when the last answer is over, and not before
        to.cache_size = 0;
        to.preserve_intermediates = false;
        if !options.servers.is_empty() {
            to.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
        }
        let resolver = builder.build().map_err(system)?;
        let host = host_of(&parsed, records);
        Ok(Self { resolver, name: parsed, host, records, options })
    }

    /// Whether a text can be a name: labels of 1 to 63 ASCII characters with dots between them, 253 in all, and no wildcard.
    pub fn is_name(text: &str) -> bool {
        parse_name(text).is_some()
    }

    async fn ask(&self, name: &Name, kind: RecordType) -> Result<Option<Lookup>, DnsError> {
        match self.resolver.lookup(name.clone(), kind).await {
            Ok(lookup) => Ok(Some(lookup)),
            Err(error) if error.is_no_records_found() => Ok(None),
            Err(source) => {
                Err(DnsError::Lookup { name: name.to_string(), kind: kind.into(), source: source.into() })
            }
        }
    }

    /// Every address of a host, and until when that is known.
    async fn addresses(&self, name: &Name) -> Result<(Vec<IpAddr>, Option<Instant>), DnsError> {
        let kinds: &[RecordType] = match self.options.family {
            DnsFamily::Both => &[RecordType::A, RecordType::AAAA],
            DnsFamily::V4 => &[RecordType::A],
            DnsFamily::V6 => &[RecordType::AAAA],
        };
        let lookups = try_join_all(kinds.iter().map(|kind| self.ask(name, *kind))).await?;
        let lookups: Vec<_> = lookups.into_iter().flatten().collect();
        let addresses = lookups.iter().flat_map(Lookup::answers).filter_map(|record| record.data.ip_addr());
        Ok((addresses.collect(), lookups.iter().map(Lookup::valid_until).min()))
    }

    async fn of_addresses(&self, port: u16) -> Result<(Vec<Endpoint>, Option<Instant>), DnsError> {
        let (addresses, until) = self.addresses(&self.name).await?;
        Ok((addresses.into_iter().map(|ip| SocketAddr::new(ip, port).into()).collect(), until))
    }

    async fn of_services(&self) -> Result<(Vec<Endpoint>, Option<Instant>), DnsError> {
        let Some(lookup) = self.ask(&self.name, RecordType::SRV).await? else {
            return Ok((Vec::new(), None));
        };
        let services: Vec<&SRV> = lookup.answers().iter().filter_map(|record| srv(&record.data)).collect();
        let mut targets: Vec<&Name> = services.iter().map(|service| &service.target).collect();
        targets.sort_unstable();
        targets.dedup();
        if targets.len() > MAX_TARGETS {
            warn!(name = %self.name, targets = targets.len(), "more hosts than {MAX_TARGETS}: the rest is left out");
            targets.truncate(MAX_TARGETS);
        }
        let found = try_join_all(targets.iter().map(|target| self.addresses(target))).await?;
        let until = found.iter().filter_map(|(_, until)| *until).min();
        let known: Vec<_> =
            targets.iter().zip(&found).map(|(name, (addresses, _))| (*name, &addresses[..])).collect();
        Ok((
            weighed(&services, &known),
            Some(until.unwrap_or(lookup.valid_until()).min(lookup.valid_until())),
        ))
    }
}

fn system(error: NetError) -> DnsError {
    DnsError::System(error.into())
}

fn parse_name(text: &str) -> Option<Name> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if !text.bytes().all(plain) {
        return None;
    }
    let mut name = Name::from_ascii(text).ok()?;
    name.set_fqdn(true);
    (!name.is_root()).then_some(name)
}

fn name_server(addr: SocketAddr) -> NameServerConfig {
    // TCP for answers that do not fit (RFC 7766)
    let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
    for connection in &mut connections {
        connection.port = addr.port();
    }
    // a private resolver that says there are none is to be believed (RFC 2308)
    NameServerConfig::new(addr.ip(), true, connections)
}

/// The name that endpoints go by: without the last dot and, for SRV records, without the labels that name the service.
fn host_of(name: &Name, records: DnsRecords) -> Arc<str> {
    let text = name.to_ascii().to_ascii_lowercase();
    let mut text = text.trim_end_matches('.');
    if records == DnsRecords::Services {
        while let Some((label, rest)) = text.split_once('.')
            && label.starts_with('_')
        {
            text = rest;
        }
    }
    text.into()
}

fn srv(data: &RData) -> Option<&SRV> {
    match data {
        // RFC 2782: a target of "." says that the service is not there
        RData::SRV(srv) if !srv.target.is_root() && srv.port != 0 => Some(srv),
        _ => None,
    }
}

/// SRV records with the addresses of their targets as endpoints. Priorities become levels from 0 on. Weights above what an endpoint can have are
/// brought down together; a weight of 0 has the smallest share (RFC 2782).
fn weighed(services: &[&SRV], known: &[(&Name, &[IpAddr])]) -> Vec<Endpoint> {
    let mut levels: Vec<u16> = services.iter().map(|service| service.priority).collect();
    levels.sort_unstable();
    levels.dedup();
    let most = services.iter().map(|service| u32::from(service.weight)).max().unwrap_or_default();
    let weight = |weight: u16| {
        let weight = u32::from(weight);
        if most > MAX_WEIGHT { weight * MAX_WEIGHT / most } else { weight }
    };
    let mut endpoints = Vec::new();
    for service in services {
        let level = levels.binary_search(&service.priority).unwrap_or_default();
        let level = u8::try_from(level).unwrap_or(u8::MAX);
        let addresses = known.iter().find(|(name, _)| *name == &service.target).map(|(_, found)| *found);
        for ip in addresses.unwrap_or_default() {
            let endpoint = Endpoint::from(SocketAddr::new(*ip, service.port));
            endpoints.push(endpoint.with_priority(level).with_weight(weight(service.weight)));
        }
    }
    endpoints
}

impl Resolve for DnsSource {
    type Error = DnsError;

    async fn resolve(&self) -> Result<Found, DnsError> {
        let (endpoints, until) = match self.records {
            DnsRecords::Addresses { port } => self.of_addresses(port).await?,
            DnsRecords::Services => self.of_services().await?,
        };
        let left = until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
        let max = self.options.max_ttl.max(self.options.min_ttl);
        let mut found = Found::new(endpoints, left.clamp(self.options.min_ttl, max));
        if found.endpoints.len() > MAX_ENDPOINTS {
            warn!(name = %self.name, found = found.endpoints.len(), "more endpoints than {MAX_ENDPOINTS}: the rest is left out");
            found.endpoints.truncate(MAX_ENDPOINTS);
        }
        let host = |endpoint: Endpoint| endpoint.with_host(Some(Arc::clone(&self.host)));
        found.endpoints = found.endpoints.into_iter().map(host).collect();
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_one_and_names_that_are_none() {
        let options =
            || DnsOptions { servers: vec!["127.0.0.1:53".parse().unwrap()], ..DnsOptions::default() };
        for name in ["app.internal", "app.internal.", "a", "xn--bcher-kva.example", "_http._tcp.app.internal"]
        {
            let source = DnsSource::new(name, DnsRecords::Services, options()).unwrap();
            assert!(source.name.is_fqdn(), "{name}");
        }
        for name in
            ["", ".", "a..b", "*.example.com", "b\u{fc}cher.example", &"a".repeat(64), &"a.".repeat(140)]
        {
            let error = DnsSource::new(name, DnsRecords::Services, options()).unwrap_err();
            assert!(matches!(error, DnsError::Name(_)), "{name} {error}");
        }
    }

    #[test]
    fn the_name_that_endpoints_go_by() {
        let host = |name: &str, records| host_of(&Name::from_ascii(name).unwrap(), records);
        assert_eq!(&*host("App.Internal.", DnsRecords::Addresses { port: 1 }), "app.internal");
        assert_eq!(&*host("_http._tcp.app.internal", DnsRecords::Services), "app.internal");
        assert_eq!(&*host("_a.b", DnsRecords::Addresses { port: 1 }), "_a.b");
    }

    #[test]
    fn rfc2782_priorities_and_weights() {
        let name = |text: &str| Name::from_ascii(text).unwrap();
        let (a, b, c) = (name("a.test."), name("b.test."), name("c.test."));
        let services = [
            SRV::new(10, 60_000, 80, a.clone()),
            SRV::new(10, 0, 81, b.clone()),
            SRV::new(700, 30_000, 82, a.clone()),
            SRV::new(700, 1, 83, c),
        ];
        let (one, two): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "::2".parse().unwrap());
        let found = weighed(&services.iter().collect::<Vec<_>>(), &[(&a, &[one, two]), (&b, &[two])]);
        let seen: Vec<_> = found.iter().map(|e| (e.name(), e.priority(), e.weight())).collect();
        let expected = [
            ("10.0.0.1:80", 0, 1000),
            ("[::2]:80", 0, 1000),
            ("[::2]:81", 0, 1),
            ("10.0.0.1:82", 1, 500),
            ("[::2]:82", 1, 500),
        ];
        assert_eq!(seen, expected);
        assert!(srv(&RData::SRV(SRV::new(0, 0, 80, Name::root()))).is_none());
        assert!(srv(&RData::SRV(SRV::new(0, 0, 0, a))).is_none());
    }
}
