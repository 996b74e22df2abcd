//! What to do with a request that may be answered from the store.

use std::{sync::Arc, time::Instant};

use http::{HeaderMap, Method, Request, Response, StatusCode};

use crate::{
    answer::{self, Wanted},
    body::CacheBody,
    buf::Buf,
    complete::{Get, Look, Plan, seconds},
    conditional,
    directives::RequestDirectives,
    flight::{Flight, Seat},
    flights::{Joined, Lead},
    layer::Core,
    meta::{Asked, Use},
    request::{again, ask_for_all, asked},
    stats::count,
    status::{Status, Why},
    store::{Stored, Variants, select},
    vary::selection,
};

/// A look-up, repeated for a request that has waited.
#[derive(Debug)]
pub(crate) struct LookUp {
    pub(crate) key: Buf,
    pub(crate) directives: RequestDirectives,
    /// It was waited for another's response.
    pub(crate) waited: bool,
    /// It is not to be waited (again).
    pub(crate) alone: bool,
}

pub(crate) enum Step<B, R> {
    Answer(Response<CacheBody<R>>),
    /// And ask anew with this request, in the background.
    AnswerAndAsk(Response<CacheBody<R>>, Box<(Request<B>, Plan)>),
    Forward(Plan),
    Follow(Seat),
}

impl LookUp {
    /// Turns the request into the one to be forwarded, where it is.
    pub(crate) fn decide<B: Default, R>(&self, core: &Arc<Core>, request: &mut Request<B>) -> Step<B, R> {
        let shared = &core.shared;
        let now = Instant::now();
        let wanted = Wanted::read(request.method(), request.headers());
        let variants = shared.get(self.key.as_slice());
        let stored = variants.as_ref().and_then(|variants| select(variants, request.headers()));
        let (why, stored) = match stored {
            Some(stored) => match stored.meta.usable(&self.directives, now, stored.is_outdated()) {
                Use::Fresh(left) => return Step::Answer(self.hit(core, stored, &wanted, now, seconds(left))),
                Use::Taken(since) => {
                    return Step::Answer(self.stale(core, stored, &wanted, now, seconds(since), "max-stale"));
                }
                Use::Revalidating(since) => {
                    let name = "stale-while-revalidate";
                    let answer = self.stale(core, stored, &wanted, now, seconds(since), name);
                    return match self.background(core, stored, variants.as_ref(), request, now) {
                        Some(ask) => Step::AnswerAndAsk(answer, Box::new(ask)),
                        None => Step::Answer(answer),
                    };
                }
                Use::Stale => (Why::Stale, Some(stored)),
                Use::Asked => (Why::Request, Some(stored)),
            },
            None if variants.is_some() => (Why::VaryMiss, None),
            None => (Why::UriMiss, None),
        };
        if self.directives.only_if_cached {
            return Step::Answer(only_if_cached(core));
        }
        if *request.method() == Method::HEAD {
            return Step::Forward(self.head(core, request, why, stored, wanted, now));
        }
        if wanted.ranged.is_some() {
            if !core.rules.fetch_ranges {
                count(&shared.counters.misses);
                return Step::Forward(Plan::Pass(why));
            }
            ask_for_all(request);
        }
        self.get(core, request, why, stored, variants.as_ref(), wanted, now)
    }

    fn hit<B>(
        &self,
        core: &Core,
        stored: &Arc<Stored>,
        wanted: &Wanted,
        now: Instant,
        ttl: i64,
    ) -> Response<CacheBody<B>> {
        let counters = &core.shared.counters;
        count(if self.waited { &counters.collapsed } else { &counters.hits });
        let mut response = answer::stored(stored, wanted, now);
        let status = Status { collapsed: self.waited, key: Some(self.key.as_slice()), ..Status::hit(ttl) };
        status.note(&core.rules, response.headers_mut());
        response
    }

    fn stale<B>(
        &self,
        core: &Core,
        stored: &Arc<Stored>,
        wanted: &Wanted,
        now: Instant,
        since: i64,
        detail: &'static str,
    ) -> Response<CacheBody<B>> {
        count(&core.shared.counters.stale);
        let mut response = answer::stored(stored, wanted, now);
        let key = Some(self.key.as_slice());
        let status = Status { key, detail: Some(detail), ..Status::hit(-since) };
        status.note(&core.rules, response.headers_mut());
        response
    }

    fn head<B>(
        &self,
        core: &Core,
        request: &Request<B>,
        why: Why,
        stored: Option<&Arc<Stored>>,
        wanted: Wanted,
        now: Instant,
    ) -> Plan {
        let Some(stored) = stored.map(Arc::clone) else {
            count(&core.shared.counters.misses);
            return Plan::Pass(why);
        };
        Plan::Look(Box::new(Look {
            key: self.key.as_slice().into(),
            why,
            asked: asked(request),
            sent: now,
            ticket: core.shared.ticket(self.key.as_slice()),
            stored,
            directives: self.directives,
            wanted,
        }))
    }

    #[allow(clippy::too_many_arguments, reason = "what the look-up found out, once")]
    fn get<B: Default, R>(
        &self,
        core: &Arc<Core>,
        request: &mut Request<B>,
        why: Why,
        stored: Option<&Arc<Stored>>,
        variants: Option<&Variants>,
        wanted: Wanted,
        now: Instant,
    ) -> Step<B, R> {
        let shared = &core.shared;
        let key = self.key.as_slice();
        let asked = asked(request);
        let validates = stored.is_some_and(|stored| stored.meta.has_validator());
        // A 304 for a client's own conditions would be of no use to others.
        let for_all = validates || wanted.conditions.is_empty();
        let may_wait = core.rules.collapse
            && !self.alone
            && why != Why::Request
            && !asked.authorized
            && tokio::runtime::Handle::try_current().is_ok()
            && !shared.marks.has(shared.hash(key), now);
        let ticket = shared.ticket(key);
        let lead = match selection_of(variants, request.headers()).filter(|_| may_wait) {
            Some(values) => {
                let flight = || Flight::new(shared, key, values.as_slice(), &core.rules);
                if !for_all {
                    Lead::alone(flight())
                } else {
                    match shared.flights.join(key, values.as_slice(), flight) {
                        Joined::Follow(seat) => return Step::Follow(seat),
                        Joined::Lead(lead) => lead,
                    }
                }
            }
            None => Lead::alone(Flight::new(shared, key, b"", &core.rules)),
        };
        // The one before may have stored it since it was looked for.
        if may_wait
            && let Some(variants) = shared.get(key)
            && let Some(found) = select(&variants, request.headers())
            && stored.is_none_or(|stored| !Arc::ptr_eq(stored, found))
            && let Use::Fresh(left) = found.meta.usable(&self.directives, now, found.is_outdated())
        {
            return Step::Answer(self.hit(core, found, &wanted, now, seconds(left)));
        }
        if let Some(stored) = stored.filter(|_| validates) {
            // RFC 9111 section 4.3.1
            conditional::ask(request.headers_mut(), &stored.meta.headers);
        }
        let stored = stored.map(Arc::clone);
        let directives = self.directives;
        Step::Forward(Plan::Get(Box::new(Get {
            lead,
            ticket,
            sent: now,
            asked,
            directives,
            wanted,
            why,
            stored,
            validates,
            background: false,
        })))
    }

    /// What asks anew for a stale response, if nobody does already.
    fn background<B: Default>(
        &self,
        core: &Arc<Core>,
        stored: &Arc<Stored>,
        variants: Option<&Variants>,
        request: &Request<B>,
        now: Instant,
    ) -> Option<(Request<B>, Plan)> {
        tokio::runtime::Handle::try_current().ok()?;
        let shared = &core.shared;
        let key = self.key.as_slice();
        let values = selection_of(variants, request.headers())?;
        let flight = || Flight::new(shared, key, values.as_slice(), &core.rules);
        let lead = shared.flights.lead(key, values.as_slice(), flight)?;
        let ticket = shared.ticket(key);
        let Asked { fields, authorized } = asked(request);
        let mut request = again(request);
        conditional::ask(request.headers_mut(), &stored.meta.headers);
        let plan = Plan::Get(Box::new(Get {
            lead,
            ticket,
            sent: now,
            asked: Asked { fields, authorized },
            directives: RequestDirectives::default(),
            wanted: Wanted::default(),
            why: Why::Stale,
            stored: Some(Arc::clone(stored)),
            validates: stored.meta.has_validator(),
            background: true,
        }));
        Some((request, plan))
    }
}

/// What tells this request from others for the same URI, as far as it is known before the response.
fn selection_of(variants: Option<&Variants>, request: &HeaderMap) -> Option<Buf> {
    match variants.and_then(|variants| variants.first()) {
        Some(first) => selection(&first.meta.selectors, request),
        None => Some(Buf::new()),
    }
}

/// The answer where nothing is stored and the client wants nothing else (RFC 9111 section 5.2.1.7).
fn only_if_cached<B>(core: &Core) -> Response<CacheBody<B>> {
    count(&core.shared.counters.misses);
    let mut response = Response::new(CacheBody::empty());
    *response.status_mut() = StatusCode::GATEWAY_TIMEOUT;
    let status = Status { detail: Some("only-if-cached"), ..Status::default() };
    status.note(&core.rules, response.headers_mut());
    response
}
