//! The sockets of an edge: those it makes, and those that were handed over to it.

use std::num::NonZeroUsize;

use portcullis_listener::{BindPlan, Bound, ListenAddr, TcpOptions};
#[cfg(unix)]
use portcullis_listener::{InheritedKind, InheritedSocket};
use tracing::info;

use crate::{
    EdgeError,
    plan::{ListenOn, ListenerMode, ListenerPlan, Plan, Workers},
};

/// What was handed over; nothing, where that is not done.
#[cfg(unix)]
pub(crate) type Inherited = Vec<InheritedSocket>;
#[cfg(not(unix))]
pub(crate) type Inherited = ();

/// The sockets of an edge, each group in the order of the workers.
pub(crate) struct Sockets {
    /// In the order of [`Plan::listeners`], whose place stands before each. A listener has several when several were
    /// handed over under its name.
    pub(crate) listeners: Vec<(usize, Bound)>,
    pub(crate) admin: Option<Bound>,
}

impl Sockets {
    /// What a listener is called in logs and statistics: where it listens, with the port that the system chose.
    pub(crate) fn name(&self, place: usize, listener: &ListenerPlan) -> String {
        let mut own = self.listeners.iter().filter(|(of, _)| *of == place);
        match (own.next(), own.next()) {
            (Some((_, bound)), None) => bound.local_addr.to_string(),
            _ => listener.address.to_string(),
        }
    }

    pub(crate) fn bind(plan: &Plan, inherited: Inherited) -> Result<Self, EdgeError> {
        let group = match plan.workers {
            Workers::PerCore(_) => plan.worker_count(),
            Workers::WorkStealing(_) => NonZeroUsize::MIN,
        };
        let admin =
            plan.admin.as_ref().map(|admin| BindPlan::new().tcp(admin.address, TcpOptions::default()));
        let mut listeners = handed_over(plan, inherited, group)?;
        let own = bind_plan(plan).bind(group).map_err(EdgeError::Bind)?;
        let places = plan.listeners.iter().enumerate().filter(|(_, listener)| is_own(listener));
        listeners.extend(places.map(|(place, _)| place).zip(own));
        listeners.sort_by_key(|(place, _)| *place);
        let admin = match admin {
            Some(admin) => admin.bind(NonZeroUsize::MIN).map_err(EdgeError::Bind)?.pop(),
            None => None,
        };
        Ok(Self { listeners, admin })
    }
}

fn is_own(listener: &ListenerPlan) -> bool {
    matches!(listener.address, ListenOn::Address(_))
}

/// All sockets that the edge makes, but the admin's: those come as a group, one for each worker.
pub(crate) fn bind_plan(plan: &Plan) -> BindPlan {
    plan.listeners.iter().fold(BindPlan::new(), |sockets, listener| {
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
pub(crate) fn settle_http3(plan: &mut Plan, inherited: &Inherited) {
    for listener in &mut plan.listeners {
        let ListenerMode::Https { http3, .. } = &mut listener.mode else { continue };
        if !*http3 {
            continue;
        }
        match &listener.address {
            ListenOn::Address(ListenAddr::Ip(_)) => {}
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
fn handed_over(
    plan: &Plan,
    mut inherited: Inherited,
    group: NonZeroUsize,
) -> Result<Vec<(usize, Bound)>, EdgeError> {
    let all: Vec<String> = inherited.iter().map(ToString::to_string).collect();
    let mut bound = Vec::new();
    for (place, listener) in plan.listeners.iter().enumerate() {
        let ListenOn::Inherited(name) = &listener.address else { continue };
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
        bound.extend(sockets.into_iter().map(|sockets| (place, sockets)));
    }
    for unused in inherited {
        tracing::warn!(socket = %unused, "a socket was handed over that no listener names: it is closed");
    }
    Ok(bound)
}

#[cfg(not(unix))]
fn handed_over(plan: &Plan, (): Inherited, _: NonZeroUsize) -> Result<Vec<(usize, Bound)>, EdgeError> {
    match plan.listeners.iter().find(|listener| !is_own(listener)) {
        None => Ok(Vec::new()),
        Some(listener) => Err(EdgeError::NotInherited {
            address: listener.address.clone(),
            why: "no sockets are handed over on this system".to_owned(),
        }),
    }
}
