//! What to do with a request that may be answered from the store.

use std::{sync::Arc, time::Instant};

use http::{HeaderMap, Method, Request, Response, StatusCode};

use crate::{
    answer::{self, Wanted},
    background::Ask,
    body::CacheBody,
    buf::Buf,
    complete::{Get, Look, Plan, Spare, seconds},
    conditional,
    directives::RequestDirectives,
    flight::{Flight, Seat},
    flights::{Joined, Lead},
    layer::Core,
    marks,
    meta::{Meta, Use},
    request::{again, ask_for_all, asked, is_authorized},
    stats::count,
    status::{Status, Why},
    store::{Stored, Variants, select},
    vary::{fit, selection},
};

/// A look-up, repeated for a request that has waited.
#[derive(Debug)]
pub(crate) struct LookUp {
    pub(crate) key: Buf,
    pub(crate) directives: RequestDirectives,
    /// Read once, since what is forwarded has not all of it any more.
    pub(crate) wanted: Wanted,
    /// Why it was not answered from the store when it was looked up last.
    pub(crate) why: Why,
    /// A response that came while it was waited, for other requests: it tells what they are told apart by.
    pub(crate) met: Option<Arc<Meta>>,
    /// It was waited for another's response.
    pub(crate) waited: bool,
    /// It is not to be waited (again).
    pub(crate) alone: bool,
}

pub(crate) enum Step<B, R> {
    Answer(Response<CacheBody<R>>),
    /// And ask anew with this request, in the background.
    AnswerAndAsk(Response<CacheBody<R>>, Box<Ask<B>>),
    Forward(Plan),
    Follow(Seat),
}

impl LookUp {
    pub(crate) fn new<B>(key: Buf, directives: RequestDirectives, request: &Request<B>) -> Self {
        let wanted = Wanted::read(request.method(), request.headers());
        Self { key, directives, wanted, why: Why::UriMiss, met: None, waited: false, alone: false }
    }

    /// Turns the request into the one to be forwarded, where it is; then this is not used again.
    pub(crate) fn decide<B: Default, R>(&mut self, core: &Arc<Core>, request: &mut Request<B>) -> Step<B, R> {
        let now = Instant::now();
        let variants = stored_for(core, self.key.as_slice());
        let stored = variants.as_ref().and_then(|variants| select(variants, request.headers()));
        let (why, stored) = match stored {
            Some(stored) => match stored.meta.usable(&self.directives, now, stored.outdated_at()) {
                Use::Fresh(left) => return Step::Answer(self.hit(core, stored, now, seconds(left))),
                Use::Taken(since) => {
                    return Step::Answer(self.stale(core, stored, now, seconds(since), "max-stale"));
                }
                Use::Revalidating(since) => {
                    let name = "stale-while-revalidate";
                    let answer = self.stale(core, stored, now, seconds(since), name);
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
        self.why = why;
        if self.directives.only_if_cached {
            return Step::Answer(only_if_cached(core));
        }
        if *request.method() == Method::HEAD {
            return Step::Forward(self.head(core, request, why, stored, now));
        }
        if self.wanted.ranged.is_some() && !self.fetches_whole(core, request, stored, now) {
            return Step::Forward(self.part(core, why, stored));
        }
        self.get(core, request, why, stored, variants.as_ref(), now)
    }

    fn hit<B>(&self, core: &Core, stored: &Arc<Stored>, now: Instant, ttl: i64) -> Response<CacheBody<B>> {
        let counters = &core.shared.counters;
        count(if self.waited { &counters.collapsed } else { &counters.hits });
        let mut response = answer::stored(stored, &self.wanted, now);
        let status = Status { collapsed: self.waited, key: Some(self.key.as_slice()), ..Status::hit(ttl) };
        status.note(&core.rules, response.headers_mut());
        response
    }

    fn stale<B>(
        &self,
        core: &Core,
        stored: &Arc<Stored>,
        now: Instant,
        since: i64,
        detail: &'static str,
    ) -> Response<CacheBody<B>> {
        count(&core.shared.counters.stale);
        let mut response = answer::stored(stored, &self.wanted, now);
        let key = Some(self.key.as_slice());
        let status = Status { key, detail: Some(detail), ..Status::hit(-since) };
        status.note(&core.rules, response.headers_mut());
        response
    }

    fn head<B>(
        &mut self,
        core: &Core,
        request: &Request<B>,
        why: Why,
        stored: Option<&Arc<Stored>>,
        now: Instant,
    ) -> Plan {
        let Some(stored) = stored else {
            count(&core.shared.counters.misses);
            return Plan::Pass(why);
        };
        Plan::Look(Box::new(Look {
            asked: asked(request),
            sent: now,
            ticket: core.shared.ticket(self.key.as_slice()),
            spare: self.spare(why, stored),
        }))
    }

    /// A range passes, with what there is for when the origin fails.
    fn part(&mut self, core: &Core, why: Why, stored: Option<&Arc<Stored>>) -> Plan {
        match stored {
            Some(stored) => Plan::Part(Box::new(self.spare(why, stored))),
            None => {
                count(&core.shared.counters.misses);
                Plan::Pass(why)
            }
        }
    }

    fn spare(&mut self, why: Why, stored: &Arc<Stored>) -> Spare {
        Spare {
            key: self.key.as_slice().into(),
            why,
            stored: Arc::clone(stored),
            directives: self.directives,
            wanted: std::mem::take(&mut self.wanted),
        }
    }

    /// Whether the whole is asked for in place of a range: not where the last response was nothing to be stored, so that each range would cost a whole.
    fn fetches_whole<B>(
        &self,
        core: &Core,
        request: &Request<B>,
        stored: Option<&Arc<Stored>>,
        now: Instant,
    ) -> bool {
        let marks = &core.shared.marks;
        let hash = core.shared.hash(self.key.as_slice());
        let in_vain = || {
            marks.has(hash, now)
                || marks.has(marks::too_large(hash), now)
                || (is_authorized(request) && marks.has(marks::of_authorized(hash), now))
        };
        // What is there may be as good as new for the price of a 304.
        let validates = stored.is_some_and(|stored| stored.meta.has_validator());
        core.rules.fetch_ranges && (validates || !in_vain())
    }

    fn get<B: Default, R>(
        &mut self,
        core: &Arc<Core>,
        request: &mut Request<B>,
        why: Why,
        stored: Option<&Arc<Stored>>,
        variants: Option<&Variants>,
        now: Instant,
    ) -> Step<B, R> {
        let shared = &core.shared;
        let key = self.key.as_slice();
        let validates = stored.is_some_and(|stored| stored.meta.has_validator());
        // A 304 for a client's own conditions would be of no use to others.
        let for_all = validates || self.wanted.conditions.is_empty();
        let may_wait = core.rules.collapse
            && !self.alone
            && why != Why::Request
            && !is_authorized(request)
            && tokio::runtime::Handle::try_current().is_ok()
            && !shared.marks.has(shared.hash(key), now);
        let ticket = shared.ticket(key);
        let lead = match self.selection_of(variants, request.headers()).filter(|_| may_wait) {
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
            && let Some(variants) = stored_for(core, key)
            && let Some(found) = select(&variants, request.headers())
            && stored.is_none_or(|stored| !Arc::ptr_eq(stored, found))
            && let Use::Fresh(left) = found.meta.usable(&self.directives, now, found.outdated_at())
        {
            return Step::Answer(self.hit(core, found, now, seconds(left)));
        }
        // Only now is it clear that it does not follow.
        let asked = asked(request);
        if let Some(stored) = stored.filter(|_| validates) {
            // RFC 9111 section 4.3.1
            conditional::ask(request.headers_mut(), &stored.meta.headers);
        }
        let stored = stored.map(Arc::clone);
        let directives = self.directives;
        let wanted = std::mem::take(&mut self.wanted);
        if wanted.ranged.is_some() {
            ask_for_all(request);
        }
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

    /// What asks anew for a stale response, if nobody does already and there is room for one more.
    fn background<B: Default>(
        &self,
        core: &Arc<Core>,
        stored: &Arc<Stored>,
        variants: Option<&Variants>,
        request: &Request<B>,
        now: Instant,
    ) -> Option<Ask<B>> {
        tokio::runtime::Handle::try_current().ok()?;
        let shared = &core.shared;
        let permit = Arc::clone(&shared.background).try_acquire_owned().ok()?;
        let key = self.key.as_slice();
        let values = self.selection_of(variants, request.headers())?;
        let flight = || Flight::new(shared, key, values.as_slice(), &core.rules);
        let lead = shared.flights.lead(key, values.as_slice(), flight)?;
        let ticket = shared.ticket(key);
        let asked = asked(request);
        let mut request = again(request);
        conditional::ask(request.headers_mut(), &stored.meta.headers);
        let plan = Plan::Get(Box::new(Get {
            lead,
            ticket,
            sent: now,
            asked,
            directives: RequestDirectives::default(),
            wanted: Wanted::default(),
            why: Why::Stale,
            stored: Some(Arc::clone(stored)),
            validates: stored.meta.has_validator(),
            background: true,
        }));
        Some(Ask { request, plan, permit })
    }

    /// What tells this request from others for the same URI, as far as it is known before the response: by what is stored, or by what came for another.
    fn selection_of(&self, variants: Option<&Variants>, request: &HeaderMap) -> Option<Buf> {
        let stored = variants.and_then(|variants| variants.first()).map(|first| &first.meta);
        match stored.or(self.met.as_deref()) {
            Some(meta) => selection(&meta.selectors, request),
            None => Some(Buf::new()),
        }
    }
}

/// What is stored, if it is told apart by all that these rules tell requests apart by. Else it is for others, from before they were these.
fn stored_for(core: &Core, key: &[u8]) -> Option<Variants> {
    let fits =
        |variants: &Variants| variants.first().is_some_and(|first| fit(&first.meta.selectors, &core.rules));
    core.shared.get(key).filter(fits)
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
