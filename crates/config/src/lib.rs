//! The edge's TOML file: every error at once with line and column, lowered to a typed plan.
//!
#![doc = include_str!("../REFERENCE.md")]

mod disk;
mod errors;
mod lower;
mod net;
mod reader;
mod suggest;
mod values;

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use portcullis_edge::{
    listener::{ListenAddr, UnixName},
    plan::{
        AcmePlan, AcmeStorage, CertificateSource, ChainPlan, ClientAuthPlan, ClusterPlan, DiscoveryPlan,
        JwtKeys, ListenOn, LogOutput, MaintenancePlan, Plan, ResumptionPlan, RouteAction, Setting, TlsPlan,
        UpstreamRoots,
    },
};
use toml::de::DeTable;

pub use errors::{ConfigError, Errors, LoadError, Warnings};

use errors::{Finding, Lines};
use reader::{Sink, Table};

/// The largest file that [`load`] reads. Default 4 MiB: far above any file that was written by hand, and a wrong
/// path (a log, a device) ends soon.
pub const MAX_FILE_BYTES: u64 = 4 << 20;

/// A file without errors.
#[derive(Clone, Debug)]
pub struct Config {
    plan: Plan,
    process: ProcessOptions,
    warnings: Warnings,
}

impl Config {
    /// What is allowed but probably not meant.
    pub fn warnings(&self) -> &Warnings {
        &self.warnings
    }

    /// The plan that the file describes.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What the file says to the program rather than to its edge.
    pub fn process(&self) -> ProcessOptions {
        self.process
    }

    /// Takes the plan out.
    pub fn lower(self) -> Plan {
        self.plan
    }
}

/// What a file says to the program that runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProcessOptions {
    /// Whether the file is read again when it changes, without being told to. Default `false`.
    pub watch: bool,
    /// How long a new process may take to get ready in an upgrade before it is given up. Default 30 s.
    pub upgrade_timeout: Duration,
}

impl Default for ProcessOptions {
    fn default() -> Self {
        Self { watch: false, upgrade_timeout: Duration::from_secs(30) }
    }
}

/// Reads the text of a file; `name` is what errors call it. Paths in it stay as they are written.
///
/// # Errors
///
/// Everything that is wrong with it, at once.
pub fn parse(name: &str, text: &str) -> Result<Config, Errors> {
    let sink = Sink::default();
    let (root, syntax) = DeTable::parse_recoverable(text);
    for error in &syntax {
        sink.syntax(error);
    }
    let root = Table::new(&sink, "the top level", 0..0, root.into_inner());
    let (plan, process) = lower::plan(root, &Lines::new(text));
    let (errors, warnings) = sink.into_findings(text);
    if errors.is_empty() {
        Ok(Config { plan, process, warnings: Warnings::new(name, text, warnings) })
    } else {
        Err(Errors::new(name, text, errors))
    }
}

/// Reads a file. Relative paths in it are taken from the file's own directory.
///
/// # Errors
///
/// [`LoadError::Invalid`] with everything that is wrong with it, or why it could not be read.
pub fn load(path: impl AsRef<Path>) -> Result<Config, LoadError> {
    let path = path.as_ref();
    let failed = |source| LoadError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(LoadError::TooLarge { path: path.to_owned(), limit: MAX_FILE_BYTES });
    }
    let name = path.to_string_lossy();
    let text = String::from_utf8(bytes).map_err(|error| not_utf8(&name, &error))?;
    let mut config = parse(&name, &text)?;
    if let Some(directory) = path.parent() {
        rebase(&mut config.plan, directory);
    }
    Ok(config)
}

fn rebase_tls(tls: &mut TlsPlan, rebase: impl Fn(&mut PathBuf)) {
    if let ResumptionPlan::Tickets { keys: Some(keys) } = &mut tls.resumption {
        rebase(keys);
    }
    let hosts = tls.hosts.iter_mut().map(|host| &mut host.client_auth);
    for client_auth in hosts.chain([&mut tls.client_auth]) {
        if let ClientAuthPlan::Optional { ca, crls } | ClientAuthPlan::Required { ca, crls } = client_auth {
            rebase(ca);
            crls.iter_mut().for_each(&rebase);
        }
    }
}

fn rebase_chain(chain: &mut ChainPlan, rebase: impl Fn(&mut PathBuf)) {
    if let Setting::Own(filter) = &mut chain.filter {
        filter.countries.iter_mut().for_each(&rebase);
        for name in filter.options.rules.iter_mut().flat_map(|rule| &mut rule.client_sets) {
            let mut path = PathBuf::from(&*name);
            rebase(&mut path);
            *name = path.to_string_lossy().into_owned();
        }
    }
    if let Setting::Own(MaintenancePlan { file: Some(file), .. }) = &mut chain.maintenance {
        rebase(file);
    }
    if let Setting::Own(basic_auth) = &mut chain.basic_auth {
        rebase(&mut basic_auth.users);
    }
    if let Setting::Own(jwt) = &mut chain.jwt
        && let JwtKeys::Secret(path) | JwtKeys::Pem(path) | JwtKeys::Set(path) = &mut jwt.keys
    {
        rebase(path);
    }
}

fn rebase_acme(acme: &mut AcmePlan, rebase: impl Fn(&mut PathBuf)) {
    if let AcmeStorage::Directory(path) = &mut acme.storage {
        rebase(path);
    }
    acme.roots.iter_mut().for_each(&rebase);
    if let Some(account) = &mut acme.external_account {
        rebase(&mut account.hmac_key);
    }
    // a name alone is looked for where programs are
    if let Some(hook) = &mut acme.dns_hook
        && hook.program.components().nth(1).is_some()
    {
        rebase(&mut hook.program);
    }
}

fn rebase_cluster(cluster: &mut ClusterPlan, rebase: impl Fn(&mut PathBuf)) {
    if let Some(DiscoveryPlan::File { path, .. }) = &mut cluster.discovery {
        rebase(path);
    }
    let Some(tls) = &mut cluster.tls else { return };
    if let UpstreamRoots::File(path) = &mut tls.roots {
        rebase(path);
    }
    if let Some((chain, key)) = &mut tls.identity {
        rebase(chain);
        rebase(key);
    }
}

fn not_utf8(name: &str, error: &std::string::FromUtf8Error) -> Errors {
    let at = error.utf8_error().valid_up_to();
    let found = Finding {
        span: at..at,
        message: "the file is not UTF-8 from here on".to_owned(),
        hint: Some("save it as UTF-8".to_owned()),
    };
    Errors::new(name, &String::from_utf8_lossy(error.as_bytes()), vec![found])
}

fn rebase(plan: &mut Plan, directory: &Path) {
    // an absolute path stays what it is
    let rebase = |path: &mut PathBuf| *path = directory.join(&*path);
    for source in &mut plan.certificates {
        match source {
            CertificateSource::Files { cert, key } => {
                rebase(cert);
                rebase(key);
            }
            CertificateSource::Directory(path) => rebase(path),
            _ => {}
        }
    }
    if let Some(acme) = &mut plan.acme {
        rebase_acme(acme, rebase);
    }
    for listener in &mut plan.listeners {
        rebase_tls(&mut listener.tls, rebase);
        if let ListenOn::Address(ListenAddr::Unix(UnixName::Path(path))) = &mut listener.address {
            rebase(path);
        }
    }
    if let Some(key) = plan.quic.ids.as_mut().and_then(|ids| ids.key.as_mut()) {
        rebase(key);
    }
    plan.quic.keys.iter_mut().for_each(rebase);
    if let Some(disk) = plan.cache.as_mut().and_then(|cache| cache.disk.as_mut()) {
        rebase(&mut disk.path);
    }
    if let Some(qlog) = &mut plan.quic.qlog {
        rebase(&mut qlog.directory);
    }
    for route in &mut plan.routes {
        if let RouteAction::Files(files) = &mut route.action {
            rebase(&mut files.root);
        }
    }
    for cluster in &mut plan.clusters {
        rebase_cluster(cluster, rebase);
    }
    for log in &mut plan.access_log {
        if let LogOutput::File(path) = &mut log.output {
            rebase(path);
        }
    }
    for chain in plan.routes.iter_mut().map(|route| &mut route.chain).chain([&mut plan.chain]) {
        rebase_chain(chain, rebase);
    }
}
