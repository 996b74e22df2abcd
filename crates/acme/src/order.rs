//! One order: from the names to the chain of certificates (RFC 8555 section 7.4).

use std::{net::IpAddr, sync::Arc, time::Duration};

use instant_acme::{
    AuthorizationStatus, CertificateIdentifier, ChallengeType, Identifier, NewOrder, Order, OrderStatus,
    RetryPolicy,
};
use parking_lot::Mutex;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};

use crate::{
    account::Session,
    acme::Inner,
    answers::{Placed, SETTLE},
    error::{AcmeError, Causes},
    names::dns_record,
    options::{Challenge, KeyKind},
};

/// How long the authority may take to look at the answers, and to issue; each is within the order's own deadline.
const VALIDATION: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(250))
    .backoff(1.5)
    .timeout(Duration::from_secs(180));
/// How long taking answers away may take, also when the server ends.
const CLEAN_UP: Duration = Duration::from_secs(10);
/// For one record to be removed: more than any hook's own deadline should be.
const CLEAR: Duration = Duration::from_secs(600);

/// What was put where the authority looks, noted before it is put there.
#[derive(Default)]
pub(crate) struct Notes(Mutex<Vec<Placed>>);

/// What an order brought.
pub(crate) struct Issued {
    pub(crate) chain_pem: String,
    pub(crate) key_pem: String,
    pub(crate) url: String,
}

/// One name's challenge and the answer to it.
struct Task {
    name: String,
    token: String,
    authorization: String,
    digest: Vec<u8>,
    dns_value: String,
}

impl Inner {
    /// Has a certificate issued. What it puts up for the authority is in `notes`, to be taken away by
    /// [`Inner::clean_up`].
    pub(crate) async fn order(
        self: &Arc<Self>,
        session: &Session,
        names: &[String],
        replaces: Option<CertificateIdentifier<'static>>,
        notes: &Notes,
    ) -> Result<Issued, AcmeError> {
        self.check_profile(session)?;
        let mut order = self.new_order(session, names, replaces).await?;
        let tasks = self.open_tasks(session, &mut order).await?;
        self.answer(tasks, notes).await?;
        self.tell(session, &mut order).await?;
        if order.state().status != OrderStatus::Ready {
            let status =
                order.poll_ready(&VALIDATION).await.map_err(session.failed("waiting for validation"));
            match status {
                Ok(OrderStatus::Ready) => {}
                Ok(_) => return Err(self.refusal(&mut order).await),
                Err(error) if error.is_problem("rateLimited") => return Err(error),
                Err(AcmeError::Authority { problem: Some(_), .. }) => {
                    return Err(self.refusal(&mut order).await);
                }
                Err(error) => return Err(error),
            }
        }
        let (key_pem, request) = request(names.to_vec(), self.options.key).await?;
        order.finalize_csr(&request).await.map_err(session.failed("finalizing the order"))?;
        let chain = order.poll_certificate(&VALIDATION).await;
        let chain_pem = chain.map_err(session.failed("waiting for the certificate"))?;
        Ok(Issued { chain_pem, key_pem, url: order.url().to_owned() })
    }

    fn check_profile(&self, session: &Session) -> Result<(), AcmeError> {
        let Some(wanted) = &self.options.profile else { return Ok(()) };
        let mut offered: Vec<_> = session.account.profiles().map(|profile| profile.name).collect();
        if offered.contains(&wanted.as_str()) {
            return Ok(());
        }
        offered.sort_unstable();
        let offered = if offered.is_empty() { "none".to_owned() } else { offered.join(", ") };
        Err(AcmeError::Profile { wanted: wanted.clone(), offered })
    }

    async fn new_order(
        &self,
        session: &Session,
        names: &[String],
        replaces: Option<CertificateIdentifier<'static>>,
    ) -> Result<Order, AcmeError> {
        let identifier = |name: &String| match name.parse::<IpAddr>() {
            Ok(address) => Identifier::Ip(address),
            Err(_) => Identifier::Dns(name.clone()),
        };
        let identifiers: Vec<_> = names.iter().map(identifier).collect();
        let new = || {
            let new = NewOrder::new(&identifiers);
            match &self.options.profile {
                Some(profile) => new.profile(profile),
                None => new,
            }
        };
        const ACTION: &str = "making an order";
        if let Some(replaces) = replaces {
            // RFC 9773 section 5: a hint. Whatever is wrong with it, the order can do without.
            match session.account.new_order(&new().replaces(replaces)).await {
                Ok(order) => return Ok(order),
                Err(error) => {
                    let error = session.failed(ACTION)(error);
                    if error.is_rate_limited() || error.is_problem("accountDoesNotExist") {
                        return Err(error);
                    }
                    tracing::debug!(error = %Causes(&error), "ordering without a hint to what is replaced");
                }
            }
        }
        session.account.new_order(&new()).await.map_err(session.failed(ACTION))
    }

    /// What is still to be proved.
    async fn open_tasks(&self, session: &Session, order: &mut Order) -> Result<Vec<Task>, AcmeError> {
        let failed = session.failed("reading an authorization");
        let mut tasks = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(&failed)?;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let name = plain(authorization.identifier().identifier);
            let offered = authorization.challenges.iter().map(|challenge| kind_name(&challenge.r#type));
            let offered = offered.collect::<Vec<_>>().join(", ");
            let Some(challenge) = authorization.challenge(self.options.challenge.kind()) else {
                return Err(AcmeError::NoChallenge { name, wanted: self.options.challenge.name(), offered });
            };
            let proof = challenge.key_authorization();
            tasks.push(Task {
                name,
                token: challenge.token.clone(),
                authorization: proof.as_str().to_owned(),
                digest: proof.digest().as_ref().to_vec(),
                dns_value: proof.dns_value(),
            });
        }
        Ok(tasks)
    }

    /// Puts all answers up: into the storage first, since the authority may come to any instance.
    async fn answer(self: &Arc<Self>, tasks: Vec<Task>, notes: &Notes) -> Result<(), AcmeError> {
        if tasks.is_empty() {
            return Ok(());
        }
        if let Challenge::Dns01(hook) = &self.options.challenge {
            for task in tasks {
                let (record, value) = (dns_record(&task.name), task.dns_value);
                notes.0.lock().push(Placed::Dns { record: record.clone(), value: value.clone() });
                let set = hook.set(&record, &value).await;
                set.map_err(|source| AcmeError::Dns { name: record, source })?;
            }
            tokio::time::sleep(hook.propagation()).await;
            return Ok(());
        }
        let is_http = matches!(self.options.challenge, Challenge::Http01);
        notes.0.lock().extend(tasks.iter().map(|task| match is_http {
            true => Placed::Http { token: task.token.clone() },
            false => Placed::Alpn { name: task.name.clone() },
        }));
        let answers = Arc::clone(&self.answers);
        self.blocking(move |_| {
            tasks.iter().try_for_each(|task| match is_http {
                true => answers.put_http(&task.token, &task.authorization, &task.name),
                false => answers.put_alpn(&task.name, &task.digest),
            })
        })
        .await?;
        if !is_http {
            tokio::time::sleep(SETTLE).await;
        }
        Ok(())
    }

    /// Tells the authority to look.
    async fn tell(&self, session: &Session, order: &mut Order) -> Result<(), AcmeError> {
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(session.failed("reading an authorization"))?;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            if let Some(mut challenge) = authorization.challenge(self.options.challenge.kind()) {
                challenge.set_ready().await.map_err(session.failed("asking for validation"))?;
            }
        }
        Ok(())
    }

    /// Why names were not validated: it stands with each challenge.
    async fn refusal(&self, order: &mut Order) -> AcmeError {
        let mut failed = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let Ok(mut authorization) = authorization else { continue };
            if authorization.refresh().await.is_err() || authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let name = plain(authorization.identifier().identifier);
            let said: Vec<_> = authorization
                .challenges
                .iter()
                .filter_map(|challenge| challenge.error.as_ref())
                .map(|problem| problem.detail.clone().or(problem.r#type.clone()).unwrap_or_default())
                .collect();
            failed.push(format!(
                "{name} ({})",
                if said.is_empty() { "no reason given".to_owned() } else { said.join("; ") }
            ));
        }
        let failed = if failed.is_empty() { "the order".to_owned() } else { failed.join(", ") };
        AcmeError::Validation { failed }
    }

    /// Takes away what an order put up, whatever came of it.
    pub(crate) async fn clean_up(self: &Arc<Self>, notes: Notes, stop: &mut crate::run::Stop) {
        let placed = notes.0.into_inner();
        if placed.is_empty() {
            return;
        }
        let inner = Arc::clone(self);
        // as long as it takes, each record within its own time; only where all ends there is not so much of it
        let late = async {
            let _ = stop.wait_for(|stop| *stop).await;
            tokio::time::sleep(CLEAN_UP).await;
        };
        let clean = async move {
            if let Challenge::Dns01(hook) = &inner.options.challenge {
                for placed in &placed {
                    let Placed::Dns { record, value } = placed else { continue };
                    match tokio::time::timeout(CLEAR, hook.clear(record, value)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => {
                            tracing::warn!(record, error = %Causes(&error), "a DNS record could not be removed");
                        }
                        Err(_) => tracing::warn!(record, "a DNS record was not removed in time"),
                    }
                }
                return;
            }
            let answers = Arc::clone(&inner.answers);
            let removed = inner.blocking(move |_| {
                // all of them, and then the first that could not be
                let failed: Vec<_> =
                    placed.iter().filter_map(|placed| answers.remove(placed).err()).collect();
                failed.into_iter().next().map_or(Ok(()), |error| Err(error.into()))
            });
            if let Err(error) = removed.await {
                tracing::warn!(error = %Causes(&error), "an answer to a challenge could not be removed");
            }
        };
        tokio::select! {
            biased;
            () = clean => {}
            () = late => tracing::warn!("answers to challenges could not be removed in time"),
        }
    }
}

fn plain(identifier: &Identifier) -> String {
    identifier.authorized(false).to_string()
}

fn kind_name(kind: &ChallengeType) -> String {
    match kind {
        ChallengeType::Http01 => "http-01".to_owned(),
        ChallengeType::Dns01 => "dns-01".to_owned(),
        ChallengeType::TlsAlpn01 => "tls-alpn-01".to_owned(),
        ChallengeType::Unknown(name) => name.clone(),
        _ => "another".to_owned(),
    }
}

/// A new key and the request for a certificate. On a thread of its own: an RSA key takes a tenth of a second.
async fn request(names: Vec<String>, kind: KeyKind) -> Result<(String, Vec<u8>), AcmeError> {
    let made = tokio::task::spawn_blocking(move || -> Result<_, rcgen::Error> {
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = DistinguishedName::new();
        let key = KeyPair::generate_for(kind.algorithm())?;
        let request = params.serialize_request(&key)?;
        Ok((key.serialize_pem(), request.der().to_vec()))
    });
    made.await.map_err(|_| AcmeError::Cut)?.map_err(AcmeError::Generate)
}
