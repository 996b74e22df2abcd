//! The account at the authority: made once, kept in the storage, and shared by all instances.
//!
//! It is kept by its directory's URL, so that an authority for trials and the one in earnest never mix. For each order
//! it is read anew: another instance may have changed its key.

use std::{sync::Arc, time::Duration};

use instant_acme::{Account, AccountCredentials, ExternalAccountKey, NewAccount};
use serde::{Deserialize, Serialize};

use crate::{
    acme::Inner,
    client::AuthorityClient,
    error::{AcmeError, BoxError},
    names::base64url,
    storage::LockGuard,
};

/// How long another instance may hold the lock of the account: it makes three requests under it, of 30 s each at most.
const LOCK_WAIT: Duration = Duration::from_secs(120);
const DIRECTORY: &str = "reading the directory";
const LOCK_EVERY: Duration = Duration::from_millis(250);

#[derive(Serialize, Deserialize)]
struct Stored {
    directory: String,
    contacts: Vec<String>,
    /// Whether a change of the key was begun, so that it is not known whether the key is still the right one.
    #[serde(default)]
    rolling: bool,
    credentials: AccountCredentials,
}

/// The account, ready for one order's requests.
pub(crate) struct Session {
    pub(crate) account: Account,
    pub(crate) http: AuthorityClient,
}

impl Session {
    pub(crate) fn failed(&self, action: &'static str) -> impl Fn(instant_acme::Error) -> AcmeError + '_ {
        move |error| failed(action, error, &self.http)
    }
}

/// What the library says, with what it leaves out.
fn failed(action: &'static str, error: instant_acme::Error, http: &AuthorityClient) -> AcmeError {
    let problem = match &error {
        instant_acme::Error::Api(problem) => problem.r#type.clone(),
        _ => None,
    };
    let later = match &error {
        instant_acme::Error::Timeout(Some(at)) => {
            Some(std::time::SystemTime::now() + at.saturating_duration_since(std::time::Instant::now()))
        }
        _ => None,
    };
    let source: BoxError = match error {
        // its text is the inner one's, which would stand there twice
        instant_acme::Error::Other(inner) => inner,
        instant_acme::Error::Api(problem) => Box::new(problem),
        error => Box::new(error),
    };
    AcmeError::Authority { action, problem, retry_after: http.take_retry_after().or(later), source }
}

impl Inner {
    fn account_key(&self) -> String {
        format!("accounts/{}", self.directory_id)
    }

    /// Waits for a lock that others hold only shortly.
    async fn lock(self: &Arc<Self>, key: String) -> Result<Box<dyn LockGuard>, AcmeError> {
        let since = tokio::time::Instant::now();
        loop {
            let wanted = key.clone();
            if let Some(guard) = self.blocking(move |storage| Ok(storage.try_lock(&wanted)?)).await? {
                return Ok(guard);
            }
            let waited = since.elapsed();
            if waited > LOCK_WAIT {
                return Err(AcmeError::Locked { key, waited });
            }
            tokio::time::sleep(LOCK_EVERY).await;
        }
    }

    async fn stored_account(self: &Arc<Self>) -> Result<Option<Stored>, AcmeError> {
        let key = self.account_key();
        self.blocking(move |storage| {
            let Some(bytes) = storage.load(&key)? else { return Ok(None) };
            serde_json::from_slice(&bytes).map(Some).map_err(|source| AcmeError::Account { key, source })
        })
        .await
    }

    async fn store_account(self: &Arc<Self>, stored: &Stored) -> Result<(), AcmeError> {
        let key = self.account_key();
        let bytes =
            serde_json::to_vec(stored).map_err(|source| AcmeError::Account { key: key.clone(), source })?;
        self.blocking(move |storage| Ok(storage.store(&key, &bytes)?)).await
    }

    /// Nobody's: for the one question that needs no account (RFC 9773 section 4.1). Asks the authority for its
    /// directory.
    pub(crate) async fn anonymous(&self) -> Result<Session, AcmeError> {
        let http = AuthorityClient::new(&self.client);
        let (_, key) =
            instant_acme::Key::generate_pkcs8().map_err(|error| failed("making a key", error, &http))?;
        let builder = Account::builder_with_http(Box::new(http.clone()));
        let account = builder.from_parts(String::new(), key, self.options.directory.url().to_owned()).await;
        let account = account.map_err(|error| failed(DIRECTORY, error, &http))?;
        Ok(Session { account, http })
    }

    async fn session_of(&self, credentials: AccountCredentials) -> Result<Session, AcmeError> {
        let http = AuthorityClient::new(&self.client);
        let builder = Account::builder_with_http(Box::new(http.clone()));
        let account = builder.from_credentials(credentials).await;
        let account = account.map_err(|error| failed(DIRECTORY, error, &http))?;
        Ok(Session { account, http })
    }

    /// The account, made if there is none, with its contacts as the options say.
    pub(crate) async fn session(self: &Arc<Self>) -> Result<Session, AcmeError> {
        if let Some(stored) = self.stored_account().await?
            && !stored.rolling
            && stored.contacts == self.options.contacts
        {
            return self.session_of(stored.credentials).await;
        }
        let _lock = self.lock(self.account_key()).await?;
        match self.stored_account().await? {
            None => self.make_account().await,
            Some(stored) if stored.rolling => self.settle_rolled(stored).await,
            Some(mut stored) => {
                let copy = copy_of(&stored.credentials, &self.account_key())?;
                let session = self.session_of(copy).await?;
                if stored.contacts != self.options.contacts {
                    let contacts: Vec<_> = self.options.contacts.iter().map(String::as_str).collect();
                    let changed = session.account.update_contacts(&contacts).await;
                    changed.map_err(session.failed("changing the account's contacts"))?;
                    stored.contacts.clone_from(&self.options.contacts);
                    self.store_account(&stored).await?;
                }
                Ok(session)
            }
        }
    }

    /// Under the lock.
    async fn make_account(self: &Arc<Self>) -> Result<Session, AcmeError> {
        let contacts: Vec<_> = self.options.contacts.iter().map(String::as_str).collect();
        let new =
            NewAccount { contact: &contacts, terms_of_service_agreed: true, only_return_existing: false };
        let external = self.options.external_account.as_ref().map(|external| {
            // it was read when the options were checked
            let key = base64url(&external.hmac_key).unwrap_or_default();
            ExternalAccountKey::new(external.key_id.clone(), &key)
        });
        // an account whose key can't be kept is lost, and authorities count them
        let probe = format!("{}.probe", self.account_key());
        self.blocking(move |storage| {
            storage.store(&probe, b"can be stored")?;
            Ok(storage.remove(&probe)?)
        })
        .await?;
        let http = AuthorityClient::new(&self.client);
        let builder = Account::builder_with_http(Box::new(http.clone()));
        let made = builder.create(&new, self.options.directory.url().to_owned(), external.as_ref()).await;
        let (account, credentials) = made.map_err(|error| failed("making an account", error, &http))?;
        tracing::info!(
            directory = self.options.directory.url(),
            account = account.id(),
            "made an ACME account"
        );
        let stored = Stored {
            directory: self.options.directory.url().to_owned(),
            contacts: self.options.contacts.clone(),
            rolling: false,
            credentials,
        };
        self.store_account(&stored).await?;
        Ok(Session { account, http })
    }

    /// A change of the key was cut short: where the authority still knows the old key all is well, and where not the
    /// account is lost. Under the lock.
    async fn settle_rolled(self: &Arc<Self>, mut stored: Stored) -> Result<Session, AcmeError> {
        let http = AuthorityClient::new(&self.client);
        let builder = Account::builder_with_http(Box::new(http.clone()));
        let pkcs8 = stored.credentials.private_key().clone_key();
        let key = instant_acme::Key::from_pkcs8_der(pkcs8.clone_key());
        let key = key.map_err(|error| failed("reading the account's key", error, &http))?;
        let found = builder.from_key((key, pkcs8.into()), self.options.directory.url().to_owned()).await;
        match found.map_err(|error| failed("looking for the account", error, &http)) {
            Ok((account, credentials)) => {
                (stored.credentials, stored.rolling) = (credentials, false);
                self.store_account(&stored).await?;
                Ok(Session { account, http })
            }
            Err(error) if error.is_problem("accountDoesNotExist") => {
                tracing::warn!(
                    "the account's key was changed and the new one not stored: a new account is made"
                );
                self.make_account().await
            }
            Err(error) => Err(error),
        }
    }

    /// Forgets an account that the authority does not know, unless another instance has made a new one by now.
    pub(crate) async fn forget_account(self: &Arc<Self>, id: &str) -> Result<(), AcmeError> {
        let key = self.account_key();
        let _lock = self.lock(key.clone()).await?;
        if let Some(stored) = self.stored_account().await?
            && account_id(&stored.credentials).as_deref() == Some(id)
        {
            tracing::warn!(
                account = id,
                "the certificate authority does not know the account: a new one is made"
            );
            self.blocking(move |storage| Ok(storage.remove(&key)?)).await?;
        }
        Ok(())
    }

    /// See [`crate::Acme::roll_key`].
    pub(crate) async fn roll_key(self: &Arc<Self>) -> Result<(), AcmeError> {
        let mut session = self.session().await?;
        let _lock = self.lock(self.account_key()).await?;
        let Some(mut stored) = self.stored_account().await? else {
            // removed by a person in between; the next order makes one, with a new key
            return Ok(());
        };
        // another instance may have died in the middle of it: then a refusal says nothing of the key that is stored
        let was_rolling = stored.rolling;
        stored.rolling = true;
        self.store_account(&stored).await?;
        match session.account.update_key().await {
            Ok(credentials) => {
                (stored.credentials, stored.rolling) = (credentials, false);
                self.store_account(&stored).await?;
                tracing::info!(account = session.account.id(), "changed the ACME account's key");
                Ok(())
            }
            Err(error) => {
                // a refusal leaves the key as it was; after anything else that is seen with the next order
                let is_refused = |problem: &instant_acme::Problem| {
                    let kind = problem.r#type.as_deref().unwrap_or_default();
                    problem.status.is_some_and(|status| (400..500).contains(&status))
                        && !kind.ends_with("serverInternal")
                };
                stored.rolling = was_rolling
                    || !matches!(&error, instant_acme::Error::Api(problem) if is_refused(problem));
                self.store_account(&stored).await?;
                Err(session.failed("changing the account's key")(error))
            }
        }
    }
}

/// The type has no other way to be had twice.
fn copy_of(credentials: &AccountCredentials, key: &str) -> Result<AccountCredentials, AcmeError> {
    let copied = serde_json::to_value(credentials).and_then(serde_json::from_value);
    copied.map_err(|source| AcmeError::Account { key: key.to_owned(), source })
}

/// The account's URL.
fn account_id(credentials: &AccountCredentials) -> Option<String> {
    let value = serde_json::to_value(credentials).ok()?;
    Some(value.get("id")?.as_str()?.to_owned())
}
