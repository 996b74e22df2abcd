//! What becomes of a response that came for a forwarded request.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use bytes::Bytes;
use http::{
    HeaderMap, Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_LOCATION, LOCATION, SET_COOKIE},
};
use http_body::Body;

use crate::{
    answer::{self, Wanted},
    body::CacheBody,
    directives::RequestDirectives,
    family::Form,
    flight::{BoxError, Outcome, Target},
    flights::Lead,
    key,
    layer::Core,
    marks,
    meta::{Asked, Compared, Meta, Times, judge},
    request::{Changed, NotForStore},
    rules::CacheRules,
    stats::count,
    status::{Status, Why},
    store::{Key, Stored, Ticket},
    vary::{selection, selectors},
};

/// What to do once the inner service has answered.
#[derive(Debug)]
pub(crate) enum Plan {
    /// Pass it on.
    Pass(Why),
    /// Pass it on, unless the origin fails: it is for a part of what is there and stale.
    Part(Box<Spare>),
    /// Forget what is stored for this, in all layers, if the response is no error.
    Unsafe(Option<Box<Changed>>),
    /// It is for HEAD: see what it says of what is stored.
    Look(Box<Look>),
    /// Store it, or refresh what is stored.
    Get(Box<Get>),
}

/// What is there for a request that is passed on.
#[derive(Debug)]
pub(crate) struct Spare {
    pub(crate) key: Key,
    pub(crate) why: Why,
    pub(crate) stored: Arc<Stored>,
    pub(crate) directives: RequestDirectives,
    pub(crate) wanted: Wanted,
}

#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) asked: Asked,
    pub(crate) sent: Instant,
    pub(crate) ticket: Ticket,
    pub(crate) spare: Spare,
}

#[derive(Debug)]
pub(crate) struct Get {
    pub(crate) lead: Lead,
    pub(crate) ticket: Ticket,
    pub(crate) sent: Instant,
    pub(crate) asked: Asked,
    pub(crate) directives: RequestDirectives,
    pub(crate) wanted: Wanted,
    pub(crate) why: Why,
    /// What is there and stale, or not wanted as it is.
    pub(crate) stored: Option<Arc<Stored>>,
    /// Whether the origin was asked about it; the client's own conditions were taken out of the request for it.
    pub(crate) validates: bool,
    /// Whether a client waits for it.
    pub(crate) background: bool,
}

/// The answer to a failed request, if there is one that may be given out.
pub(crate) fn instead<B>(core: &Core, plan: Plan) -> Option<Response<CacheBody<B>>> {
    match plan {
        Plan::Get(get) => match stale_on_error(core, get, None) {
            Ok(stale) => Some(stale),
            Err(get) => {
                // Who waits is not kept until it is his turn to fail.
                get.lead.tell(Outcome::Alone);
                None
            }
        },
        Plan::Look(look) => stale(core, &look.spare, None),
        Plan::Part(spare) => stale(core, &spare, None),
        Plan::Pass(_) | Plan::Unsafe(_) => None,
    }
}

/// Finishes a response as planned.
pub(crate) fn complete<B>(core: &Core, plan: Plan, response: Response<B>) -> Response<CacheBody<B>>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    match plan {
        Plan::Pass(why) => pass(core, Status::fwd(why), response),
        Plan::Unsafe(changed) => {
            // RFC 9111 section 4.4: what is refused changes nothing, and costs nothing here.
            let done = response.status().is_success() || response.status().is_redirection();
            for (key, form) in
                changed.filter(|_| done).map(|changed| changed.keys(core)).into_iter().flatten()
            {
                invalidate(core, &form, key.as_slice(), &response);
            }
            pass(core, Status::fwd(Why::Method), response)
        }
        Plan::Part(spare) => {
            let status = response.status();
            if let Some(stale) = is_failure(status).then(|| stale(core, &spare, Some(status))).flatten() {
                return stale;
            }
            count(&core.shared.counters.misses);
            pass(core, Status::fwd(spare.why), response)
        }
        Plan::Look(look) => complete_look(core, &look, response),
        Plan::Get(get) => complete_get(core, get, response),
    }
}

fn pass<B>(core: &Core, status: Status<'_>, response: Response<B>) -> Response<CacheBody<B>> {
    let mut response = response.map(CacheBody::passed);
    status.note(&core.rules, response.headers_mut());
    response
}

/// RFC 9111 section 4.4.
fn invalidate<B>(core: &Core, form: &Form, key: &[u8], response: &Response<B>) {
    let forget = |key: &[u8]| {
        if core.shared.forget(key) {
            count(&core.shared.counters.invalidated);
        }
    };
    forget(key);
    for name in [LOCATION, CONTENT_LOCATION] {
        let reference = response.headers().get(name).and_then(|value| value.to_str().ok());
        if let Some(other) = reference.and_then(|reference| key::same_origin(key, reference, form)) {
            forget(other.as_slice());
        }
    }
}

/// RFC 5861 section 4.
fn is_failure(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502 | 503 | 504)
}

fn complete_get<B>(core: &Core, get: Box<Get>, response: Response<B>) -> Response<CacheBody<B>>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let shared = &core.shared;
    let times = Times { asked: get.sent, received: Instant::now(), wall: SystemTime::now() };
    if response.status() == StatusCode::NOT_MODIFIED
        && get.validates
        && let Some(stored) = get.stored.clone()
    {
        return refreshed(core, *get, &stored, response.headers(), times);
    }
    let get = if is_failure(response.status()) {
        match stale_on_error(core, get, Some(response.status())) {
            Ok(stale) => return stale,
            Err(get) => get,
        }
    } else {
        get
    };
    if !get.background {
        count(&shared.counters.misses);
    }
    if response.extensions().get::<NotForStore>().is_some() {
        get.lead.tell(Outcome::Alone);
        return pass(core, Status::fwd(get.why), response);
    }
    let hash = shared.hash(get.lead.flight().key());
    let meta = judge(&get.asked, response.status(), response.headers(), times, &core.rules)
        .filter(|_| !is_too_large(&response, core.rules.max_object_bytes));
    let Some(meta) = meta else {
        return not_for_all(core, *get, response, times.received);
    };
    note_sharing(core, hash, &meta, times.received);
    let expected = content_length(response.headers()).or_else(|| response.body().size_hint().exact());
    let meta = Arc::new(meta);
    // Who wants a part leaves before the end, and would leave nothing behind for the next.
    let finish = core.rules.finish_fetch || get.wanted.ranged.is_some();
    let target = Target { meta: Arc::clone(&meta), ticket: get.ticket, expected, finish };
    let (parts, body) = response.into_parts();
    let seat = get.lead.flight().begin(body, target);
    let status = Status { stored: true, key: Some(get.lead.flight().key()), ..Status::fwd(get.why) };
    let wait = core.rules.collapse_wait;
    let mut response = if get.wanted.ranged.is_some() {
        answer::on_its_way(&meta, seat, expected, wait, &get.wanted, times.received)
    } else {
        Response::from_parts(parts, CacheBody::shared(seat, expected, wait))
    };
    status.note(&core.rules, response.headers_mut());
    response
}

/// Passes on what is not to be stored, with what follows of it for others.
fn not_for_all<B>(core: &Core, get: Get, response: Response<B>, now: Instant) -> Response<CacheBody<B>> {
    let shared = &core.shared;
    let (status, key) = (response.status(), get.lead.flight().key());
    let selects = may_select(&get.asked, response.headers(), &core.rules);
    if selects && get.asked.authorized && is_of_the_resource(status) {
        shared.marks.set(marks::of_authorized(shared.hash(key)), now);
    } else if selects && speaks_of_all(&get.asked, status) {
        // What was asked about is not what the origin has any more.
        if let Some(stored) = &get.stored {
            shared.forget_variant(key, stored);
        }
        shared.marks.set(shared.hash(key), now);
    }
    // These are for the client's own fields: the next who waits may have more luck.
    let own = !selects || status == StatusCode::NOT_MODIFIED;
    get.lead.tell(if own { Outcome::Again } else { Outcome::Alone });
    pass(core, Status::fwd(get.why), response)
}

/// Whether a response says something of what others get. With credentials it may be for their user alone (RFC 9111 section 3.5), and an error for what else one client sent: were it
/// otherwise, whoever sends a wrong password could drop what is stored for all.
fn speaks_of_all(asked: &Asked, status: StatusCode) -> bool {
    !asked.authorized && is_of_the_resource(status)
}

fn is_of_the_resource(status: StatusCode) -> bool {
    status.is_success()
        || (status.is_redirection() && status != StatusCode::NOT_MODIFIED)
        || matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE)
}

/// Whether a request's fields are short enough to tell its response from others, or no others are named.
fn may_select(asked: &Asked, response: &HeaderMap, rules: &CacheRules) -> bool {
    selectors(response, rules).is_none_or(|selectors| selection(&selectors, &asked.fields).is_some())
}

/// Whether it is of use to wait for a response to this key, from what the last one was.
fn note_sharing(core: &Core, hash: u64, meta: &Meta, now: Instant) {
    if meta.is_never_fresh() {
        core.shared.marks.set(hash, now);
    } else {
        core.shared.marks.clear(hash);
    }
}

/// The origin says that what is stored is still right (RFC 9111 section 4.3.3).
fn refreshed<B>(
    core: &Core,
    get: Get,
    stored: &Arc<Stored>,
    not_modified: &HeaderMap,
    times: Times,
) -> Response<CacheBody<B>> {
    let shared = &core.shared;
    count(&shared.counters.revalidated);
    let key = Arc::clone(get.lead.flight().key());
    let headers = stored.meta.updated(not_modified);
    let judged = |headers| judge(&get.asked, stored.meta.status, headers, times, &core.rules);
    if let Some(meta) = headers.as_ref().and_then(judged) {
        let fresh = Arc::new(Stored::new(meta, stored.body.clone(), core.rules.keep_stale));
        shared.refresh(&key, get.ticket, &fresh, stored);
        note_sharing(core, shared.hash(&key), &fresh.meta, times.received);
        // What is to be validated for each is of no use to the others.
        let usable = fresh.meta.is_fresh(times.received);
        get.lead.tell(if usable { Outcome::Again } else { Outcome::Alone });
    } else {
        // Good for this request, and for no other; unless it is only this one that it is refused for.
        if !get.asked.authorized {
            shared.forget_variant(&key, stored);
        }
        get.lead.tell(Outcome::Alone);
    }
    // RFC 9111 section 4.3.4: to this client the 304 says all that it says, whatever of it may be stored.
    let told = headers.map(|headers| stored.meta.told(headers, times));
    let told = told.map(|meta| Arc::new(Stored::new(meta, stored.body.clone(), core.rules.keep_stale)));
    let mut response = answer::stored(told.as_ref().unwrap_or(stored), &get.wanted, times.received);
    if !response.headers().contains_key(SET_COOKIE) {
        for cookie in not_modified.get_all(SET_COOKIE) {
            response.headers_mut().append(SET_COOKIE, cookie.clone());
        }
    }
    let status =
        Status { fwd_status: Some(StatusCode::NOT_MODIFIED), key: Some(&key), ..Status::fwd(get.why) };
    status.note(&core.rules, response.headers_mut());
    response
}

impl Stored {
    /// Whether it may be given out since the origin fails: not what was forgotten meanwhile, by a purge or an unsafe request.
    pub(crate) fn is_spare(&self, request: &RequestDirectives, now: Instant) -> bool {
        !self.is_gone() && self.meta.usable_on_error(request, now, self.outdated_at())
    }
}

/// What is stale in place of an error, for all who wait.
fn stale_on_error<B>(
    core: &Core,
    get: Box<Get>,
    status: Option<StatusCode>,
) -> Result<Response<CacheBody<B>>, Box<Get>> {
    let now = Instant::now();
    let Some(stored) = get.stored.clone().filter(|stored| stored.is_spare(&get.directives, now)) else {
        return Err(get);
    };
    let mut response = answer::stored(&stored, &get.wanted, now);
    if !get.background {
        count(&core.shared.counters.stale);
    }
    note_stale(core, get.why, status, &stored, get.lead.flight().key(), now, &mut response);
    get.lead.tell(Outcome::Failed(stored));
    Ok(response)
}

/// The same for who was passed on.
fn stale<B>(core: &Core, spare: &Spare, status: Option<StatusCode>) -> Option<Response<CacheBody<B>>> {
    let now = Instant::now();
    spare.stored.is_spare(&spare.directives, now).then(|| {
        let mut response = answer::stored(&spare.stored, &spare.wanted, now);
        count(&core.shared.counters.stale);
        note_stale(core, spare.why, status, &spare.stored, &spare.key, now, &mut response);
        response
    })
}

fn note_stale<B>(
    core: &Core,
    why: Why,
    fwd_status: Option<StatusCode>,
    stored: &Stored,
    key: &[u8],
    now: Instant,
    response: &mut Response<B>,
) {
    let ttl = Some(-seconds(stored.meta.stale_since(now, stored.outdated_at())));
    let status =
        Status { fwd_status, ttl, key: Some(key), detail: Some("stale-if-error"), ..Status::fwd(why) };
    status.note(&core.rules, response.headers_mut());
}

pub(crate) fn seconds(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

/// What a response to HEAD says of what is stored (RFC 9111 section 4.3.5).
fn complete_look<B>(core: &Core, look: &Look, response: Response<B>) -> Response<CacheBody<B>> {
    let times = Times { asked: look.sent, received: Instant::now(), wall: SystemTime::now() };
    let Spare { key, why, stored, .. } = &look.spare;
    if is_failure(response.status())
        && let Some(stale) = stale(core, &look.spare, Some(response.status()))
    {
        return stale;
    }
    let status = Status { key: Some(key), ..Status::fwd(*why) };
    count(&core.shared.counters.misses);
    if response.extensions().get::<NotForStore>().is_some() {
        return pass(core, status, response);
    }
    let compared = stored.meta.compare(response.headers(), stored.body.len);
    let both_ok = [response.status(), stored.meta.status].iter().all(|status| *status == StatusCode::OK);
    if both_ok && compared == Compared::Same {
        let headers = stored.meta.updated(response.headers());
        let judged =
            headers.and_then(|headers| judge(&look.asked, response.status(), &headers, times, &core.rules));
        if let Some(meta) = judged {
            let fresh = Stored::new(meta, stored.body.clone(), core.rules.keep_stale);
            core.shared.refresh(key, look.ticket, &Arc::new(fresh), stored);
        }
    } else if compared == Compared::Other && speaks_of_all(&look.asked, response.status()) {
        // There is something else by now.
        core.shared.forget_variant(key, stored);
    }
    pass(core, status, response)
}

pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn is_too_large<B: Body>(response: &Response<B>, max: u64) -> bool {
    content_length(response.headers()).is_some_and(|length| length > max)
        || response.body().size_hint().lower() > max
}
