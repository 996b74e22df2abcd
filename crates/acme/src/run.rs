//! The loop that issues and renews.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use instant_acme::CertificateIdentifier;
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::Instant,
};

use crate::{
    acme::{Acme, Inner, log_updated},
    bundle::{self, Bundle, Meta},
    error::{AcmeError, Causes},
    order::{Issued, Notes},
    schedule,
    state::{Busy, Job},
    status::{LastError, count},
};

/// How long orders under way have to take their answers away when the server ends.
const LEAVE: Duration = Duration::from_secs(15);
/// How long nothing is ordered after the authority said that the account asks too much, at most: it may have meant one name alone.
const HOLD: Duration = Duration::from_secs(600);
/// However near the next thing to be done is, the loop rests so long.
const REST: Duration = Duration::from_millis(10);
/// After how long to ask again about renewal where that failed.
const ARI_AGAIN: Duration = Duration::from_secs(3600);
/// The authority does not tell when to renew.
const ARI_NEVER: Duration = Duration::from_secs(86_400);

/// Told when the loop ends.
pub(crate) type Stop = watch::Receiver<bool>;

/// What came of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// There is a new certificate, from the authority or by another instance.
    Served,
    /// Another instance is at it.
    Elsewhere,
    /// It failed, which was noted.
    Failed,
}

impl Acme {
    /// Issues what is missing and renews what is due until `shutdown` resolves. Failures are logged and tried again,
    /// so it never ends by itself; nothing in it waits longer than its deadline.
    ///
    /// What waits on files does so on blocking threads; everything else runs on the runtime that polls this, of
    /// whatever kind, as tasks that end with it. At shutdown orders under way are given up, and what they put up for
    /// the authority is taken away, within 15 s. Dropping the future ends the orders at once: their answers in the
    /// storage are void an hour later and go with the next start after that, and DNS records stay.
    ///
    /// Run it once for each storage and process; a second one does no harm, and no good.
    pub async fn run(&self, shutdown: impl Future<Output = ()>) {
        let inner = &self.0;
        let _running = Running::new(inner);
        let mut shutdown = pin!(shutdown);
        let (stop, stopped) = watch::channel(false);
        let mut jobs = JoinSet::new();
        let (mut look_at, mut looking) = (Instant::now(), None::<AbortHandle>);
        loop {
            let now = Instant::now();
            if now >= look_at {
                look_at = now + inner.options.poll;
                // a storage that is slow is not asked twice at once
                if looking.as_ref().is_none_or(AbortHandle::is_finished) {
                    looking = Some(jobs.spawn(Arc::clone(inner).look_around()));
                }
            }
            let mut until = look_at;
            if inner.is_loaded() {
                let (fraction, orders) = (inner.options.renew_before, inner.options.orders_at_once);
                let plan = inner.state.lock().plan(fraction, orders, SystemTime::now(), now);
                for job in plan.jobs {
                    jobs.spawn(Arc::clone(inner).work(job, stopped.clone()));
                }
                until = plan.next.map_or(until, |next| until.min(now + next.clamp(REST, inner.options.poll)));
            }
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                Some(_) = jobs.join_next() => {}
                () = inner.wake.notified() => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
        stop.send_replace(true);
        let _ = tokio::time::timeout(LEAVE, async { while jobs.join_next().await.is_some() {} }).await;
    }
}

/// Counts a loop; nobody waits for a name after the last one.
struct Running<'a>(&'a Inner);

impl<'a> Running<'a> {
    fn new(inner: &'a Inner) -> Self {
        inner.running.fetch_add(1, Ordering::AcqRel);
        Self(inner)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            let mut state = self.0.state.lock();
            state.queue.clear();
            state.pending.clear();
        }
    }
}

/// A certificate that something is being done for.
struct BusyGuard {
    inner: Arc<Inner>,
    id: String,
}

impl Drop for BusyGuard {
    fn drop(&mut self) {
        if let Some(managed) = self.inner.state.lock().certs.get_mut(&self.id) {
            managed.busy = Busy::No;
            if std::thread::panicking() {
                // a hook of the program's, or a library: it is tried again like any other failure, and not at once
                let bounds = (self.inner.options.retry_min, self.inner.options.retry_max);
                managed.failures = managed.failures.saturating_add(1);
                let wait = schedule::backoff(managed.failures, bounds, schedule::roll(), None);
                managed.not_before = Some(Instant::now() + wait);
                managed.last_error = Some(LastError {
                    at: SystemTime::now(),
                    text: "a panic, which is a defect of a hook or of a library: see the log".to_owned(),
                });
            }
        }
        self.inner.wake.notify_one();
    }
}

/// What an attempt begins from.
struct Start {
    names: Vec<String>,
    on_demand: bool,
    served: Option<Arc<Bundle>>,
}

impl Inner {
    /// Looks for what other instances did.
    async fn look_around(self: Arc<Self>) {
        self.answers.sweep_memory();
        let looked = tokio::task::spawn_blocking(move || {
            if self.is_loaded() {
                self.look();
                return;
            }
            match self.load() {
                Ok(_) => self.wake.notify_one(),
                Err(error) => {
                    tracing::warn!(error = %Causes(&error), "the storage cannot be read, so nothing is issued");
                }
            }
        });
        // a panic there would be told by the runtime
        let _ = looked.await;
    }

    async fn work(self: Arc<Self>, job: Job, mut stop: Stop) {
        match job {
            Job::Issue(id) => {
                self.issue(&id, &mut stop).await;
            }
            Job::AskAri(id) => tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => {}
                () = self.ask_ari(id) => {}
            },
            Job::First(name) => self.first(&name, &mut stop).await,
        }
    }

    /// One attempt, with everything noted that comes of it. The certificate was marked as busy.
    pub(crate) async fn issue(self: &Arc<Self>, id: &str, stop: &mut Stop) -> Done {
        let _busy = BusyGuard { inner: Arc::clone(self), id: id.to_owned() };
        // the line is never closed
        let _place = self.orders.acquire().await;
        match self.try_issue(id, stop).await {
            Ok(done) => {
                if done == Done::Elsewhere
                    && let Some(managed) = self.state.lock().certs.get_mut(id)
                {
                    managed.not_before = Some(Instant::now() + self.options.poll);
                }
                done
            }
            Err(AcmeError::Cut) if *stop.borrow() => Done::Failed,
            Err(error) => {
                self.note_failure(id, &error);
                Done::Failed
            }
        }
    }

    fn note_failure(&self, id: &str, error: &AcmeError) {
        let mut state = self.state.lock();
        let Some(managed) = state.certs.get_mut(id) else { return };
        if !matches!(error, AcmeError::NotAllowed { .. }) {
            count(&self.stats.orders_failed);
        }
        let now = SystemTime::now();
        managed.failures = managed.failures.saturating_add(1);
        let told = schedule::told(error.is_rate_limited(), error.retry_after(), now);
        let bounds = (self.options.retry_min, self.options.retry_max);
        let wait = schedule::backoff(managed.failures, bounds, schedule::roll(), told);
        managed.not_before = Some(Instant::now() + wait);
        // the account is what is limited, and with it all other certificates
        let hold = error.is_rate_limited().then(|| Instant::now() + wait.min(HOLD));
        let text = Causes(error).to_string();
        let names = managed.names.join(", ");
        let expired = managed.served.as_ref().map(|served| served.is_expired(now));
        let serving = match expired {
            Some(false) => "the certificate before",
            Some(true) => "an expired certificate",
            None => "none",
        };
        tracing::warn!(
            names,
            serving,
            failures = managed.failures,
            retry_in_s = wait.as_secs(),
            error = text,
            "no certificate was issued"
        );
        managed.last_error = Some(LastError { at: now, text });
        state.hold = state.hold.max(hold);
    }

    async fn try_issue(self: &Arc<Self>, id: &str, stop: &mut Stop) -> Result<Done, AcmeError> {
        let Some(start) = self.start(id) else { return Ok(Done::Failed) };
        let key = self.certificate_key(id);
        let Some(_lock) = self.blocking(move |storage| Ok(storage.try_lock(&key)?)).await? else {
            let is_there = self.adopt(id, &start).await?;
            return Ok(if is_there { Done::Served } else { Done::Elsewhere });
        };
        // another instance may have been quicker
        if self.adopt(id, &start).await? {
            return Ok(Done::Served);
        }
        if start.on_demand && start.served.is_some() {
            self.still_allowed(id, &start).await?;
        }
        let notes = Notes::default();
        let limit = self.options.order_timeout;
        let issued = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => Err(AcmeError::Cut),
            issued = tokio::time::timeout(limit, self.order_by_account(&start, &notes)) => {
                issued.unwrap_or(Err(AcmeError::Timeout { waited: limit }))
            }
        };
        self.clean_up(notes, stop).await;
        self.finish(id, &start, issued?).await?;
        Ok(Done::Served)
    }

    fn start(&self, id: &str) -> Option<Start> {
        let state = self.state.lock();
        let managed = state.certs.get(id)?;
        Some(Start {
            names: managed.names.clone(),
            on_demand: managed.on_demand,
            served: managed.served.clone(),
        })
    }

    /// Serves what the storage has, if it is another certificate and not due itself.
    async fn adopt(self: &Arc<Self>, id: &str, start: &Start) -> Result<bool, AcmeError> {
        let (inner, key) = (Arc::clone(self), id.to_owned());
        let stored = match self.blocking(move |_| inner.stored(&key)).await {
            Ok(Some(stored)) => stored,
            // told of when it was loaded; a new one takes its place
            Ok(None) | Err(AcmeError::Certificate { .. }) => return Ok(false),
            Err(error) => return Err(error),
        };
        // one that could not be stored must not give way to the one before it
        let is_newer = start
            .served
            .as_ref()
            .is_none_or(|served| served.digest != stored.digest && served.is_older(&stored));
        if !is_newer || stored.renewal_time(self.options.renew_before) <= SystemTime::now() {
            return Ok(false);
        }
        log_updated(&stored.about);
        self.serve(id, stored).await;
        count(&self.stats.adopted);
        Ok(true)
    }

    /// A name on demand is renewed only as long as the policy allows it. What is served stays until it expires, since
    /// the policy may only be out of reach.
    async fn still_allowed(self: &Arc<Self>, id: &str, start: &Start) -> Result<(), AcmeError> {
        let Some(name) = start.names.first() else { return Ok(()) };
        if self.ask(name).await {
            return Ok(());
        }
        if start.served.as_ref().is_some_and(|served| served.is_expired(SystemTime::now())) {
            tracing::info!(name, "forgot the expired certificate of a name that is no longer allowed");
            self.state.lock().remove(id);
            let (inner, key) = (Arc::clone(self), self.certificate_key(id));
            self.blocking(move |storage| {
                inner.publish();
                Ok(storage.remove(&key)?)
            })
            .await?;
        }
        Err(AcmeError::NotAllowed { name: name.clone() })
    }

    async fn order_by_account(self: &Arc<Self>, start: &Start, notes: &Notes) -> Result<Issued, AcmeError> {
        let replaces = || {
            let leaf = start.served.as_ref()?.key.cert.first()?;
            CertificateIdentifier::try_from(leaf).ok().map(CertificateIdentifier::into_owned)
        };
        let session = self.session().await?;
        match self.order(&session, &start.names, replaces(), notes).await {
            Err(error) if error.is_problem("accountDoesNotExist") => {
                self.forget_account(session.account.id()).await?;
                let session = self.session().await?;
                self.order(&session, &start.names, replaces(), notes).await
            }
            done => done,
        }
    }

    /// Checks, stores and serves what was issued.
    async fn finish(self: &Arc<Self>, id: &str, start: &Start, issued: Issued) -> Result<(), AcmeError> {
        let meta = Meta { names: start.names.clone(), on_demand: start.on_demand, order: issued.url };
        let bytes = bundle::compose(&meta, &issued.chain_pem, &issued.key_pem);
        let bundle = bundle::read(&bytes, "the certificate authority")?;
        let key = self.certificate_key(id);
        if let Err(error) = self.blocking(move |storage| Ok(storage.store(&key, &bytes)?)).await {
            // it is good all the same, and another order would not be any easier to store
            tracing::error!(
                names = start.names.join(", "),
                error = %Causes(&error),
                "a certificate is served and could not be stored: it is lost with this process"
            );
        }
        log_updated(&bundle.about);
        if let Some(managed) = self.state.lock().certs.get_mut(id) {
            managed.issued += 1;
            let about = &bundle.about;
            let lifetime = about.not_after.duration_since(about.not_before).unwrap_or_default();
            managed.rest_until = Some(Instant::now() + self.options.retry_max.min(lifetime / 4));
        }
        if bundle.renewal_time(self.options.renew_before) <= SystemTime::now() {
            let names = start.names.join(", ");
            tracing::warn!(
                names,
                "a certificate that was just issued is due for renewal: see whether the clock is right"
            );
        }
        self.serve(id, bundle).await;
        count(&self.stats.orders_ok);
        if start.served.is_some() {
            count(&self.stats.renewals);
        }
        Ok(())
    }

    /// Asks the authority when to renew (RFC 9773).
    async fn ask_ari(self: Arc<Self>, id: String) {
        let _busy = BusyGuard { inner: Arc::clone(&self), id: id.clone() };
        let Some(served) = self.start(&id).and_then(|start| start.served) else { return };
        let (window, again) = match self.suggestion(&served).await {
            Ok(Some((window, every))) => (Some(window), schedule::ari_interval(Some(every))),
            Ok(None) => (None, ARI_NEVER),
            Err(error) => {
                tracing::debug!(error = %Causes(&error), "the authority did not say when to renew");
                (None, ARI_AGAIN)
            }
        };
        let mut state = self.state.lock();
        let Some(managed) = state.certs.get_mut(&id) else { return };
        managed.ari.ask = Some(Instant::now() + again);
        // another certificate may be served by now
        if let Some(window) = window
            && managed.served.as_ref().is_some_and(|now| now.digest == served.digest)
        {
            managed.ari.suggest(&served, window);
        }
    }

    /// The window in which to renew, and how long that is good for; `None` where the authority does not tell.
    async fn suggestion(
        self: &Arc<Self>,
        served: &Bundle,
    ) -> Result<Option<((SystemTime, SystemTime), Duration)>, AcmeError> {
        let id = served.key.cert.first().and_then(|leaf| CertificateIdentifier::try_from(leaf).ok());
        let Some(id) = id else { return Ok(None) };
        let session = self.anonymous().await?;
        match session.account.renewal_info(&id).await {
            Ok((info, every)) => {
                let window = info.suggested_window;
                if let Some(url) = info.explanation_url {
                    tracing::info!(url, "the authority explains when it wants a certificate renewed");
                }
                Ok(Some(((window.start.into(), window.end.into()), every)))
            }
            Err(instant_acme::Error::Unsupported(_)) => Ok(None),
            Err(error) => Err(session.failed("asking when to renew")(error)),
        }
    }
}
