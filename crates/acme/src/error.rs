//! What can go wrong, and what to do about it.

use std::{
    error::Error as StdError,
    fmt, io,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use portcullis_tls::client::ClientConfigError;

use crate::{dns::DnsError, storage::StorageError};

/// A cause of which the type is no part of this crate's interface.
pub type BoxError = Box<dyn StdError + Send + Sync + 'static>;

/// Why options were refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// A name is not one that a certificate can be issued for.
    #[error("no certificate can be issued for {name:?}: {reason}")]
    Name {
        /// The name as it was given.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A certificate without names.
    #[error("certificate {position} has no names: give each at least one")]
    NoNames {
        /// Counted from 1.
        position: usize,
    },
    /// More names than authorities put into one certificate.
    #[error("certificate {position} has {count} names: {limit} at most fit into one, so split it")]
    TooManyNames {
        /// Counted from 1.
        position: usize,
        /// How many it has.
        count: usize,
        /// The bound.
        limit: usize,
    },
    /// A name stands in two certificates.
    #[error("{name} stands in two certificates: leave it in one")]
    NameTwice {
        /// The name.
        name: String,
    },
    /// A wildcard needs DNS-01.
    #[error("{name} can be proved by dns-01 alone: set that challenge, or list the names one by one")]
    Wildcard {
        /// The wildcard.
        name: String,
    },
    /// An address can't be proved by DNS-01.
    #[error("the address {name} cannot be proved by dns-01: use tls-alpn-01 or http-01 for it")]
    Address {
        /// The address.
        name: String,
    },
    /// A URL can't be used.
    #[error("{url:?} cannot be used as {what}: {reason}")]
    Url {
        /// The URL.
        url: String,
        /// What it is for.
        what: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The key of the external account is not base64url.
    #[error("the external account's HMAC key is not base64url: copy it again as the authority shows it")]
    HmacKey,
    /// The file with the key of the external account can't be read.
    #[error("cannot read the external account's HMAC key in {}", path.display())]
    HmacKeyFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// TLS to the authority can't be set up.
    #[error("TLS to the certificate authority cannot be set up")]
    Tls(#[source] ClientConfigError),
}

/// Why no certificate could be loaded or issued.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcmeError {
    /// The options were refused.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// What is stored, or what the authority sent, is no certificate that can be served.
    #[error("the certificate from {origin} cannot be used: {reason}")]
    Certificate {
        /// Where it came from.
        origin: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The stored account can't be read.
    #[error("the account stored as {key} cannot be read: restore it, or remove it to have a new one made")]
    Account {
        /// Its key in the storage.
        key: String,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// Another instance holds a lock for longer than anything done under it takes.
    #[error("another instance has held the lock {key} for {} s: see whether it hangs", waited.as_secs())]
    Locked {
        /// The lock.
        key: String,
        /// How long was waited.
        waited: Duration,
    },
    /// The authority answered with a problem (RFC 8555 section 6.7), or could not be asked.
    #[error("{action} failed at the certificate authority")]
    Authority {
        /// What was asked.
        action: &'static str,
        /// The problem's type, as `urn:ietf:params:acme:error:rateLimited`, if it was one.
        problem: Option<String>,
        /// Until when the authority asks not to come again.
        retry_after: Option<SystemTime>,
        /// What it said.
        #[source]
        source: BoxError,
    },
    /// The authority did not find the answer to its challenges.
    #[error("the certificate authority could not validate {failed}")]
    Validation {
        /// Each name with what the authority said about it.
        failed: String,
    },
    /// The authority does not offer the challenge.
    #[error(
        "the certificate authority offers no {wanted} for {name}, but {offered}: choose one of those \
         challenges"
    )]
    NoChallenge {
        /// The name to be proved.
        name: String,
        /// The challenge that is set.
        wanted: &'static str,
        /// Those that are offered.
        offered: String,
    },
    /// The authority does not have the profile.
    #[error("the certificate authority has no profile {wanted:?}: it offers {offered}")]
    Profile {
        /// The one that is set.
        wanted: String,
        /// Those that the directory lists.
        offered: String,
    },
    /// The hook for DNS records failed.
    #[error("the record {name} could not be set")]
    Dns {
        /// The record.
        name: String,
        /// Why not.
        #[source]
        source: DnsError,
    },
    /// A key or a request could not be made.
    #[error("no key and request could be made for the certificate")]
    Generate(#[source] rcgen::Error),
    /// The policy for names on demand no longer allows the name.
    #[error("{name} is no longer allowed by the policy for names on demand: it is not renewed")]
    NotAllowed {
        /// The name.
        name: String,
    },
    /// Issuing took too long.
    #[error("no certificate after {} s: the next attempt begins anew", waited.as_secs())]
    Timeout {
        /// How long was waited.
        waited: Duration,
    },
    /// A thread ended before its work was done, as when the runtime shuts down.
    #[error("the work was cut short: the process is ending")]
    Cut,
}

impl AcmeError {
    /// Until when the authority asked not to come again, if it did.
    pub fn retry_after(&self) -> Option<SystemTime> {
        match self {
            Self::Authority { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether the authority said that too much was asked of it.
    pub fn is_rate_limited(&self) -> bool {
        self.is_problem("rateLimited")
    }

    pub(crate) fn is_problem(&self, kind: &str) -> bool {
        match self {
            Self::Authority { problem: Some(problem), .. } => {
                problem.strip_prefix("urn:ietf:params:acme:error:") == Some(kind)
            }
            _ => false,
        }
    }
}

/// An error with its causes in one line.
pub(crate) struct Causes<'a>(pub(crate) &'a (dyn StdError + 'static));

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
