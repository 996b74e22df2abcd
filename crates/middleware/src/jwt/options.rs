//! What tokens must be.

use std::{fmt, str::FromStr, time::Duration};

use http::HeaderName;

/// How a token is signed (RFC 7518 section 3.1, RFC 8037). There is no `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the names are those of the RFCs")]
pub enum Algorithm {
    Hs256,
    Hs384,
    Hs512,
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    /// With Ed25519.
    EdDsa,
}

impl Algorithm {
    pub(super) const HMAC: [Self; 3] = [Self::Hs256, Self::Hs384, Self::Hs512];
    pub(super) const RSA: [Self; 6] =
        [Self::Rs256, Self::Rs384, Self::Rs512, Self::Ps256, Self::Ps384, Self::Ps512];
    const ALL: [Self; 12] = [
        Self::Hs256,
        Self::Hs384,
        Self::Hs512,
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::Es256,
        Self::Es384,
        Self::EdDsa,
    ];

    /// As it stands in a token.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Hs384 => "HS384",
            Self::Hs512 => "HS512",
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::EdDsa => "EdDSA",
        }
    }

    /// Whether it is by a secret that both sides have.
    pub fn is_secret(self) -> bool {
        Self::HMAC.contains(&self)
    }

    pub(super) fn known(self) -> jsonwebtoken::Algorithm {
        use jsonwebtoken::Algorithm as Known;
        match self {
            Self::Hs256 => Known::HS256,
            Self::Hs384 => Known::HS384,
            Self::Hs512 => Known::HS512,
            Self::Rs256 => Known::RS256,
            Self::Rs384 => Known::RS384,
            Self::Rs512 => Known::RS512,
            Self::Ps256 => Known::PS256,
            Self::Ps384 => Known::PS384,
            Self::Ps512 => Known::PS512,
            Self::Es256 => Known::ES256,
            Self::Es384 => Known::ES384,
            Self::EdDsa => Known::EdDSA,
        }
    }

    pub(super) fn of(known: jsonwebtoken::Algorithm) -> Option<Self> {
        Self::ALL.into_iter().find(|own| own.known() == known)
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Algorithm {
    type Err = JwtError;

    fn from_str(name: &str) -> Result<Self, JwtError> {
        Self::ALL.into_iter().find(|own| own.name() == name).ok_or(JwtError::UnknownAlgorithm)
    }
}

/// What tokens must be, and what becomes of their claims.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct JwtOptions {
    /// The algorithms that are taken. At least one; there is no default, since it is a matter of the issuer.
    pub algorithms: Vec<Algorithm>,
    /// `iss` must be one of these. Default empty: any, or none.
    pub issuers: Vec<String>,
    /// `aud` must be, or have, one of these. Default empty: a token with an audience is refused, since it is for somebody.
    pub audiences: Vec<String>,
    /// How far the clocks may differ, for `exp` and `nbf`. Default 30 s, at most 1 h.
    pub leeway: Duration,
    /// Claims that must be there, whatever they say. `exp` must always be. Default empty.
    pub required: Vec<String>,
    /// Scopes that must all be in `scope` (words) or `scp` (a list or words); else the answer is 403. Default empty.
    pub scopes: Vec<String>,
    /// A cookie that has the token where `Authorization` has none. Default `None`. Browsers send cookies with the requests of other sites too: use it with
    /// `SameSite`, or behind a check against forged requests.
    pub cookie: Option<String>,
    /// Whether `Authorization` is taken away before the request goes on. Default `false`: services often look at the token too.
    pub strip: bool,
    /// The claim that names the user. Default `sub`.
    pub user_claim: String,
    /// Claims that are told to the service behind, each in a field: text, numbers, and lists of these joined by commas. A claim that is not there, or that
    /// can't be told so, has no field. What clients send under these names, or under names much like them, is taken away. Default empty.
    pub claims: Vec<(String, HeaderName)>,
    /// What the client is told that it needs a token for. Default `restricted`. Printable ASCII.
    pub realm: String,
}

impl Default for JwtOptions {
    fn default() -> Self {
        Self {
            algorithms: Vec::new(),
            issuers: Vec::new(),
            audiences: Vec::new(),
            leeway: Duration::from_secs(30),
            required: Vec::new(),
            scopes: Vec::new(),
            cookie: None,
            strip: false,
            user_claim: "sub".to_owned(),
            claims: Vec::new(),
            realm: "restricted".to_owned(),
        }
    }
}

impl JwtOptions {
    /// Tokens that are signed by one of these.
    pub fn new(algorithms: impl IntoIterator<Item = Algorithm>) -> Self {
        Self { algorithms: algorithms.into_iter().collect(), ..Self::default() }
    }

    /// Adds to [`JwtOptions::issuers`].
    #[must_use]
    pub fn with_issuer(mut self, issuer: impl Into<String>) -> Self {
        self.issuers.push(issuer.into());
        self
    }

    /// Adds to [`JwtOptions::audiences`].
    #[must_use]
    pub fn with_audience(mut self, audience: impl Into<String>) -> Self {
        self.audiences.push(audience.into());
        self
    }

    /// Sets [`JwtOptions::leeway`].
    #[must_use]
    pub fn with_leeway(mut self, leeway: Duration) -> Self {
        self.leeway = leeway;
        self
    }

    /// Adds to [`JwtOptions::required`].
    #[must_use]
    pub fn with_required(mut self, claim: impl Into<String>) -> Self {
        self.required.push(claim.into());
        self
    }

    /// Adds to [`JwtOptions::scopes`].
    #[must_use]
    pub fn with_scope(mut self, scope: impl Into<String>) -> Self {
        self.scopes.push(scope.into());
        self
    }

    /// Sets [`JwtOptions::cookie`].
    #[must_use]
    pub fn with_cookie(mut self, cookie: Option<String>) -> Self {
        self.cookie = cookie;
        self
    }

    /// Sets [`JwtOptions::strip`].
    #[must_use]
    pub fn with_strip(mut self, strip: bool) -> Self {
        self.strip = strip;
        self
    }

    /// Sets [`JwtOptions::user_claim`].
    #[must_use]
    pub fn with_user_claim(mut self, claim: impl Into<String>) -> Self {
        self.user_claim = claim.into();
        self
    }

    /// Adds to [`JwtOptions::claims`].
    #[must_use]
    pub fn with_claim(mut self, claim: impl Into<String>, field: HeaderName) -> Self {
        self.claims.push((claim.into(), field));
        self
    }

    /// Sets [`JwtOptions::realm`].
    #[must_use]
    pub fn with_realm(mut self, realm: impl Into<String>) -> Self {
        self.realm = realm.into();
        self
    }

    /// Finds what contradicts itself.
    ///
    /// # Errors
    /// As [`JwtError`] says.
    pub fn check(&self) -> Result<(), JwtError> {
        if self.algorithms.is_empty() {
            return Err(JwtError::NoAlgorithm);
        }
        // RFC 6265 section 4.1.1: a token
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if self.cookie.as_ref().is_some_and(|name| name.is_empty() || !name.chars().all(is_token)) {
            return Err(JwtError::InvalidCookie);
        }
        Ok(())
    }
}

/// What is wrong with options.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JwtError {
    /// No algorithm is listed.
    #[error("no algorithm is listed")]
    NoAlgorithm,
    /// No algorithm has this name.
    #[error("it is no algorithm that tokens are signed by")]
    UnknownAlgorithm,
    /// A cookie has no such name.
    #[error("it is no name of a cookie")]
    InvalidCookie,
}
