//! TLS of an edge: certificates that follow their files, and one policy for each listener.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use portcullis_acme::Acme;
use portcullis_h3::QuicKeys;
use portcullis_tls::{
    Acceptor, AcceptorOptions, CertPart, CertReloader, CertStore, ClientAuth, ClientCas, HostPolicy,
    Resumption, ServerOptions, ServerTls, TicketKeys, Watch,
};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    Causes, EdgeError,
    edge::Shared,
    plan::{
        CertificateSource, ClientAuthPlan, ListenerMode, ListenerPlan, Plan, ResumptionPlan, TlsPlan,
        WithoutCertificate,
    },
    quic_plan,
};

/// What the listeners of an edge speak TLS with.
#[derive(Default)]
pub(crate) struct Tls {
    pub(crate) store: Option<Arc<CertStore>>,
    /// Has certificates issued into the store.
    pub(crate) acme: Option<Acme>,
    /// In the order of the plan's listeners; `None` for those without TLS.
    listeners: Vec<Option<ListenerTls>>,
    /// Taken by the worker that follows the files.
    reloader: Mutex<Option<CertReloader>>,
    /// What the files fill; `None` where there are none.
    files: Option<CertPart>,
    /// What follows the files.
    following: Mutex<Option<Following>>,
    /// Secrets and lists that follow their files as well.
    followed: Vec<Followed>,
}

pub(crate) struct ListenerTls {
    pub(crate) acceptor: Acceptor,
    pub(crate) tls: ServerTls,
    /// Whether requests may come in early data.
    pub(crate) early: bool,
}

struct Following {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Something of a policy that a file tells.
#[derive(Clone)]
enum Followed {
    Tickets { keys: TicketKeys, file: PathBuf },
    Revoked { cas: ClientCas, files: Vec<PathBuf> },
    Quic { keys: QuicKeys, file: PathBuf },
}

impl Tls {
    /// Loads everything that TLS takes. Blocks.
    pub(crate) fn load(plan: &mut Plan) -> Result<Self, EdgeError> {
        let Some((store, reloader)) = certificates(plan)? else {
            go_plain(plan);
            return Ok(Self::default());
        };
        let acme = plan.acme.as_ref().map(|acme| acme.load(&store)).transpose()?;
        let files = reloader.as_ref().map(CertReloader::part);
        let mut tls = Self { reloader: Mutex::new(reloader), files, acme, ..Self::default() };
        // listeners with the same policy share their sessions
        let mut made: Vec<(&TlsPlan, ServerTls)> = Vec::new();
        for listener in &plan.listeners {
            if !matches!(listener.mode, ListenerMode::Https { .. }) {
                tls.listeners.push(None);
                continue;
            }
            let known = made.iter().find(|(plan, _)| **plan == listener.tls).map(|(_, tls)| tls.clone());
            let server = match known {
                Some(server) => server,
                None => {
                    let options = options(&listener.tls, &mut tls.followed)?;
                    let server = ServerTls::new(Arc::clone(&store), &options).map_err(EdgeError::Tls)?;
                    made.push((&listener.tls, server.clone()));
                    server
                }
            };
            tls.listeners.push(Some(ListenerTls::new(server, listener, tls.acme.as_ref())));
        }
        tls.store = Some(store);
        Ok(tls)
    }

    /// Has the secrets of QUIC followed too.
    pub(crate) fn follow_quic(&mut self, keys: Option<quic_plan::KeysOfFile>) {
        self.followed.extend(keys.map(|(keys, file)| Followed::Quic { keys, file }));
    }

    /// What a listener speaks TLS with, by its place in the plan.
    pub(crate) fn listener(&self, place: usize) -> Option<&ListenerTls> {
        self.listeners.get(place)?.as_ref()
    }

    pub(crate) fn acceptors(&self) -> impl Iterator<Item = &Acceptor> {
        self.listeners.iter().flatten().map(|listener| &listener.acceptor)
    }

    /// Whether certificates come from files, so that others can take their place.
    pub(crate) fn follows_files(&self) -> bool {
        self.files.is_some()
    }

    /// Loads the certificates of these sources in place of those that are served from files. What it gives goes to [`Tls::follow_instead`]. Blocks.
    pub(crate) fn reloader(
        &self,
        sources: Vec<CertificateSource>,
    ) -> Result<Option<CertReloader>, EdgeError> {
        let Some(part) = self.files.clone() else { return Ok(None) };
        let mut reloader = CertReloader::of_part(part, sources);
        let loaded = reloader.load().map_err(EdgeError::Certificate)?;
        for error in loaded.failed {
            warn!(error = %Causes(Some(&error)), "a certificate is left out");
        }
        Ok(Some(reloader))
    }

    /// Follows other files than before, on the runtime that this is called on.
    pub(crate) async fn follow_instead(shared: &Arc<Shared>, reloader: CertReloader) {
        let before = shared.tls.following.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(before) = before {
            before.stop.cancel();
            // it fails only if it panicked, and then it publishes nothing either
            let _ = before.task.await;
        }
        reloader.publish();
        Self::follow_with(shared, reloader);
    }

    fn follow_with(shared: &Arc<Shared>, reloader: CertReloader) {
        let stop = shared.stop.child_token();
        let options = shared.plan.certificate_reload.clone();
        let task = tokio::spawn(reloader.run(options, stop.clone().cancelled_owned()));
        let following = Some(Following { stop, task });
        *shared.tls.following.lock().unwrap_or_else(PoisonError::into_inner) = following;
    }

    /// Follows the files on the runtime that this is called on, until the drain begins.
    pub(crate) fn follow(shared: &Arc<Shared>, serving: &mut JoinSet<()>) {
        let tls = &shared.tls;
        let reloader = tls.reloader.lock().unwrap_or_else(PoisonError::into_inner).take();
        let options = shared.plan.certificate_reload.clone();
        if let Some(reloader) = reloader {
            Self::follow_with(shared, reloader);
        }
        if let Some(acme) = tls.acme.clone() {
            let stop = shared.stop.clone();
            // what is under way is put in order before the worker ends
            serving.spawn(async move { acme.run(stop.cancelled()).await });
        }
        if tls.followed.is_empty() {
            return;
        }
        let (followed, stop) = (tls.followed.clone(), shared.stop.clone());
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            let mut watch = Watch::new(&options);
            let mut told = vec![None; followed.len()];
            loop {
                let followed = followed.clone();
                // small files, but files: never on the thread that serves
                let looked = tokio::task::spawn_blocking(move || {
                    let files = followed.iter().flat_map(Followed::files);
                    watch.follow(files.filter_map(|file| file.parent()).map(Path::to_owned).collect());
                    followed.iter().zip(&mut told).for_each(|(followed, told)| followed.reload(told));
                    (watch, told)
                });
                match looked.await {
                    Ok(back) => (watch, told) = back,
                    Err(error) => {
                        return warn!(%error, "ticket keys and revocation lists are no longer followed");
                    }
                }
                watch.changed().await;
            }
        }));
    }
}

impl ListenerTls {
    fn new(tls: ServerTls, listener: &ListenerPlan, acme: Option<&Acme>) -> Self {
        let mut options = AcceptorOptions::default()
            .with_handshake_timeout(listener.http.handshake_timeout)
            .with_handshakes_at_once(listener.tls.handshakes_at_once);
        options.name_hook = acme.map(Acme::name_hook);
        Self { acceptor: tls.acceptor(options), tls, early: listener.takes_early_data() }
    }
}

impl Followed {
    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        match self {
            Self::Tickets { file, .. } | Self::Quic { file, .. } => std::slice::from_ref(file),
            Self::Revoked { files, .. } => files,
        }
        .iter()
    }

    /// What can't be read leaves things as they are, and is told once.
    fn reload(&self, told: &mut Option<String>) {
        let (what, outcome) = match self {
            Self::Tickets { keys, file } => {
                let outcome = keys.replace_from_file(file);
                ("the ticket keys", outcome.map_err(|error| Causes(Some(&error)).to_string()))
            }
            Self::Quic { keys, file } => {
                let outcome = quic_plan::reload_keys(keys, file);
                ("the keys of QUIC", outcome.map_err(|error| Causes(Some(&error)).to_string()))
            }
            Self::Revoked { cas, files } => {
                let outcome = cas.replace_crls_from_files(files);
                ("the revocation lists", outcome.map_err(|error| Causes(Some(&error)).to_string()))
            }
        };
        let files: Vec<_> = self.files().collect();
        match outcome {
            Ok(changed) => {
                if changed {
                    info!(?files, "updated {what}");
                }
                *told = None;
            }
            Err(error) if told.as_ref() == Some(&error) => {}
            Err(error) => {
                warn!(?files, error, "{what} stay as they were");
                *told = Some(error);
            }
        }
    }
}

/// A store, and what keeps it as its files are if it has any.
type Certificates = (Arc<CertStore>, Option<CertReloader>);

/// Listeners that would speak TLS and have nothing to speak it with: the plan was checked, so all of them may do without.
fn go_plain(plan: &mut Plan) {
    for listener in &mut plan.listeners {
        if matches!(listener.mode, ListenerMode::Https { .. }) {
            let address = &listener.address;
            warn!(%address, "no certificate was found: this listener serves plain HTTP, as it was told to");
            listener.mode = ListenerMode::Http;
        }
    }
}

/// `None` where no certificate is planned, or there is none and all that need one may do without.
fn certificates(plan: &Plan) -> Result<Option<Certificates>, EdgeError> {
    if let Some(store) = &plan.cert_store {
        return Ok(Some((Arc::clone(store), None)));
    }
    if plan.certificates.is_empty() {
        return Ok(plan.acme.is_some().then(Default::default));
    }
    let store = Arc::new(CertStore::new());
    let mut reloader = CertReloader::new(&store, plan.certificates.clone());
    let needs_one = |listener: &ListenerPlan| {
        matches!(listener.mode, ListenerMode::Https { .. })
            && listener.tls.without_certificate == WithoutCertificate::Fail
    };
    if plan.acme.is_none() && !plan.listeners.iter().any(needs_one) && reloader.finds_nothing() {
        return Ok(None);
    }
    let loaded = reloader.load().map_err(EdgeError::Certificate)?;
    for error in loaded.failed {
        warn!(error = %Causes(Some(&error)), "a certificate is left out");
    }
    Ok(Some((store, Some(reloader))))
}

fn options(plan: &TlsPlan, followed: &mut Vec<Followed>) -> Result<ServerOptions, EdgeError> {
    let resumption = match &plan.resumption {
        ResumptionPlan::Off => Resumption::Off,
        ResumptionPlan::Tickets { keys: None } => Resumption::Tickets,
        ResumptionPlan::Tickets { keys: Some(file) } => {
            let keys = TicketKeys::from_file(file).map_err(EdgeError::TicketKeys)?;
            followed.push(Followed::Tickets { keys: keys.clone(), file: file.clone() });
            Resumption::SharedTickets(keys)
        }
        ResumptionPlan::ZeroRtt(early) => Resumption::ZeroRtt(*early),
    };
    let mut options = ServerOptions::default()
        .with_versions(plan.versions)
        .with_resumption(resumption)
        .with_client_auth(client_auth(&plan.client_auth, followed)?)
        .with_unknown_names(plan.unknown_names);
    for host in &plan.hosts {
        let policy = HostPolicy::new(host.names.iter().cloned(), client_auth(&host.client_auth, followed)?);
        options = options.with_host(policy.with_versions(host.versions));
    }
    Ok(options)
}

fn client_auth(plan: &ClientAuthPlan, followed: &mut Vec<Followed>) -> Result<ClientAuth, EdgeError> {
    let (ca, crls, required) = match plan {
        ClientAuthPlan::None => return Ok(ClientAuth::None),
        ClientAuthPlan::Optional { ca, crls } => (ca, crls, false),
        ClientAuthPlan::Required { ca, crls } => (ca, crls, true),
    };
    let cas = ClientCas::from_file(ca).map_err(EdgeError::ClientCas)?;
    if !crls.is_empty() {
        cas.replace_crls_from_files(crls).map_err(EdgeError::ClientCas)?;
        followed.push(Followed::Revoked { cas: cas.clone(), files: crls.clone() });
    }
    Ok(if required { ClientAuth::Required(cas) } else { ClientAuth::Optional(cas) })
}
