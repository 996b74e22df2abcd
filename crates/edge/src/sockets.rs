//! The sockets of an edge: those it makes, and those that were handed over to it.

use std::num::NonZeroUsize;

use portcullis_listener::{BindPlan, Bound, ListenAddr, TcpOptions};
#[cfg(unix)]
use portcullis_listener::{InheritedKind, InheritedSocket, UdpOptions, UnixName, UnixSocketFile};
use tracing::info;

#[cfg(unix)]
use crate::upgrade::{TakeOver, admin_key, key};

use crate::{
    EdgeError,
    plan::{ListenOn, ListenerMode, ListenerPlan, Plan, Workers},
};

/// What was handed over; nothing, where that is not done.
#[cfg(unix)]
pub(crate) type Inherited = Vec<InheritedSocket>;
#[cfg(not(unix))]
pub(crate) type Inherited = ();

/// What the process before this one handed over; nothing, where that is not done.
#[cfg(unix)]
pub(crate) type Taken = Option<TakeOver>;
#[cfg(not(unix))]
pub(crate) type Taken = ();

/// The sockets of an edge, each group in the order of the workers, or in that of the process before.
pub(crate) struct Sockets {
    /// In the order of [`Plan::listeners`].
    pub(crate) listeners: Vec<Group>,
    pub(crate) admin: Option<Bound>,
}

/// Sockets of one address. A listener has several groups when several were handed over under its name.
pub(crate) struct Group {
    /// The listener's place in the plan.
    pub(crate) place: usize,
    /// What the next process knows them by, see [`crate::upgrade`].
    pub(crate) key: String,
    pub(crate) bound: Bound,
}

impl Sockets {
    /// What a listener is called in logs and statistics: where it listens, with the port that the system chose.
    pub(crate) fn name(&self, place: usize, listener: &ListenerPlan) -> String {
        let mut own = self.listeners.iter().filter(|group| group.place == place);
        match (own.next(), own.next()) {
            (Some(group), None) => group.bound.local_addr.to_string(),
            _ => listener.address.to_string(),
        }
    }

    pub(crate) fn bind(plan: &Plan, inherited: Inherited, taken: &mut Taken) -> Result<Self, EdgeError> {
        let group = match plan.workers {
            Workers::PerCore(_) => plan.worker_count(),
            Workers::WorkStealing(_) => NonZeroUsize::MIN,
        };
        let admin = taken_admin(plan, taken)?;
        let mut listeners = taken_over(plan, taken)?;
        let taken: Vec<usize> = listeners.iter().map(|group| group.place).collect();
        listeners.extend(handed_over(plan, inherited, group, &taken)?);
        let keys = keys(plan);
        let own = bind_plan(plan, &taken).bind(group).map_err(EdgeError::Bind)?;
        let places = plan.listeners.iter().enumerate();
        let places = places.filter(|(place, listener)| is_own(listener) && !taken.contains(place));
        listeners.extend(places.zip(own).map(|((place, _), bound)| Group {
            place,
            key: keys[place].clone(),
            bound,
        }));
        listeners.sort_by_key(|group| group.place);
        let admin = match (admin, &plan.admin) {
            (None, Some(admin)) => {
                let plan = BindPlan::new().tcp(admin.address, TcpOptions::default());
                plan.bind(NonZeroUsize::MIN).map_err(EdgeError::Bind)?.pop()
            }
            (admin, _) => admin,
        };
        Ok(Self { listeners, admin })
    }
}

/// Where nothing is handed over nobody asks for it.
#[cfg(not(unix))]
fn key(address: &str, _: usize) -> String {
    address.to_owned()
}

/// What each listener's sockets are called for the next process.
fn keys(plan: &Plan) -> Vec<String> {
    let addresses: Vec<String> = plan.listeners.iter().map(|listener| listener.address.to_string()).collect();
    let occurrence =
        |place: usize| addresses[..place].iter().filter(|before| **before == addresses[place]).count();
    (0..addresses.len()).map(|place| key(&addresses[place], occurrence(place))).collect()
}

fn is_own(listener: &ListenerPlan) -> bool {
    matches!(listener.address, ListenOn::Address(_))
}

/// All sockets that the edge makes, but the admin's and those of listeners that have some: they come as a group, one for each worker.
pub(crate) fn bind_plan(plan: &Plan, taken: &[usize]) -> BindPlan {
    plan.listeners.iter().enumerate().fold(BindPlan::new(), |sockets, (place, listener)| {
        if taken.contains(&place) {
            return sockets;
        }
        let ip = match &listener.address {
            ListenOn::Address(ListenAddr::Ip(ip)) => *ip,
            ListenOn::Address(ListenAddr::Unix(name)) => {
                return sockets.unix(name.clone(), listener.unix.clone());
            }
            _ => return sockets,
        };
        let tcp = listener.tcp.clone();
        match listener.mode {
            ListenerMode::Https { http3: true, .. } => sockets.tcp_and_udp(ip, tcp, listener.udp.clone()),
            _ => sockets.tcp(ip, tcp),
        }
        .only_v6(listener.only_v6)
        .shared(listener.shared)
        .v4_fallback(listener.v4_fallback)
    })
}

/// HTTP/3 is UDP: a listener whose sockets are made elsewhere has it if one of them is.
pub(crate) fn settle_http3(plan: &mut Plan, inherited: &Inherited, taken: &Taken) {
    let keys = keys(plan);
    for (listener, key) in plan.listeners.iter_mut().zip(keys) {
        let ListenerMode::Https { http3, .. } = &mut listener.mode else { continue };
        if !*http3 {
            continue;
        }
        match &listener.address {
            ListenOn::Address(ListenAddr::Ip(_)) if taken_without_udp(taken, &key) => {
                let address = &listener.address;
                tracing::warn!(%address, "no HTTP/3 here until the next start: the process before had none");
                *http3 = false;
            }
            ListenOn::Address(ListenAddr::Ip(_)) => {}
            ListenOn::Inherited(_) if taken_with_udp(taken, &key) => {}
            ListenOn::Inherited(name) if has_udp(inherited, name) => {}
            address => {
                info!(%address, "no HTTP/3 here: there is no UDP socket");
                *http3 = false;
            }
        }
    }
}

#[cfg(unix)]
fn has_udp(inherited: &Inherited, name: &str) -> bool {
    inherited.iter().any(|socket| socket.name == name && matches!(socket.socket, InheritedKind::Udp(_)))
}

#[cfg(not(unix))]
fn has_udp(_: &Inherited, _: &str) -> bool {
    false
}

#[cfg(unix)]
fn taken_without_udp(taken: &Taken, key: &str) -> bool {
    taken.as_ref().is_some_and(|taken| taken.has(key) && !taken.has_udp(key))
}

#[cfg(unix)]
fn taken_with_udp(taken: &Taken, key: &str) -> bool {
    taken.as_ref().is_some_and(|taken| taken.has_udp(key))
}

#[cfg(not(unix))]
fn taken_without_udp((): &Taken, _: &str) -> bool {
    false
}

#[cfg(not(unix))]
fn taken_with_udp((): &Taken, _: &str) -> bool {
    false
}

/// The groups that the process before had for listeners of the same address.
#[cfg(unix)]
fn taken_over(plan: &Plan, taken: &mut Taken) -> Result<Vec<Group>, EdgeError> {
    let Some(taken) = taken else { return Ok(Vec::new()) };
    let mut groups = Vec::new();
    for (place, (listener, first)) in plan.listeners.iter().zip(keys(plan)).enumerate() {
        // several were handed over under one name
        let more = (1..).map(|n| key(&listener.address.to_string(), n));
        let more = more.take_while(|_| !is_own(listener));
        for key in std::iter::once(first).chain(more) {
            if !taken.has(&key) {
                break;
            }
            let bound = Bound::taken_over(taken.take(&key), &listener.tcp, &listener.udp);
            let mut bound = bound.map_err(EdgeError::Inherited)?;
            if let ListenOn::Address(ListenAddr::Unix(UnixName::Path(path))) = &listener.address {
                bound.unix_file = Some(UnixSocketFile::adopt(path).map_err(EdgeError::Inherited)?);
            }
            groups.push(Group { place, key, bound });
        }
    }
    Ok(groups)
}

#[cfg(unix)]
fn taken_admin(plan: &Plan, taken: &mut Taken) -> Result<Option<Bound>, EdgeError> {
    let (Some(taken), Some(admin)) = (taken, &plan.admin) else { return Ok(None) };
    let key = admin_key(admin.address);
    if !taken.has(&key) {
        return Ok(None);
    }
    let bound = Bound::taken_over(taken.take(&key), &TcpOptions::default(), &UdpOptions::default());
    bound.map(Some).map_err(EdgeError::Inherited)
}

#[cfg(not(unix))]
fn taken_over(_: &Plan, (): &mut Taken) -> Result<Vec<Group>, EdgeError> {
    Ok(Vec::new())
}

#[cfg(not(unix))]
fn taken_admin(_: &Plan, (): &mut Taken) -> Result<Option<Bound>, EdgeError> {
    Ok(None)
}

/// Duplicates of all of them, for the next process.
#[cfg(unix)]
impl Sockets {
    pub(crate) fn spare(&self, plan: &Plan) -> std::io::Result<Vec<(String, InheritedSocket)>> {
        let admin =
            self.admin.iter().zip(&plan.admin).map(|(bound, admin)| (admin_key(admin.address), bound));
        let listeners = self.listeners.iter().map(|group| (group.key.clone(), &group.bound));
        let mut spare = Vec::new();
        for (key, bound) in listeners.chain(admin) {
            for tcp in &bound.tcp {
                spare.push((key.clone(), InheritedSocket::tcp(&key, tcp.try_clone()?)));
            }
            for unix in &bound.unix {
                spare.push((key.clone(), InheritedSocket::unix(&key, unix.try_clone()?)));
            }
            for udp in &bound.udp {
                spare.push((key.clone(), InheritedSocket::udp(&key, udp.try_clone()?)));
            }
        }
        Ok(spare)
    }
}

#[cfg(unix)]
fn handed_over(
    plan: &Plan,
    mut inherited: Inherited,
    group: NonZeroUsize,
    taken: &[usize],
) -> Result<Vec<Group>, EdgeError> {
    let all: Vec<String> = inherited.iter().map(ToString::to_string).collect();
    let mut bound = Vec::new();
    for (place, listener) in plan.listeners.iter().enumerate() {
        let ListenOn::Inherited(name) = &listener.address else { continue };
        if taken.contains(&place) {
            continue;
        }
        let mine: Vec<_> = inherited.extract_if(.., |socket| socket.name == *name).collect();
        let none = |why: String| EdgeError::NotInherited { address: listener.address.clone(), why };
        if mine.is_empty() {
            return Err(none(match &all[..] {
                [] => "nothing was handed over: start it by its systemd socket unit".to_owned(),
                all => format!("it is not among those that were handed over: {}", all.join(", ")),
            }));
        }
        let sockets = Bound::from_inherited(mine, group, &listener.tcp).map_err(EdgeError::Inherited)?;
        if sockets.is_empty() {
            return Err(none("only UDP sockets were handed over under its name".to_owned()));
        }
        let address = listener.address.to_string();
        bound.extend(sockets.into_iter().enumerate().map(|(n, bound)| Group {
            place,
            key: key(&address, n),
            bound,
        }));
    }
    for unused in inherited {
        tracing::warn!(socket = %unused, "a socket was handed over that no listener names: it is closed");
    }
    Ok(bound)
}

#[cfg(not(unix))]
fn handed_over(plan: &Plan, (): Inherited, _: NonZeroUsize, _: &[usize]) -> Result<Vec<Group>, EdgeError> {
    match plan.listeners.iter().find(|listener| !is_own(listener)) {
        None => Ok(Vec::new()),
        Some(listener) => Err(EdgeError::NotInherited {
            address: listener.address.clone(),
            why: "no sockets are handed over on this system".to_owned(),
        }),
    }
}
