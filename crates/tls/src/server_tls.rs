//! From options to rustls configurations: one policy for TCP and QUIC, and others by name.

use std::{collections::HashMap, sync::Arc};

use rustls::{
    ServerConfig, SupportedCipherSuite, SupportedProtocolVersion,
    compress::CompressionCache,
    crypto::CryptoProvider,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};

use crate::{
    ACME_TLS_ALPN, Acceptor, AcceptorOptions, ClientAuth, ConfigError, Resumption, ServerOptions, TicketKeys,
    UnknownNames, Versions, ZeroRtt, compress, pair::provider, session::SessionStore, store::CertStore,
    x509::normal_name,
};

/// TLS for one listener: made once from its options, it feeds TCP and QUIC, so that both ask the same of clients and
/// show the same certificates. The store's content changes beneath it; it stays. Clones are the same.
#[derive(Clone, Debug)]
pub struct ServerTls(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The default policy, then those of [`ServerOptions::hosts`] in their order.
    tcp: Vec<Arc<ServerConfig>>,
    quic: Arc<ServerConfig>,
    /// For who comes to see an ACME challenge's answer, and shows no certificate for it.
    challenge: Arc<ServerConfig>,
    hosts: Arc<Hosts>,
}

/// The place of a name's policy; 0 is the default.
#[derive(Debug, Default)]
struct Hosts {
    exact: HashMap<Box<str>, usize>,
    /// By parent.
    wildcard: HashMap<Box<str>, usize>,
}

impl ServerTls {
    /// Makes the configurations.
    ///
    /// # Errors
    /// When an option is out of its bounds, or two contradict each other.
    pub fn new(store: Arc<CertStore>, options: &ServerOptions) -> Result<Self, ConfigError> {
        check(options)?;
        let hosts = Arc::new(Hosts::new(options)?);
        let keys = match &options.resumption {
            Resumption::SharedTickets(keys) => keys.clone(),
            _ => TicketKeys::random().map_err(ConfigError::TicketKeys)?,
        };
        let maker = Maker { store, options, keys };
        let mut tcp = vec![maker.tcp(options.versions, &options.client_auth)?];
        for host in &options.hosts {
            tcp.push(maker.tcp(host.versions, &host.client_auth)?);
        }
        Ok(Self(Arc::new(Inner { quic: maker.quic(&hosts)?, challenge: maker.challenge()?, tcp, hosts })))
    }

    /// The default policy for TLS over TCP, with `h2` and `http/1.1` by ALPN.
    pub fn tcp(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.tcp[0])
    }

    /// The default policy for QUIC, with `h3` by ALPN. Names of which the policy differs are refused there.
    pub fn quic(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.quic)
    }

    /// An acceptor that goes by the policy of the name that the client asks for.
    pub fn acceptor(&self, options: AcceptorOptions) -> Acceptor {
        Acceptor::by_name(self.clone(), options)
    }

    /// Whether a connection made for one name may carry a request for another: they have the same policy. Where not, a
    /// request is answered 421 (RFC 9110 section 15.5.20), or else the policy of the second could be gone around.
    pub fn allows(&self, server_name: Option<&str>, host: &str) -> bool {
        let hosts = &self.0.hosts;
        hosts.is_empty() || hosts.find(server_name) == hosts.find(Some(host))
    }

    /// Whether any name has a policy of its own.
    pub fn has_host_policies(&self) -> bool {
        !self.0.hosts.is_empty()
    }

    /// The configuration for a client, and whether he is to see the answer to a challenge and nothing more.
    pub(crate) fn config_for(&self, hello: &ClientHello<'_>) -> (Arc<ServerConfig>, bool) {
        if asks_for_challenge(hello) {
            return (Arc::clone(&self.0.challenge), true);
        }
        (Arc::clone(&self.0.tcp[self.0.hosts.find(hello.server_name())]), false)
    }
}

impl Hosts {
    fn new(options: &ServerOptions) -> Result<Self, ConfigError> {
        let mut hosts = Self::default();
        for (place, policy) in (1..).zip(&options.hosts) {
            for given in &policy.names {
                let Some(name) = normal_name(given) else {
                    return Err(ConfigError::HostName(given.clone()));
                };
                let before = match name.strip_prefix("*.") {
                    Some(parent) => hosts.wildcard.insert(parent.into(), place),
                    None => hosts.exact.insert(name.as_str().into(), place),
                };
                if before.is_some() {
                    return Err(ConfigError::HostTwice(name));
                }
            }
        }
        Ok(hosts)
    }

    fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.wildcard.is_empty()
    }

    fn find(&self, name: Option<&str>) -> usize {
        if self.is_empty() {
            return 0;
        }
        let Some(name) = name else { return 0 };
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        if let Some(place) = self.exact.get(name.as_str()) {
            return *place;
        }
        // at any depth, the nearest first, as routes have it: a name that reaches a route must not escape its policy
        let mut rest = name.as_str();
        while let Some((_, parent)) = rest.split_once('.') {
            if let Some(place) = self.wildcard.get(parent) {
                return *place;
            }
            rest = parent;
        }
        0
    }
}

fn check(options: &ServerOptions) -> Result<(), ConfigError> {
    if options.tickets > 8 {
        return Err(ConfigError::Tickets(options.tickets));
    }
    if let Resumption::ZeroRtt(early) = &options.resumption {
        if !(1..=16 << 10).contains(&early.max_early_data) {
            return Err(ConfigError::EarlyData(early.max_early_data));
        }
        if !matches!(options.client_auth, ClientAuth::None) {
            return Err(ConfigError::EarlyDataWithClientAuth);
        }
    }
    Ok(())
}

/// What all configurations of one listener have in common.
struct Maker<'a> {
    store: Arc<CertStore>,
    options: &'a ServerOptions,
    keys: TicketKeys,
}

impl Maker<'_> {
    fn tcp(&self, versions: Versions, client_auth: &ClientAuth) -> Result<Arc<ServerConfig>, ConfigError> {
        const BOTH: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];
        let versions = match versions {
            Versions::Tls13Only => &BOTH[..1],
            Versions::Tls12AndUp => BOTH,
        };
        let mut config = self.base(versions, client_auth, None)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec(), ACME_TLS_ALPN.to_vec()];
        if let (Resumption::ZeroRtt(early), ClientAuth::None) = (&self.options.resumption, client_auth) {
            self.with_early_data(&mut config, early, early.max_early_data);
        } else {
            self.with_tickets(&mut config, "tcp", client_auth);
        }
        Ok(Arc::new(config))
    }

    fn quic(&self, hosts: &Arc<Hosts>) -> Result<Arc<ServerConfig>, ConfigError> {
        let mut config = self.base(&[&TLS13], &self.options.client_auth, Some(Arc::clone(hosts)))?;
        config.alpn_protocols = vec![b"h3".to_vec()];
        if let Resumption::ZeroRtt(early) = &self.options.resumption {
            // RFC 9001 section 4.6.1: the only value that QUIC allows
            self.with_early_data(&mut config, early, u32::MAX);
        } else {
            self.with_tickets(&mut config, "quic", &self.options.client_auth);
        }
        Ok(Arc::new(config))
    }

    fn challenge(&self) -> Result<Arc<ServerConfig>, ConfigError> {
        let mut config = self.base(&[&TLS13, &TLS12], &ClientAuth::None, None)?;
        // a client may ask otherwise in a second hello (RFC 8446 section 4.1.2), and must not get more by that
        config.cert_resolver = Arc::new(OnlyChallenges(Arc::clone(&self.store)));
        config.alpn_protocols = vec![ACME_TLS_ALPN.to_vec()];
        no_resumption(&mut config);
        Ok(Arc::new(config))
    }

    fn base(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        client_auth: &ClientAuth,
        refused: Option<Arc<Hosts>>,
    ) -> Result<ServerConfig, ConfigError> {
        let has_aes = has_aes();
        let builder = ServerConfig::builder_with_provider(Arc::new(suited(provider(), has_aes)))
            .with_protocol_versions(versions)
            .map_err(ConfigError::Versions)?;
        let builder = match client_auth.verifier() {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let strict = self.options.unknown_names == UnknownNames::Refuse;
        let resolver = Resolver { store: Arc::clone(&self.store), strict, refused };
        let mut config = builder.with_cert_resolver(Arc::new(resolver));
        // a client knows best whether it has hardware for AES; without any here ChaCha20 is the cheaper one for us
        config.ignore_client_order = !has_aes;
        config.max_early_data_size = 0;
        config.cert_compressors = compress::compressors();
        config.cert_compression_cache = Arc::new(CompressionCache::Disabled);
        // Ours are compressed; a client's are not decompressed, since a small one can unfold to a huge one before
        // anybody is authenticated.
        config.cert_decompressors = Vec::new();
        Ok(config)
    }

    fn with_tickets(&self, config: &mut ServerConfig, transport: &'static str, client_auth: &ClientAuth) {
        // Who shows a certificate shows it each time: a resumed session would bring an old one along, which may have
        // expired or been revoked since.
        let is_asked = !matches!(client_auth, ClientAuth::None);
        if is_asked || matches!(self.options.resumption, Resumption::Off) || self.options.tickets == 0 {
            return no_resumption(config);
        }
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = self.keys.ticketer(transport);
        config.send_tls13_tickets = self.options.tickets;
    }

    fn with_early_data(&self, config: &mut ServerConfig, early: &ZeroRtt, most: u32) {
        if self.options.tickets == 0 {
            return no_resumption(config);
        }
        config.session_storage = SessionStore::new(early.sessions);
        config.max_early_data_size = most;
        config.send_half_rtt_data = early.half_rtt;
        config.send_tls13_tickets = self.options.tickets;
    }
}

fn no_resumption(config: &mut ServerConfig) {
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
}

fn has_aes() -> bool {
    #[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[allow(unreachable_code, reason = "only on other machines")]
    false
}

/// AES-GCM first where hardware has it, ChaCha20-Poly1305 first where not (RFC 7539 section 1).
fn suited(mut provider: CryptoProvider, has_aes: bool) -> CryptoProvider {
    let is_chacha = |suite: &SupportedCipherSuite| format!("{:?}", suite.suite()).contains("CHACHA20");
    // sorting is stable: within each kind the provider's order stays
    provider.cipher_suites.sort_by_key(|suite| is_chacha(suite) == has_aes);
    provider
}

/// RFC 8737 section 3: such a client offers this protocol alone.
pub(crate) fn asks_for_challenge(hello: &ClientHello<'_>) -> bool {
    hello.alpn().is_some_and(|mut offered| offered.any(|name| name == ACME_TLS_ALPN))
}

/// The store as one configuration sees it.
#[derive(Debug)]
struct Resolver {
    store: Arc<CertStore>,
    strict: bool,
    /// Names with a policy that this configuration does not keep.
    refused: Option<Arc<Hosts>>,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if self.refused.as_ref().is_some_and(|hosts| hosts.find(hello.server_name()) != 0) {
            tracing::debug!(
                name = hello.server_name(),
                "this name has a TLS policy that is kept over TCP only"
            );
            return None;
        }
        self.store.answer(&hello, self.strict)
    }
}

/// Answers to challenges and nothing else.
#[derive(Debug)]
struct OnlyChallenges(Arc<CertStore>);

impl ResolvesServerCert for OnlyChallenges {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.challenges().get(hello.server_name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ClientCas, HostPolicy};
    use rustls::CipherSuite;

    fn store() -> Arc<CertStore> {
        Arc::new(CertStore::new())
    }

    #[test]
    fn the_defaults() {
        let tls = ServerTls::new(store(), &ServerOptions::default()).unwrap();
        let config = tls.tcp();
        assert_eq!(config.alpn_protocols, [&b"h2"[..], b"http/1.1", b"acme-tls/1"]);
        assert_eq!((config.max_early_data_size, config.send_tls13_tickets), (0, 2));
        assert!(config.ticketer.enabled() && !config.send_half_rtt_data);
        assert_eq!(config.cert_compressors.len(), 2, "Brotli and zlib");
        assert!(config.cert_decompressors.is_empty());
        assert_eq!(tls.quic().alpn_protocols, [&b"h3"[..]]);
        assert!(!tls.has_host_policies() && tls.allows(Some("a"), "b"));
    }

    #[test]
    fn early_data_needs_sessions_of_its_own() {
        let tls = ServerTls::new(store(), &ServerOptions::default().with_zero_rtt()).unwrap();
        for (config, most) in [(tls.tcp(), 16 << 10), (tls.quic(), u32::MAX)] {
            assert_eq!(config.max_early_data_size, most);
            assert!(config.session_storage.can_cache() && !config.ticketer.enabled());
            assert!(config.send_half_rtt_data);
        }
        assert!(!Arc::ptr_eq(&tls.tcp().session_storage, &tls.quic().session_storage));
    }

    #[test]
    fn nothing_to_resume_with() {
        let clients = ClientCas::from_pem(portcullis_testkit::certs::TestCa::new().pem().as_bytes()).unwrap();
        for options in [
            ServerOptions::default().with_resumption(Resumption::Off),
            ServerOptions::default().with_tickets(0),
            ServerOptions::default().with_zero_rtt().with_tickets(0),
            ServerOptions::default().with_client_auth(ClientAuth::Optional(clients)),
        ] {
            let config = tcp(&options);
            assert_eq!((config.send_tls13_tickets, config.max_early_data_size), (0, 0));
            assert!(!config.session_storage.can_cache() && !config.ticketer.enabled());
        }
    }

    fn tcp(options: &ServerOptions) -> Arc<ServerConfig> {
        crate::tcp_config(store(), options).unwrap()
    }

    #[test]
    fn what_is_out_of_bounds() {
        let zero = |most| Resumption::ZeroRtt(ZeroRtt::default().with_max_early_data(most));
        let options = ServerOptions::default;
        let host = |names: &[&str]| HostPolicy::new(names.iter().copied(), ClientAuth::None);
        for (options, want) in [
            (options().with_tickets(9), "9 session tickets"),
            (options().with_resumption(zero(0)), "0 bytes of early data"),
            (options().with_resumption(zero(16_385)), "16385 bytes of early data"),
            (options().with_host(host(&["a b"])), "\"a b\" is no host name"),
            (options().with_host(host(&["a"])).with_host(host(&["A."])), "a stands in two host policies"),
        ] {
            let error = ServerTls::new(store(), &options).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
        let with_hosts = options().with_host(host(&["a"]));
        assert!(matches!(crate::tcp_config(store(), &with_hosts), Err(ConfigError::NeedsAcceptor)));
    }

    #[test]
    fn policies_by_name() {
        let options = ServerOptions::default()
            .with_host(HostPolicy::new(["admin.example.com"], ClientAuth::None))
            .with_host(HostPolicy::new(["*.example.com"], ClientAuth::None));
        let tls = ServerTls::new(store(), &options).unwrap();
        for (sni, host, want) in [
            (Some("a.example.org"), "b.example.org", true),
            (None, "b.example.org", true),
            (Some("admin.example.com"), "ADMIN.example.com", true),
            (Some("admin.example.com"), "x.example.com", false),
            (Some("x.example.com"), "y.Example.com.", true),
            (Some("a.example.org"), "admin.example.com", false),
            (None, "admin.example.com", false),
            (Some("x.y.example.com"), "a.example.org", false),
            (Some("a.example.org"), "x.y.example.com", false),
            (None, "x.y.admin.example.com", false),
            (Some("x.y.example.com"), "z.example.com", true),
            (Some("example.com"), "a.example.org", true),
        ] {
            assert_eq!(tls.allows(sni, host), want, "{sni:?} {host}");
        }
    }

    /// A second hello may leave out that it is for a challenge (RFC 8446 section 4.1.2): what answers then is the configuration of the first.
    #[test]
    fn what_answers_challenges_has_no_other_certificate() {
        let (ca, store) = (portcullis_testkit::certs::TestCa::new(), store());
        let cert = ca.issue(&["a.example.com"]);
        store.add_pem(cert.pem().as_bytes(), cert.key_pem().as_bytes()).unwrap();
        let tls = ServerTls::new(store, &ServerOptions::default()).unwrap();
        let roots = crate::client::Roots::from_pem(ca.pem().as_bytes()).unwrap();
        let client =
            crate::client::client_config(crate::client::ClientOptions::default().with_roots(roots)).unwrap();
        let answers = |config: &Arc<ServerConfig>| {
            let name = rustls_pki_types::ServerName::try_from("a.example.com").unwrap();
            let mut client = rustls::ClientConnection::new(Arc::clone(&client), name).unwrap();
            let mut hello = Vec::new();
            client.write_tls(&mut hello).unwrap();
            let mut server = rustls::ServerConnection::new(Arc::clone(config)).unwrap();
            server.read_tls(&mut &hello[..]).unwrap();
            server.process_new_packets().is_ok()
        };
        assert!(answers(&tls.tcp()));
        assert!(!answers(&tls.0.challenge));
    }

    #[test]
    fn aes_first_where_hardware_has_it() {
        let first = |has_aes| suited(provider(), has_aes).cipher_suites[0].suite();
        assert_eq!(first(true), CipherSuite::TLS13_AES_256_GCM_SHA384);
        assert_eq!(first(false), CipherSuite::TLS13_CHACHA20_POLY1305_SHA256);
    }
}
