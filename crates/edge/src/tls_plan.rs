//! The part of a plan that is about TLS.

use std::path::PathBuf;

use portcullis_tls::{UnknownNames, Versions, ZeroRtt};

/// How a listener speaks TLS, over TCP and QUIC alike. Listeners with equal plans share tickets and sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsPlan {
    /// The protocol versions. Default [`Versions::Tls13Only`].
    pub versions: Versions,
    /// How clients come back without a full handshake. Default [`ResumptionPlan::Tickets`] with keys of this process alone.
    pub resumption: ResumptionPlan,
    /// What a client gets that asks for a name nobody has a certificate for. Default: the first certificate.
    pub unknown_names: UnknownNames,
    /// Whether clients must show a certificate. Default [`ClientAuthPlan::None`].
    pub client_auth: ClientAuthPlan,
    /// What is different for some names. A name with a policy of its own is not served over HTTP/3, and a connection
    /// that was made for another name gets 421 for it.
    pub hosts: Vec<HostTlsPlan>,
    /// See [`portcullis_tls::AcceptorOptions::handshakes_at_once`]. Default 4.
    pub handshakes_at_once: usize,
    /// What happens where no certificate is found when the edge is made. Default [`WithoutCertificate::Fail`].
    pub without_certificate: WithoutCertificate,
}

/// What becomes of a TLS listener when none of [`crate::plan::Plan::certificates`] has a file. A file that is there and can't be used is
/// an error in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WithoutCertificate {
    /// The edge is not made.
    #[default]
    Fail,
    /// It serves plain HTTP, and a warning says so: for a first start before there are certificates, on a network where that does no harm.
    /// Certificates that come later are taken with the next start.
    PlainHttp,
}

impl TlsPlan {
    /// Whether clients of any name are asked for certificates.
    pub fn asks_for_certificates(&self) -> bool {
        let mut asked = self.hosts.iter().map(|host| &host.client_auth).chain([&self.client_auth]);
        asked.any(|client_auth| *client_auth != ClientAuthPlan::None)
    }
}

impl Default for TlsPlan {
    fn default() -> Self {
        Self {
            versions: Versions::default(),
            resumption: ResumptionPlan::default(),
            unknown_names: UnknownNames::default(),
            client_auth: ClientAuthPlan::default(),
            hosts: Vec::new(),
            handshakes_at_once: 4,
            without_certificate: WithoutCertificate::default(),
        }
    }
}

/// How clients come back without a full handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResumptionPlan {
    /// They don't.
    Off,
    /// By tickets.
    Tickets {
        /// The keys, shared with other instances and followed as the file changes; see
        /// [`portcullis_tls::TicketKeys::from_text`]. `None` is keys of this process alone that rotate by themselves.
        keys: Option<PathBuf>,
    },
    /// With early data; see [`portcullis_tls::Resumption::ZeroRtt`]. Requests in it are guarded as [`crate::plan::RoutePlan::early_data`] says.
    ZeroRtt(ZeroRtt),
}

impl Default for ResumptionPlan {
    fn default() -> Self {
        Self::Tickets { keys: None }
    }
}

/// Whether clients must show a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClientAuthPlan {
    /// They are not asked.
    #[default]
    None,
    /// They are asked; one that shows none is let in.
    Optional {
        /// A PEM file of the authorities whose certificates are taken.
        ca: PathBuf,
        /// PEM files of revocation lists, followed as they change.
        crls: Vec<PathBuf>,
    },
    /// They must.
    Required {
        /// A PEM file of the authorities whose certificates are taken.
        ca: PathBuf,
        /// PEM files of revocation lists, followed as they change.
        crls: Vec<PathBuf>,
    },
}

/// What is different for some names.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostTlsPlan {
    /// The names, or `*.example.com` for one label below.
    pub names: Vec<String>,
    /// The protocol versions. Default [`Versions::Tls13Only`].
    pub versions: Versions,
    /// Whether clients must show a certificate.
    pub client_auth: ClientAuthPlan,
}

impl HostTlsPlan {
    /// Asks the clients of these names as `client_auth` says.
    pub fn new(names: Vec<String>, client_auth: ClientAuthPlan) -> Self {
        Self { names, versions: Versions::default(), client_auth }
    }
}
