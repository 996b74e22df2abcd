//! The part of a plan that is about certificates from an authority, and what is made of it.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use portcullis_acme::{
    Acme, AcmeError, AcmeOptions, Challenge, DirStorage, ExecHook, ExternalAccount, HttpAsk, OnDemand,
    OptionsError, Storage,
};
use portcullis_tls::{CertStore, client::Roots};
use tracing::info;

use crate::EdgeError;

/// Certificates by ACME, kept up as long as the edge runs. HTTP-01 challenges are answered on every listener, before any route; TLS-ALPN-01
/// challenges on every TLS listener over TCP. Certificates on demand are for clients over TCP; over QUIC such a name is unknown until it has one.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AcmePlan {
    /// What is issued, by whom and how. The files and the URL below go before what stands in it.
    pub options: AcmeOptions,
    /// Where certificates, keys and the account are kept.
    pub storage: AcmeStorage,
    /// A PEM file of authorities, for [`AcmeOptions::roots`]. Default none.
    pub roots: Option<PathBuf>,
    /// A program that sets DNS records, for [`Challenge::Dns01`]. Default none.
    pub dns_hook: Option<DnsHookPlan>,
    /// For [`AcmeOptions::external_account`]. Default none.
    pub external_account: Option<ExternalAccountPlan>,
    /// For [`AcmeOptions::on_demand`]. Default none.
    pub on_demand: Option<OnDemandPlan>,
}

/// Where certificates, keys and the account are kept.
#[derive(Clone)]
#[non_exhaustive]
pub enum AcmeStorage {
    /// In a directory; instances that have the same one share what is in it.
    Directory(PathBuf),
    /// In a storage of the program's own.
    Given(Arc<dyn Storage>),
}

/// A program that sets DNS records; see [`ExecHook`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DnsHookPlan {
    /// The program.
    pub program: PathBuf,
    /// What it gets before the verb.
    pub args: Vec<String>,
    /// See [`ExecHook::with_timeout`]. Default 60 s.
    pub timeout: Duration,
    /// See [`ExecHook::with_propagation`]. Default none.
    pub propagation: Duration,
}

/// The account at the authority that this one belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExternalAccountPlan {
    /// The key's identifier.
    pub key_id: String,
    /// A file with the key in base64url.
    pub hmac_key: PathBuf,
}

/// Certificates for names that clients ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OnDemandPlan {
    /// The URL that says who may have one; see [`HttpAsk`].
    pub ask: String,
    /// See [`OnDemand::max_issued`]. Default 10.
    pub max_issued: usize,
    /// See [`OnDemand::per`]. Default 10 min.
    pub per: Duration,
    /// See [`OnDemand::max_names`]. Default 10,000.
    pub max_names: usize,
    /// See [`OnDemand::wait`]. Default 8 s.
    pub wait: Duration,
}

impl AcmePlan {
    /// With a storage, and options as they are by default.
    pub fn new(storage: AcmeStorage) -> Self {
        let options = AcmeOptions::default();
        Self { options, storage, roots: None, dns_hook: None, external_account: None, on_demand: None }
    }

    /// In a directory.
    pub fn in_directory(path: impl Into<PathBuf>) -> Self {
        Self::new(AcmeStorage::Directory(path.into()))
    }

    /// Sets [`AcmePlan::options`].
    #[must_use]
    pub fn with_options(mut self, options: AcmeOptions) -> Self {
        self.options = options;
        self
    }

    /// Finds what contradicts itself, without reading anything.
    ///
    /// # Errors
    /// When an option is out of its bounds, or two contradict each other.
    pub fn check(&self) -> Result<(), OptionsError> {
        self.with_hook().check()
    }

    fn with_hook(&self) -> AcmeOptions {
        let options = self.options.clone();
        let Some(plan) = &self.dns_hook else { return options };
        let hook = ExecHook::new(&plan.program, &plan.args)
            .with_timeout(plan.timeout)
            .with_propagation(plan.propagation);
        options.with_challenge(Challenge::Dns01(Arc::new(hook)))
    }

    /// Reads the files, takes what the storage has, and asks nobody. Blocks.
    pub(crate) fn load(&self, store: &Arc<CertStore>) -> Result<Acme, EdgeError> {
        let storage: Arc<dyn Storage> = match &self.storage {
            AcmeStorage::Directory(path) => Arc::new(DirStorage::new(path)),
            AcmeStorage::Given(storage) => Arc::clone(storage),
        };
        let acme = Acme::new(store, storage, self.resolved()?).map_err(EdgeError::Acme)?;
        let loaded = acme.load().map_err(EdgeError::Acme)?;
        for names in &loaded.missing {
            info!(names = names.join(", "), "there is no certificate yet: it will be issued");
        }
        Ok(acme)
    }

    fn resolved(&self) -> Result<AcmeOptions, EdgeError> {
        let refused = |error| EdgeError::Acme(AcmeError::from(error));
        let mut options = self.with_hook();
        if let Some(path) = &self.roots {
            options.roots = Roots::from_file(path).map_err(EdgeError::AcmeRoots)?;
        }
        if let Some(account) = &self.external_account {
            let account = ExternalAccount::from_file(account.key_id.as_str(), &account.hmac_key);
            options.external_account = Some(account.map_err(refused)?);
        }
        if let Some(plan) = &self.on_demand {
            let ask = HttpAsk::new(plan.ask.as_str(), Roots::Native).map_err(refused)?;
            let on_demand = OnDemand::new(ask)
                .with_max_issued_per(plan.max_issued, plan.per)
                .with_max_names(plan.max_names)
                .with_wait(plan.wait);
            options.on_demand = Some(on_demand);
        }
        Ok(options)
    }
}

impl DnsHookPlan {
    /// With a program and what it gets first.
    pub fn new(program: impl Into<PathBuf>, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            program: program.into(),
            args: args.into_iter().map(Into::into).collect(),
            timeout: Duration::from_secs(60),
            propagation: Duration::ZERO,
        }
    }
}

impl ExternalAccountPlan {
    /// With both.
    pub fn new(key_id: impl Into<String>, hmac_key: impl Into<PathBuf>) -> Self {
        Self { key_id: key_id.into(), hmac_key: hmac_key.into() }
    }
}

impl OnDemandPlan {
    /// With the URL to ask.
    pub fn new(ask: impl Into<String>) -> Self {
        Self {
            ask: ask.into(),
            max_issued: 10,
            per: Duration::from_secs(600),
            max_names: 10_000,
            wait: Duration::from_secs(8),
        }
    }
}

impl fmt::Debug for AcmeStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => f.debug_tuple("Directory").field(path).finish(),
            Self::Given(_) => f.write_str("Given"),
        }
    }
}
