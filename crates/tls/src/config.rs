//! rustls server configurations from plain options.

use std::sync::Arc;

use rustls::{
    ServerConfig, SupportedProtocolVersion,
    compress::CompressionCache,
    server::NoServerSessionStorage,
    version::{TLS12, TLS13},
};

use crate::{pair::provider, session::SessionStore, store::CertStore};

/// Which protocol versions a server speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Versions {
    /// TLS 1.3 (RFC 8446) only.
    #[default]
    Tls13Only,
    /// TLS 1.2 (RFC 5246) as well, with ephemeral key exchange and AEAD suites only.
    Tls12AndUp,
}

/// How a server speaks TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerOptions {
    /// The protocol versions. Default [`Versions::Tls13Only`]: every current browser, curl, Go, Java and OpenSSL
    /// speaks it, and it hides the certificate. QUIC is TLS 1.3 whatever this says (RFC 9001 section 4.2).
    pub versions: Versions,
    /// How many sessions are kept for resumption, per configuration, in memory. 0 turns resumption off. Default
    /// 4096: with [`ServerOptions::tickets`] at 2, the last 2048 full handshakes. A session takes about 300 bytes
    /// plus the client's certificate chain where there is one: 1.3 MiB at the default; rounded up to a multiple
    /// of 16.
    pub sessions: usize,
    /// How many single-use tickets a client gets per TLS 1.3 handshake, 0 to 8. Default 2: enough for a browser
    /// that reconnects while it opens a second connection. Each takes one of the [`ServerOptions::sessions`].
    pub tickets: usize,
    /// How many compressed certificate chains (RFC 8879) are kept, so that compression is paid once per
    /// certificate and algorithm. Default 256, which is about 1 MiB; give twice the number of certificates.
    pub compressed_certificates: usize,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self { versions: Versions::default(), sessions: 4096, tickets: 2, compressed_certificates: 256 }
    }
}

impl ServerOptions {
    /// Sets [`ServerOptions::versions`].
    #[must_use]
    pub fn with_versions(mut self, versions: Versions) -> Self {
        self.versions = versions;
        self
    }

    /// Sets [`ServerOptions::sessions`].
    #[must_use]
    pub fn with_sessions(mut self, sessions: usize) -> Self {
        self.sessions = sessions;
        self
    }

    /// Sets [`ServerOptions::tickets`].
    #[must_use]
    pub fn with_tickets(mut self, tickets: usize) -> Self {
        self.tickets = tickets;
        self
    }

    /// Sets [`ServerOptions::compressed_certificates`].
    #[must_use]
    pub fn with_compressed_certificates(mut self, compressed_certificates: usize) -> Self {
        self.compressed_certificates = compressed_certificates;
        self
    }
}

/// Why no configuration could be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// More tickets than allowed.
    #[error("{0} session tickets per handshake are too many: 8 at most")]
    Tickets(usize),
    /// rustls refused the versions.
    #[error("the TLS versions cannot be used with this provider")]
    Versions(#[source] rustls::Error),
}

/// A configuration for TLS over TCP that offers `h2` and `http/1.1` by ALPN (RFC 7301).
///
/// # Errors
/// When an option is out of its bounds.
pub fn tcp_config(store: Arc<CertStore>, options: &ServerOptions) -> Result<Arc<ServerConfig>, ConfigError> {
    const BOTH: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];
    let versions = match options.versions {
        Versions::Tls13Only => &BOTH[..1],
        Versions::Tls12AndUp => BOTH,
    };
    config(store, options, versions, &[b"h2", b"http/1.1"])
}

/// A configuration for QUIC: TLS 1.3 with `h3` by ALPN (RFC 9114 section 3.1), for the same store.
///
/// It keeps its own sessions: a QUIC session carries transport parameters and is of no use over TCP.
///
/// # Errors
/// When an option is out of its bounds.
pub fn quic_config(store: Arc<CertStore>, options: &ServerOptions) -> Result<Arc<ServerConfig>, ConfigError> {
    config(store, options, &[&TLS13], &[b"h3"])
}

fn config(
    store: Arc<CertStore>,
    options: &ServerOptions,
    versions: &[&'static SupportedProtocolVersion],
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, ConfigError> {
    if options.tickets > 8 {
        return Err(ConfigError::Tickets(options.tickets));
    }
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(versions)
        .map_err(ConfigError::Versions)?
        .with_no_client_auth()
        .with_cert_resolver(store);
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    if options.sessions == 0 {
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    } else {
        config.session_storage = SessionStore::new(options.sessions);
        config.send_tls13_tickets = options.tickets;
    }
    // 0-RTT stays off: requests in it can be replayed (RFC 8446 section 8) and nothing here guards them.
    config.max_early_data_size = 0;
    config.cert_compression_cache = Arc::new(CompressionCache::new(options.compressed_certificates));
    // Ours are compressed; a client's are not decompressed, since a small one can unfold to a huge one before
    // anybody is authenticated.
    config.cert_decompressors = Vec::new();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> Arc<CertStore> {
        Arc::new(CertStore::new())
    }

    #[test]
    fn the_defaults() {
        let config = tcp_config(store(), &ServerOptions::default()).unwrap();
        assert_eq!(config.alpn_protocols, [&b"h2"[..], b"http/1.1"]);
        assert_eq!((config.max_early_data_size, config.send_tls13_tickets), (0, 2));
        assert!(config.session_storage.can_cache() && !config.ticketer.enabled());
        assert_eq!(config.cert_compressors.len(), 2, "Brotli and zlib");
        assert!(config.cert_decompressors.is_empty());
        let quic = quic_config(store(), &ServerOptions::default()).unwrap();
        assert_eq!(quic.alpn_protocols, [&b"h3"[..]]);
    }

    #[test]
    fn no_sessions_no_tickets() {
        let config = tcp_config(store(), &ServerOptions::default().with_sessions(0)).unwrap();
        assert_eq!(config.send_tls13_tickets, 0);
        assert!(!config.session_storage.can_cache());
    }

    #[test]
    fn tickets_are_bounded() {
        let options = ServerOptions::default().with_tickets(9);
        assert!(matches!(tcp_config(store(), &options), Err(ConfigError::Tickets(9))));
    }
}
