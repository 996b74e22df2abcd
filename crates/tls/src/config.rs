//! How a server speaks TLS, as plain options.

use std::sync::Arc;

use rustls::ServerConfig;

use crate::{client_auth::ClientAuth, server_tls::ServerTls, store::CertStore, tickets::TicketKeys};

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

/// How clients come back without a full handshake.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Resumption {
    /// They don't.
    Off,
    /// By tickets, with keys of this process alone that rotate by themselves; made with the configuration. The default.
    #[default]
    Tickets,
    /// By tickets of these keys, which several configurations or instances share.
    SharedTickets(TicketKeys),
    /// By sessions that are kept here and used once, with early data (0-RTT, RFC 8446 section 8.1): a client's first
    /// request comes with its first packet. What comes so can be replayed by an attacker until the handshake is
    /// complete; that a session is used once bars it on this process, and who handles requests must know
    /// [`portcullis_conn::ConnInfo::is_early`].
    ZeroRtt(ZeroRtt),
}

/// Early data and its sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ZeroRtt {
    /// How many bytes a client may send early over TCP, 1 to 16384; on QUIC its flow control is the bound. Default 16 KiB, which is
    /// what a request's head and some more take. A connection keeps as much in memory until it is read.
    pub max_early_data: u32,
    /// How many sessions are kept, over TCP and again over QUIC. Default 16384: with
    /// [`ServerOptions::tickets`] at 2, the last 8192 full handshakes. A session takes about 300 bytes: 5 MiB;
    /// rounded up to a multiple of 16. When there are too many the oldest go, and their clients shake hands in full.
    pub sessions: usize,
    /// Whether requests in early data are answered before the client has completed its handshake (half-RTT data,
    /// RFC 8446 section 2.3). Default `true`, for that is what spares the client its wait; with `false` they are handled early and the answer
    /// waits.
    pub half_rtt: bool,
}

impl Default for ZeroRtt {
    fn default() -> Self {
        Self { max_early_data: 16 << 10, sessions: 16 << 10, half_rtt: true }
    }
}

impl ZeroRtt {
    /// Sets [`ZeroRtt::max_early_data`].
    #[must_use]
    pub fn with_max_early_data(mut self, max_early_data: u32) -> Self {
        self.max_early_data = max_early_data;
        self
    }

    /// Sets [`ZeroRtt::sessions`].
    #[must_use]
    pub fn with_sessions(mut self, sessions: usize) -> Self {
        self.sessions = sessions;
        self
    }

    /// Sets [`ZeroRtt::half_rtt`].
    #[must_use]
    pub fn with_half_rtt(mut self, half_rtt: bool) -> Self {
        self.half_rtt = half_rtt;
        self
    }
}

/// What a client gets that asks for a name nobody has a certificate for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnknownNames {
    /// The default certificate, unless the store is [strict](CertStore::with_strict).
    #[default]
    Default,
    /// An alert.
    Refuse,
}

/// What is different for some names.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HostPolicy {
    /// The names, or `*.example.com` for one label below; the exact name wins.
    pub names: Vec<String>,
    /// The protocol versions.
    pub versions: Versions,
    /// Whether clients must show a certificate.
    pub client_auth: ClientAuth,
}

impl HostPolicy {
    /// Asks clients of these names as `client_auth` says; TLS 1.3 only.
    pub fn new(names: impl IntoIterator<Item = impl Into<String>>, client_auth: ClientAuth) -> Self {
        let names = names.into_iter().map(Into::into).collect();
        Self { names, versions: Versions::default(), client_auth }
    }

    /// Sets [`HostPolicy::versions`].
    #[must_use]
    pub fn with_versions(mut self, versions: Versions) -> Self {
        self.versions = versions;
        self
    }
}

/// How a server speaks TLS.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServerOptions {
    /// The protocol versions. Default [`Versions::Tls13Only`]: every current browser, curl, Go, Java and OpenSSL
    /// speaks it, and it hides the certificate. QUIC is TLS 1.3 whatever this says (RFC 9001 section 4.2).
    pub versions: Versions,
    /// How clients come back. Default [`Resumption::Tickets`].
    pub resumption: Resumption,
    /// How many tickets a client gets per TLS 1.3 handshake, 0 to 8. Default 2: enough for a browser
    /// that reconnects while it opens a second connection.
    pub tickets: usize,
    /// Whether clients must show a certificate. Default [`ClientAuth::None`].
    pub client_auth: ClientAuth,
    /// What a client gets that asks for an unknown name. Default [`UnknownNames::Default`].
    pub unknown_names: UnknownNames,
    /// What is different for some names. Default nothing. A name of which the policy differs is not served over QUIC, which has one
    /// policy for all names: such clients come by TCP.
    pub hosts: Vec<HostPolicy>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            versions: Versions::default(),
            resumption: Resumption::default(),
            tickets: 2,
            client_auth: ClientAuth::None,
            unknown_names: UnknownNames::default(),
            hosts: Vec::new(),
        }
    }
}

impl ServerOptions {
    /// Sets [`ServerOptions::versions`].
    #[must_use]
    pub fn with_versions(mut self, versions: Versions) -> Self {
        self.versions = versions;
        self
    }

    /// Sets [`ServerOptions::resumption`].
    #[must_use]
    pub fn with_resumption(mut self, resumption: Resumption) -> Self {
        self.resumption = resumption;
        self
    }

    /// Accepts early data with [`ZeroRtt`]'s defaults.
    #[must_use]
    pub fn with_zero_rtt(self) -> Self {
        self.with_resumption(Resumption::ZeroRtt(ZeroRtt::default()))
    }

    /// Sets [`ServerOptions::tickets`].
    #[must_use]
    pub fn with_tickets(mut self, tickets: usize) -> Self {
        self.tickets = tickets;
        self
    }

    /// Sets [`ServerOptions::client_auth`].
    #[must_use]
    pub fn with_client_auth(mut self, client_auth: ClientAuth) -> Self {
        self.client_auth = client_auth;
        self
    }

    /// Sets [`ServerOptions::unknown_names`].
    #[must_use]
    pub fn with_unknown_names(mut self, unknown_names: UnknownNames) -> Self {
        self.unknown_names = unknown_names;
        self
    }

    /// Adds to [`ServerOptions::hosts`].
    #[must_use]
    pub fn with_host(mut self, host: HostPolicy) -> Self {
        self.hosts.push(host);
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
    /// Early data out of its bounds.
    #[error("{0} bytes of early data are out of bounds: give 1 to 16384")]
    EarlyData(u32),
    /// Early data where clients show certificates.
    #[error(
        "early data does not go with clients' certificates: a replayed request would come with the certificate's \
         rights; use tickets there"
    )]
    EarlyDataWithClientAuth,
    /// A name in [`ServerOptions::hosts`] is not one.
    #[error("{0:?} is no host name: give a name or *.example.com")]
    HostName(String),
    /// A name stands in two policies.
    #[error("{0} stands in two host policies: take one out")]
    HostTwice(String),
    /// [`tcp_config`] or [`quic_config`] with [`ServerOptions::hosts`].
    #[error("one configuration can't hold host policies: use ServerTls and its acceptor")]
    NeedsAcceptor,
    /// The system gives no randomness.
    #[error("no ticket keys could be made")]
    TicketKeys(#[source] crate::TicketKeyError),
    /// rustls refused the versions.
    #[error("the TLS versions cannot be used with this provider")]
    Versions(#[source] rustls::Error),
}

/// A configuration for TLS over TCP that offers `h2` and `http/1.1` by ALPN (RFC 7301), and `acme-tls/1` to whom asks for a
/// challenge's answer.
///
/// # Errors
/// When an option is out of its bounds, or there are [`ServerOptions::hosts`], for which [`ServerTls`] is there.
pub fn tcp_config(store: Arc<CertStore>, options: &ServerOptions) -> Result<Arc<ServerConfig>, ConfigError> {
    alone(options)?;
    Ok(ServerTls::new(store, options)?.tcp())
}

/// A configuration for QUIC: TLS 1.3 with `h3` by ALPN (RFC 9114 section 3.1), for the same store.
///
/// # Errors
/// As [`tcp_config`].
pub fn quic_config(store: Arc<CertStore>, options: &ServerOptions) -> Result<Arc<ServerConfig>, ConfigError> {
    alone(options)?;
    Ok(ServerTls::new(store, options)?.quic())
}

fn alone(options: &ServerOptions) -> Result<(), ConfigError> {
    if options.hosts.is_empty() { Ok(()) } else { Err(ConfigError::NeedsAcceptor) }
}
