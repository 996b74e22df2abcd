//! What to have issued, by whom, and how.

use std::{fmt, fs, path::Path, sync::Arc, time::Duration};

use instant_acme::ChallengeType;
use portcullis_tls::client::Roots;

use crate::{dns::DnsHook, error::OptionsError, names::base64url, on_demand::OnDemand};

/// Which certificate authority issues, by the URL of its directory (RFC 8555 section 7.1.1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Directory {
    /// Let's Encrypt. Using it means agreeing to its terms of service.
    #[default]
    LetsEncrypt,
    /// Let's Encrypt's authority for trials: no client trusts what it issues, and its limits are wide.
    LetsEncryptStaging,
    /// Another one, by URL; `https` only. Using it means agreeing to its terms of service.
    Url(String),
}

impl Directory {
    /// The URL.
    pub fn url(&self) -> &str {
        match self {
            Self::LetsEncrypt => instant_acme::LetsEncrypt::Production.url(),
            Self::LetsEncryptStaging => instant_acme::LetsEncrypt::Staging.url(),
            Self::Url(url) => url,
        }
    }
}

/// How the authority is shown that names are ours.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Challenge {
    /// By a certificate that answers on port 443 (RFC 8737), through [`crate::Acme::name_hook`]. The default: an edge
    /// that serves TLS needs nothing else. What is in front of it must pass TLS through as it is.
    #[default]
    TlsAlpn01,
    /// By a response on port 80 (RFC 8555 section 8.3), through [`crate::Acme::http01`].
    Http01,
    /// By a DNS record (RFC 8555 section 8.4): for wildcards, and where the authority can't reach this server.
    Dns01(Arc<dyn DnsHook>),
}

impl Challenge {
    /// Its name in the protocol.
    pub fn name(&self) -> &'static str {
        match self {
            Self::TlsAlpn01 => "tls-alpn-01",
            Self::Http01 => "http-01",
            Self::Dns01(_) => "dns-01",
        }
    }

    pub(crate) fn kind(&self) -> ChallengeType {
        match self {
            Self::TlsAlpn01 => ChallengeType::TlsAlpn01,
            Self::Http01 => ChallengeType::Http01,
            Self::Dns01(_) => ChallengeType::Dns01,
        }
    }
}

impl fmt::Debug for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The kind of key of certificates. The account's key is P-256 always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyKind {
    /// ECDSA over P-256: small and quick, and every client since about 2014 has it. The default.
    #[default]
    P256,
    /// ECDSA over P-384.
    P384,
    /// RSA with 2048 bits: for very old clients. Handshakes cost the server some ten times as much.
    Rsa2048,
}

impl KeyKind {
    pub(crate) fn algorithm(self) -> &'static rcgen::SignatureAlgorithm {
        match self {
            Self::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Self::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            Self::Rsa2048 => &rcgen::PKCS_RSA_SHA256,
        }
    }
}

/// What ties the ACME account to one that the authority knows already (RFC 8555 section 7.3.4).
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExternalAccount {
    /// The key's identifier, as the authority shows it.
    pub key_id: String,
    /// The key, in base64url, as the authority shows it. Not printed.
    pub hmac_key: String,
}

impl ExternalAccount {
    /// With both as the authority shows them.
    pub fn new(key_id: impl Into<String>, hmac_key: impl Into<String>) -> Self {
        Self { key_id: key_id.into(), hmac_key: hmac_key.into() }
    }

    /// With the key from a file; white space around it is left out. Blocks.
    ///
    /// # Errors
    /// When the file can't be read, or what is in it is no key.
    pub fn from_file(key_id: impl Into<String>, path: &Path) -> Result<Self, OptionsError> {
        let read = |source| OptionsError::HmacKeyFile { path: path.to_owned(), source };
        let key = fs::read_to_string(path).map_err(read)?;
        let account = Self::new(key_id, key.trim());
        if base64url(&account.hmac_key).is_none() { Err(OptionsError::HmacKey) } else { Ok(account) }
    }
}

impl fmt::Debug for ExternalAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExternalAccount").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

/// What is issued, by whom, and how it is kept up.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AcmeOptions {
    /// The authority. Default [`Directory::LetsEncrypt`].
    pub directory: Directory,
    /// Whom to believe that it is the authority, at its HTTPS endpoint. Default [`Roots::Native`]; a private authority
    /// needs its own.
    pub roots: Roots,
    /// Where the authority writes to, as `mailto:` URLs or plain addresses. Default none. What is changed here is
    /// changed at the authority with the next order.
    pub contacts: Vec<String>,
    /// Default none.
    pub external_account: Option<ExternalAccount>,
    /// The authority's profile for orders, as `shortlived`. Default none, which leaves it to the authority.
    pub profile: Option<String>,
    /// Default [`Challenge::TlsAlpn01`].
    pub challenge: Challenge,
    /// Default [`KeyKind::P256`]. A new key is made for every certificate.
    pub key: KeyKind,
    /// The names of each certificate: DNS names of at least two labels, wildcards with DNS-01 alone, IP addresses
    /// where the authority has a profile for them; 100 in one at most, and each name in one certificate only. Default
    /// none. Who removes a certificate here stops renewing it; what is stored of it stays.
    pub certificates: Vec<Vec<String>>,
    /// The part of its lifetime that a certificate has left when it is renewed. Default a third, as authorities
    /// advise: 30 days of 90. Within 0.05 to 0.95. Where the authority tells when to renew (RFC 9773), that goes
    /// before it.
    pub renew_before: f64,
    /// Certificates for names that clients ask for. Default none.
    pub on_demand: Option<OnDemand>,
    /// How often storage is looked at for what other instances issued, and answers to challenges that nobody needs any
    /// more are forgotten. Default 30 s; at least 100 ms. It reads one small file for each certificate.
    pub poll: Duration,
    /// How long to wait after the first failure. Default 1 min; it doubles with each one up to `retry_max`, and
    /// differs by up to a quarter, so that instances don't come together. At least 10 ms.
    pub retry_min: Duration,
    /// The longest wait between attempts. Default 6 h. After `rateLimited` the wait is an hour at least, or what the
    /// authority says. It is also how long a certificate that was just issued is not renewed, so that a wrong clock or
    /// suggestion has no order follow another.
    pub retry_max: Duration,
    /// How many orders are under way at once. Default 4; at least 1. Each holds some 100 KiB.
    pub orders_at_once: usize,
    /// How long one order may take, DNS propagation included. Default 10 min.
    pub order_timeout: Duration,
}

/// Longer than anything here is waited for.
const LONGEST: Duration = Duration::from_secs(30 * 86_400);

impl Default for AcmeOptions {
    fn default() -> Self {
        Self {
            directory: Directory::LetsEncrypt,
            roots: Roots::Native,
            contacts: Vec::new(),
            external_account: None,
            profile: None,
            challenge: Challenge::TlsAlpn01,
            key: KeyKind::P256,
            certificates: Vec::new(),
            renew_before: 1.0 / 3.0,
            on_demand: None,
            poll: Duration::from_secs(30),
            retry_min: Duration::from_secs(60),
            retry_max: Duration::from_secs(6 * 3600),
            orders_at_once: 4,
            order_timeout: Duration::from_secs(600),
        }
    }
}

impl AcmeOptions {
    /// With an authority.
    pub fn new(directory: Directory) -> Self {
        Self { directory, ..Self::default() }
    }

    /// Finds what [`crate::Acme::new`] would refuse, without reading anything.
    ///
    /// # Errors
    /// When an option is out of its bounds, or two contradict each other.
    pub fn check(&self) -> Result<(), OptionsError> {
        crate::acme::checked(self.clone()).map(drop)
    }

    /// Sets [`AcmeOptions::roots`].
    #[must_use]
    pub fn with_roots(mut self, roots: Roots) -> Self {
        self.roots = roots;
        self
    }

    /// Sets [`AcmeOptions::contacts`].
    #[must_use]
    pub fn with_contacts(mut self, contacts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.contacts = contacts.into_iter().map(Into::into).collect();
        self
    }

    /// Sets [`AcmeOptions::external_account`].
    #[must_use]
    pub fn with_external_account(mut self, account: ExternalAccount) -> Self {
        self.external_account = Some(account);
        self
    }

    /// Sets [`AcmeOptions::profile`].
    #[must_use]
    pub fn with_profile(mut self, profile: impl Into<String>) -> Self {
        self.profile = Some(profile.into());
        self
    }

    /// Sets [`AcmeOptions::challenge`].
    #[must_use]
    pub fn with_challenge(mut self, challenge: Challenge) -> Self {
        self.challenge = challenge;
        self
    }

    /// Sets [`AcmeOptions::key`].
    #[must_use]
    pub fn with_key(mut self, key: KeyKind) -> Self {
        self.key = key;
        self
    }

    /// Adds a certificate for these names to [`AcmeOptions::certificates`].
    #[must_use]
    pub fn with_certificate(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.certificates.push(names.into_iter().map(Into::into).collect());
        self
    }

    /// Sets [`AcmeOptions::renew_before`], brought within its bounds.
    #[must_use]
    pub fn with_renew_before(mut self, fraction: f64) -> Self {
        self.renew_before = if fraction.is_nan() { 1.0 / 3.0 } else { fraction.clamp(0.05, 0.95) };
        self
    }

    /// Sets [`AcmeOptions::on_demand`].
    #[must_use]
    pub fn with_on_demand(mut self, on_demand: OnDemand) -> Self {
        self.on_demand = Some(on_demand);
        self
    }

    /// Sets [`AcmeOptions::poll`].
    #[must_use]
    pub fn with_poll(mut self, poll: Duration) -> Self {
        self.poll = poll.clamp(Duration::from_millis(100), LONGEST);
        self
    }

    /// Sets [`AcmeOptions::retry_min`] and [`AcmeOptions::retry_max`]; the second is at least the first.
    #[must_use]
    pub fn with_retry(mut self, min: Duration, max: Duration) -> Self {
        self.retry_min = min.clamp(Duration::from_millis(10), LONGEST);
        self.retry_max = max.clamp(self.retry_min, LONGEST);
        self
    }

    /// Sets [`AcmeOptions::orders_at_once`].
    #[must_use]
    pub fn with_orders_at_once(mut self, orders: usize) -> Self {
        self.orders_at_once = orders.max(1);
        self
    }

    /// Sets [`AcmeOptions::order_timeout`].
    #[must_use]
    pub fn with_order_timeout(mut self, order_timeout: Duration) -> Self {
        self.order_timeout = order_timeout;
        self
    }
}
