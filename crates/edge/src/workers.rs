//! Workers: the runtimes and threads that do the work.
//!
//! Thread-per-core: one thread and one single-threaded runtime per worker, each with its own socket of every
//! listener's SO_REUSEPORT group and its own upstream pools, so that a request stays on the core that accepted it.
//! Work-stealing: one multi-threaded runtime with one socket per listener. Either way a worker does the same.

#[cfg(unix)]
use std::sync::PoisonError;
use std::{io, num::NonZeroUsize, sync::Arc, thread, time::Duration};

use portcullis_acme::Acme;
use portcullis_h3::{Endpoint, EndpointError, QuicSocket, Siblings, WorkerId};
#[cfg(unix)]
use portcullis_listener::UnixAcceptor;
use portcullis_listener::{AcceptOptions, AnyAcceptor, Bound, Incoming, ListenAddr, TcpAcceptor};
use portcullis_middleware::{
    access_log::AccessLogLayer, alt_svc::AltSvcLayer, header_limits::HeaderLimitsLayer, health::HealthLayer,
    misdirected::MisdirectedLayer, redirect::RedirectToHttps,
};
use portcullis_server::{HttpOptions, Plain};
use tokio::{
    net::TcpListener,
    runtime::{self, Runtime},
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tracing::error;

#[cfg(unix)]
use crate::upgrade::{Before, QuicPlace};
use crate::{
    EdgeError,
    act::{Act, Actor, Insecure},
    certs::Tls,
    chain::Chain,
    dispatch::{Dispatch, Routes},
    edge::{Shared, TIDY_EVERY},
    hands::Hands,
    live::Live,
    order::Order,
    paths::PathsLayer,
    plan::{ListenerMode, ListenerPlan, PlainHttp, Workers},
    quic,
    reload::Swap,
    routes::with_layers,
    service::{EdgeService, FromProtocol, FromQuic, Slot},
    sockets::{Group, Sockets},
    tcp::Handshake,
};

/// The workers that run.
pub(crate) struct Running {
    ended: JoinSet<Result<(), EdgeError>>,
    /// One for each that does not serve yet.
    ready: Vec<oneshot::Receiver<()>>,
}

/// The sockets of one worker.
struct Share {
    index: u8,
    listeners: Vec<Socket>,
    admin: Option<std::net::TcpListener>,
}

/// A way to tell each worker of a reload, in their order.
type Tell = Vec<mpsc::UnboundedSender<Swap>>;

struct Socket {
    /// Its place in the plan.
    place: usize,
    /// See [`crate::sockets::Group`].
    key: String,
    address: ListenAddr,
    stream: Option<StreamSocket>,
    udp: Option<Udp>,
}

struct Udp {
    socket: std::net::UdpSocket,
    /// Its place in its group, which connection ids name.
    index: u8,
    /// The others of the group, if the system does not steer.
    siblings: Option<Siblings>,
}

enum StreamSocket {
    Tcp(std::net::TcpListener),
    #[cfg(unix)]
    Unix(std::os::unix::net::UnixListener),
}

pub(crate) fn count(workers: Workers) -> NonZeroUsize {
    let cores = || thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    match workers {
        Workers::PerCore(count) | Workers::WorkStealing(count) => count.unwrap_or_else(cores),
    }
}

/// Starts all workers. Must be called on a runtime: it waits for them.
pub(crate) fn start(shared: &Arc<Shared>, sockets: Sockets) -> Result<(Running, Tell), EdgeError> {
    let mut ended = JoinSet::new();
    let count = count(shared.plan.workers);
    // all of them before the first one lets anybody in, who could take the descriptors that the others need
    let shares = shares(sockets, shares_of(shared.plan.workers, count)).map_err(EdgeError::Worker)?;
    let made = shares.into_iter().map(|share| Ok((share, build_runtime(shared.plan.workers, count)?)));
    let made: Vec<_> = made.collect::<io::Result<_>>().map_err(EdgeError::Worker)?;
    let (mut tell, mut ready) = (Vec::new(), Vec::new());
    for (share, runtime) in made {
        let (serves, is_ready) = oneshot::channel();
        ready.push(is_ready);
        let (sender, swaps) = mpsc::unbounded_channel();
        tell.push(sender);
        let (report, result) = oneshot::channel();
        let (shared, index) = (Arc::clone(shared), share.index);
        let spawned = thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
            let result = runtime.block_on(async { tokio::spawn(work(shared, share, swaps, serves)).await });
            // what its tasks hold, the log's writer among it, is let go of before anybody is told
            runtime.shutdown_timeout(Duration::from_millis(200));
            // nobody listens only if the whole edge was dropped
            let _ = report.send(result.unwrap_or(Err(EdgeError::WorkerPanicked)));
        });
        spawned.map_err(EdgeError::Worker)?;
        ended.spawn(async { result.await.unwrap_or(Err(EdgeError::WorkerPanicked)) });
    }
    Ok((Running { ended, ready }, tell))
}

fn build_runtime(workers: Workers, count: NonZeroUsize) -> io::Result<Runtime> {
    match workers {
        Workers::PerCore(_) => runtime::Builder::new_current_thread().enable_all().build(),
        Workers::WorkStealing(_) => {
            runtime::Builder::new_multi_thread().worker_threads(count.get()).enable_all().build()
        }
    }
}

/// How many workers have sockets: all, or one for all of a runtime's threads.
fn shares_of(workers: Workers, count: NonZeroUsize) -> usize {
    match workers {
        Workers::PerCore(_) => count.get(),
        Workers::WorkStealing(_) => 1,
    }
}

/// Deals the sockets out: the first of every group to the first worker, and so on, and round again where there are more. Where there are fewer,
/// which is so after an upgrade alone, the others accept from duplicates.
fn shares(sockets: Sockets, workers: usize) -> io::Result<Vec<Share>> {
    // a group has at most 255 sockets: its places must fit into a byte of a connection id
    let byte = |index: usize| u8::try_from(index).unwrap_or(u8::MAX);
    let mut shares: Vec<Share> =
        (0..workers).map(|index| Share { index: byte(index), listeners: Vec::new(), admin: None }).collect();
    for Group { place, key, bound } in sockets.listeners {
        let Bound { local_addr: address, tcp, udp, steered, .. } = bound;
        let mut streams: Vec<_> = tcp.into_iter().map(StreamSocket::Tcp).collect();
        #[cfg(unix)]
        streams.extend(bound.unix.into_iter().map(StreamSocket::Unix));
        for missing in streams.len()..workers {
            let Some(duplicate) = streams.get(missing % streams.len().max(1)) else { break };
            streams.push(duplicate.try_clone()?);
        }
        // elsewhere a group is one socket many times over, and only one endpoint may read from it
        let grouped = udp.len() > 1 && cfg!(target_os = "linux");
        let siblings = (grouped && !steered).then(|| Siblings::new(byte(udp.len())));
        let udp = udp.into_iter().enumerate().take(if grouped { usize::MAX } else { 1 });
        let mut udp =
            udp.map(|(index, socket)| Udp { socket, index: byte(index), siblings: siblings.clone() });
        let mut streams = streams.into_iter();
        for worker in (0..workers).cycle() {
            let (stream, udp) = (streams.next(), udp.next());
            if stream.is_none() && udp.is_none() {
                break;
            }
            let (key, address) = (key.clone(), address.clone());
            shares[worker].listeners.push(Socket { place, key, address, stream, udp });
        }
    }
    if let (Some(admin), Some(first)) = (sockets.admin, shares.first_mut()) {
        first.admin = admin.tcp.into_iter().next();
    }
    Ok(shares)
}

impl StreamSocket {
    fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(socket) => Self::Tcp(socket.try_clone()?),
            #[cfg(unix)]
            Self::Unix(socket) => Self::Unix(socket.try_clone()?),
        })
    }
}

impl Running {
    /// Whether every worker serves, as soon as that is known. Of one that does not [`Running::any_ended`] tells.
    pub(crate) async fn ready(&mut self) -> bool {
        for ready in self.ready.drain(..) {
            if ready.await.is_err() {
                return false;
            }
        }
        true
    }

    /// The first worker to end, which none does by itself unless it failed.
    pub(crate) async fn any_ended(&mut self) -> Option<Result<(), EdgeError>> {
        self.ended.join_next().await.map(flatten)
    }

    /// Waits for the rest; the first failure, if there is one.
    pub(crate) async fn all_ended(&mut self) -> Result<(), EdgeError> {
        let mut first = Ok(());
        while let Some(result) = self.ended.join_next().await.map(flatten) {
            if first.is_ok() {
                first = result;
            }
        }
        first
    }
}

fn flatten(result: Result<Result<(), EdgeError>, tokio::task::JoinError>) -> Result<(), EdgeError> {
    result.unwrap_or(Err(EdgeError::WorkerPanicked))
}

/// One worker's whole life.
async fn work(
    shared: Arc<Shared>,
    share: Share,
    swaps: mpsc::UnboundedReceiver<Swap>,
    serves: oneshot::Sender<()>,
) -> Result<(), EdgeError> {
    let mut hands = Hands::new(&shared, share.index == 0)?;
    let mut serving = JoinSet::new();
    for socket in share.listeners {
        let at = socket.place;
        // nobody can be sent to a unix socket: what is in front of it listens where the world expects it
        let port = socket.address.ip().map_or(443, |address| address.port());
        let slot = hands.slot(at, port);
        if let Some(stream) = socket.stream {
            serve_streams(&shared, at, Arc::clone(&slot), stream, &mut serving)?;
        }
        if let Some(udp) = socket.udp {
            serve_quic(&shared, at, socket.key, slot, udp, &mut serving)?;
        }
    }
    if let Some(admin) = share.admin {
        serve_admin(&shared, admin, &mut serving)?;
    }
    give_back(&shared, &mut serving);
    if share.index == 0 {
        Tls::follow(&shared, &mut serving);
        tidy(&shared, &mut serving);
    }
    serving.spawn(hands.follow(swaps));
    // nobody waits where the edge was dropped
    let _ = serves.send(());
    let deadline = async {
        shared.stop.cancelled().await;
        tokio::time::sleep(shared.plan.drain_timeout).await;
    };
    let done = async {
        let result = all(&mut serving, &shared).await;
        if result.is_ok() {
            // tunnels are tasks of this runtime: it lives until the last of them has ended
            shared.finish.cancelled().await;
        }
        result
    };
    tokio::select! {
        result = done => result,
        // what is left is cut: dropping the set aborts it
        () = deadline => Ok(()),
    }
}

/// Waits for all that serves. None ends by itself: one that did has left its port deaf, which is worth a restart.
async fn all(serving: &mut JoinSet<()>, shared: &Shared) -> Result<(), EdgeError> {
    while let Some(ended) = serving.join_next().await {
        if let Err(error) = &ended {
            error!(%error, "a listener panicked");
        }
        if ended.is_err() || !shared.stop.is_cancelled() {
            return Err(EdgeError::ListenerEnded);
        }
    }
    Ok(())
}

fn serve_streams(
    shared: &Arc<Shared>,
    at: usize,
    slot: Slot,
    socket: StreamSocket,
    serving: &mut JoinSet<()>,
) -> Result<(), EdgeError> {
    let plan = &shared.plan.listeners[at];
    let acceptor: AnyAcceptor = match socket {
        StreamSocket::Tcp(socket) => {
            let listener = TcpListener::from_std(socket).map_err(EdgeError::Worker)?;
            TcpAcceptor::new(listener, &plan.tcp).into()
        }
        #[cfg(unix)]
        StreamSocket::Unix(socket) => {
            let listener = tokio::net::UnixListener::from_std(socket).map_err(EdgeError::Worker)?;
            UnixAcceptor::new(listener).into()
        }
    };
    let options = AcceptOptions::default().with_headroom(shared.plan.limits.headroom);
    let incoming = Incoming::listen(acceptor, &shared.listener_limits[at], options);
    let plain_http = match plan.mode {
        ListenerMode::Https { plain_http, .. } => plain_http,
        _ => PlainHttp::default(),
    };
    let handshake = Handshake {
        tls: shared.tls.listener(at).map(|listener| listener.acceptor.with_own_line()),
        plain_http,
        timeout: plan.http.handshake_timeout,
        proxy_protocol: plan.proxy_protocol.clone().map(Arc::new),
    };
    serving.spawn(portcullis_server::serve(
        incoming,
        handshake,
        FromProtocol(slot),
        http_options(shared, plan),
        Arc::clone(&shared.http),
        shared.stop.clone().cancelled_owned(),
    ));
    Ok(())
}

/// The listener's, with extended CONNECT where there is anything to ask for by it.
fn http_options(shared: &Shared, plan: &ListenerPlan) -> HttpOptions {
    let offered = plan.http.h2_extended_connect || shared.plan.upgrades.over_http2();
    plan.http.clone().with_h2_extended_connect(offered)
}

fn serve_quic(
    shared: &Arc<Shared>,
    at: usize,
    key: String,
    slot: Slot,
    udp: Udp,
    serving: &mut JoinSet<()>,
) -> Result<(), EdgeError> {
    // a UDP socket is only bound for a listener with TLS
    let Some(listener) = shared.tls.listener(at) else { return Ok(()) };
    let (plan, tls) = (&shared.plan.listeners[at], listener.tls.quic());
    let address = plan.address.to_string();
    let Udp { socket, index, siblings } = udp;
    let mut socket = QuicSocket::from(socket);
    if let Some(siblings) = siblings {
        socket = socket.with_siblings(siblings);
    }
    #[cfg(unix)]
    let socket = between_processes(shared, key, index, socket);
    #[cfg(not(unix))]
    drop(key);
    let options = quic::options(shared, plan);
    let endpoint = Endpoint::new(socket, tls, &options, WorkerId::new(index), shared.quic_limits.clone())
        .map_err(|source: EndpointError| EdgeError::Quic { address, source })?;
    let offer = shared.quic.begin(at, endpoint.handle());
    let (stop, drain_timeout) = (shared.stop.clone(), shared.plan.drain_timeout);
    serving.spawn(async move {
        let stopped = async {
            stop.cancelled().await;
            offer.end();
        };
        endpoint.serve(FromQuic(slot), stopped, drain_timeout).await;
    });
    Ok(())
}

/// Takes packets on to processes before this one, and can be handed over to one after it.
#[cfg(unix)]
fn between_processes(shared: &Shared, key: String, index: u8, mut socket: QuicSocket) -> QuicSocket {
    let lock = PoisonError::into_inner;
    let before = Before::take(&mut shared.before.lock().unwrap_or_else(lock), &key, index);
    if !before.is_empty() {
        socket = socket.with_predecessors(before);
    }
    if shared.spare.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
        let hand_over = socket.hand_over();
        let place = QuicPlace { key, index, hand_over };
        shared.quic_places.lock().unwrap_or_else(PoisonError::into_inner).push(place);
    }
    socket
}

/// The service of one listener on one worker.
pub(crate) fn service(
    shared: &Shared,
    live: &Live,
    at: usize,
    routes: &Arc<Routes>,
    port: u16,
) -> EdgeService {
    let plan = &live.plan.listeners[at];
    let insecure = match plan.mode {
        ListenerMode::Https { plain_http: PlainHttp::Serve, .. } => Insecure::Route,
        ListenerMode::Https { .. } => Insecure::Redirect(RedirectToHttps::new(port)),
        ListenerMode::RedirectToHttps { port } => Insecure::Redirect(RedirectToHttps::new(port)),
        ListenerMode::Http => Insecure::Route,
    };
    let health =
        live.plan.health_path.as_ref().map(|path| {
            HealthLayer::new().with_path(path.clone()).with_draining(Arc::clone(&shared.draining))
        });
    let order = Order {
        request_id: live.plan.request_id.map(|plan| plan.layer(&live.trust)),
        trust: (!live.plan.trusted_proxies.is_empty()).then(|| Arc::clone(&live.trust)),
        metrics: shared.telemetry.as_ref().map(|telemetry| telemetry.layer()),
        access_log: live.log_sink.clone().map(|sink| {
            let options = sink.options().clone();
            AccessLogLayer::new(Arc::new(sink)).with_options(options)
        }),
        header_limits: HeaderLimitsLayer::new(plan.http.max_headers),
        alt_svc: plan.has_http3().then(|| AltSvcLayer::new(port).with_switch(shared.quic.switch(at))),
        paths: PathsLayer::new(live.plan.paths),
        early_data: shared
            .tls
            .listener(at)
            .filter(|tls| tls.early)
            .map(|_| crate::routes::early_data(live, plan)),
        misdirected: misdirected(shared, at),
        acme: shared.tls.acme.as_ref().map(Acme::http01),
        health,
        identity: live.parts.identity.clone(),
    };
    let unrouted = |chain: &Chain| {
        let actor = Actor { targets: Arc::clone(&routes.targets), act: Act::LookUp(insecure) };
        chain.around(with_layers(&shared.layers, actor), |_| routes.asked.clone())
    };
    let chain = &*live.chains.default;
    let redirecting = unrouted(&chain.without_admission());
    let unrouted = unrouted(&chain.without_cache());
    order.around(Dispatch { routes: Arc::clone(routes), insecure, unrouted, redirecting })
}

fn serve_admin(
    shared: &Arc<Shared>,
    socket: std::net::TcpListener,
    serving: &mut JoinSet<()>,
) -> Result<(), EdgeError> {
    let Some(telemetry) = &shared.telemetry else { return Ok(()) };
    let listener = TcpListener::from_std(socket).map_err(EdgeError::Worker)?;
    let incoming =
        Incoming::new(listener, shared.admin_limits.clone(), AcceptOptions::default(), &Default::default());
    serving.spawn(portcullis_server::serve(
        incoming,
        Plain,
        telemetry.admin(shared),
        HttpOptions::default(),
        Arc::default(),
        shared.stop.clone().cancelled_owned(),
    ));
    Ok(())
}

/// Where hosts differ in what TLS asks of clients, a connection is for its own host alone.
fn misdirected(shared: &Shared, at: usize) -> Option<MisdirectedLayer> {
    let tls = &shared.tls.listener(at)?.tls;
    let policies = tls.clone();
    tls.has_host_policies().then(|| MisdirectedLayer::new(move |name, host| policies.allows(name, host)))
}

/// Tells the program on this worker's thread that memory was freed which may stay free.
fn give_back(shared: &Arc<Shared>, serving: &mut JoinSet<()>) {
    let Some(give_back) = shared.plan.give_back else { return };
    let (stop, http) = (shared.stop.clone(), Arc::clone(&shared.http));
    serving.spawn(async move {
        let mut every = tokio::time::interval(Duration::from_secs(1));
        let mut rests = 0;
        while stop.run_until_cancelled(every.tick()).await.is_some() {
            let now = http.stats().http1_rests;
            if now != rests {
                rests = now;
                give_back();
            }
        }
    });
}

/// Keeps the shared cache in order while nobody asks it anything.
fn tidy(shared: &Arc<Shared>, serving: &mut JoinSet<()>) {
    let (stop, live) = (shared.stop.clone(), Arc::clone(&shared.live));
    serving.spawn(async move {
        let mut every = tokio::time::interval(TIDY_EVERY);
        while stop.run_until_cancelled(every.tick()).await.is_some() {
            if let Some(cache) = &live.load().cache {
                cache.run_pending();
            }
        }
    });
}
