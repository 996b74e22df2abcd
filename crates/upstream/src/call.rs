//! A request on its way: what its attempts share.

use std::sync::{Arc, atomic::AtomicUsize};

use http::{Method, header, request};
use portcullis_conn::ConnInfo;
use tokio::time::Instant;

use crate::{
    ClientAddresses, ClientIp, ClusterOptions, Policy, PreferEndpoint,
    balance::hash_of,
    cluster::Wish,
    h1::RequestFraming,
    state::EndpointState,
    trip::{Spell, Trip},
};

/// A request, as all its attempts see it.
pub(crate) struct Call<'a> {
    pub(crate) parts: &'a request::Parts,
    pub(crate) framing: RequestFraming,
    pub(crate) idempotent: bool,
    /// Whether the body waits for the endpoint's word.
    pub(crate) expects: bool,
    pub(crate) client: Option<ClientAddresses>,
    pub(crate) wish: Wish,
    /// The endpoint of the last attempt.
    pub(crate) picked: AtomicUsize,
    /// Who wants to know how it goes.
    pub(crate) trip: Option<&'a Trip>,
}

impl<'a> Call<'a> {
    pub(crate) fn new(parts: &'a request::Parts, framing: RequestFraming, options: &ClusterOptions) -> Self {
        let client = match options.connection_per_client {
            true => parts.extensions.get::<ClientAddresses>().copied(),
            false => None,
        };
        let expects = framing != RequestFraming::None
            && parts
                .headers
                .get(header::EXPECT)
                .is_some_and(|expect| expect.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        Self {
            parts,
            framing,
            idempotent: is_idempotent(&parts.method),
            expects,
            client,
            wish: wish_of(parts, options),
            picked: AtomicUsize::new(usize::MAX),
            trip: parts.extensions.get::<Arc<Trip>>().map(|trip| &**trip),
        }
    }

    /// The same once more, for attempts beside the first ones.
    pub(crate) fn beside(call: &Call<'a>) -> Self {
        Self {
            parts: call.parts,
            framing: call.framing,
            idempotent: call.idempotent,
            expects: call.expects,
            client: call.client,
            wish: call.wish,
            picked: AtomicUsize::new(usize::MAX),
            trip: call.trip,
        }
    }

    /// An attempt begins.
    pub(crate) fn begin(&self, state: &EndpointState) {
        if let Some(trip) = self.trip {
            trip.begin(&state.endpoint.name);
        }
    }

    /// It waits until this is dropped.
    pub(crate) fn waiting(&self) -> Option<Spell<'a>> {
        self.trip.map(Trip::waiting)
    }

    /// It connects until this is dropped.
    pub(crate) fn connecting(&self) -> Option<Spell<'a>> {
        self.trip.map(Trip::connecting)
    }

    /// Now, where somebody wants to know how long an answer takes.
    pub(crate) fn now(&self) -> Option<Instant> {
        self.trip.map(|_| Instant::now())
    }

    /// The answer is there.
    pub(crate) fn answered(&self, since: Option<Instant>) {
        if let (Some(trip), Some(since)) = (self.trip, since) {
            trip.answered(since);
        }
    }
}

/// What a request says of where it belongs. Nothing is looked for where no policy asks.
pub(crate) fn wish_of(parts: &request::Parts, options: &ClusterOptions) -> Wish {
    let balance = &options.balance;
    let hash = match balance.policy {
        Policy::Maglev { .. } | Policy::RingHash { .. } => {
            let client = parts.extensions.get::<ClientIp>().map(|client| client.0);
            let peer = || parts.extensions.get::<Arc<ConnInfo>>().map(|info| info.client_ip());
            hash_of(&balance.hash_on, parts, client.or_else(peer))
        }
        _ => None,
    };
    let identity = match options.prefer_endpoints {
        true => parts.extensions.get::<PreferEndpoint>().map(|prefer| prefer.0),
        false => None,
    };
    Wish { hash, identity }
}

/// RFC 9110 section 9.2.2.
fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}
