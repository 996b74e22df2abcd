//! Whether a token is valid.

use std::{collections::HashSet, time::Duration};

use jsonwebtoken::{Validation, errors::ErrorKind};
use serde_json::{Map, Value};

use super::{Algorithm, JwtOptions, KeySet};

/// Longer ones are refused unread. Fields of requests are bounded by their drivers to more than this.
const MAX_TOKEN: usize = 16 * 1024;
/// A clock that is wrong by more is to be set.
const MAX_LEEWAY: Duration = Duration::from_secs(3600);

/// Why a request is not let through.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Missing,
    Several,
    /// With words that may stand in a quoted string.
    Invalid(&'static str),
    /// The scopes that it takes.
    Scope(String),
    NoKeys,
}

const INVALID: Refusal = Refusal::Invalid("the token is not valid");

/// Checks tokens.
pub(super) struct Tokens {
    keys: KeySet,
    /// What is asked of claims, by each algorithm.
    validations: Vec<(Algorithm, Validation)>,
    /// Whether tokens may be for an audience at all.
    audience: bool,
    required: Vec<String>,
    scopes: Vec<String>,
}

impl Tokens {
    pub(super) fn new(options: &JwtOptions, keys: KeySet) -> Self {
        let validation = |algorithm: &Algorithm| {
            let mut validation = Validation::new(algorithm.known());
            validation.leeway = options.leeway.min(MAX_LEEWAY).as_secs();
            validation.validate_nbf = true;
            let mut required = vec!["exp"];
            if !options.issuers.is_empty() {
                validation.set_issuer(&options.issuers);
                required.push("iss");
            }
            if !options.audiences.is_empty() {
                validation.set_audience(&options.audiences);
                required.push("aud");
            }
            validation.required_spec_claims = required.into_iter().map(str::to_owned).collect::<HashSet<_>>();
            (*algorithm, validation)
        };
        Self {
            keys,
            validations: options.algorithms.iter().map(validation).collect(),
            audience: !options.audiences.is_empty(),
            required: options.required.clone(),
            scopes: options.scopes.clone(),
        }
    }

    /// The claims of a token that is valid.
    pub(super) fn check(&self, token: &[u8]) -> Result<Map<String, Value>, Refusal> {
        if token.len() > MAX_TOKEN {
            return Err(INVALID);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| INVALID)?;
        let algorithm = Algorithm::of(header.alg).ok_or(INVALID)?;
        let wanted = self.validations.iter().find(|(own, _)| *own == algorithm);
        let (Some((_, validation)), None) = (wanted, &header.crit) else { return Err(INVALID) };
        let keys = self.keys.load();
        if keys.is_empty() {
            self.keys.want();
            return Err(Refusal::NoKeys);
        }
        let mut why = None;
        for key in keys.candidates(header.kid.as_deref(), algorithm) {
            match jsonwebtoken::decode::<Map<String, Value>>(token, &key.key, validation) {
                Ok(token) => return self.claims(token.claims),
                // another key may have signed it
                Err(error) if matches!(error.kind(), ErrorKind::InvalidSignature) => {
                    why.get_or_insert(INVALID);
                }
                Err(error) => {
                    tracing::debug!(%error, "a token is not valid");
                    return Err(match error.kind() {
                        ErrorKind::ExpiredSignature => Refusal::Invalid("the token has expired"),
                        ErrorKind::ImmatureSignature => Refusal::Invalid("the token is not valid yet"),
                        _ => INVALID,
                    });
                }
            }
        }
        if why.is_none() && header.kid.is_some() {
            self.keys.want();
        }
        Err(INVALID)
    }

    fn claims(&self, claims: Map<String, Value>) -> Result<Map<String, Value>, Refusal> {
        // RFC 7519 section 4.1.3: it is for somebody, whatever form that has
        if !self.audience && claims.get("aud").is_some_and(|audience| !audience.is_null()) {
            return Err(INVALID);
        }
        if !self.required.iter().all(|name| claims.get(name).is_some_and(|claim| !claim.is_null())) {
            return Err(Refusal::Invalid("the token lacks a claim"));
        }
        let has = |scope: &String| {
            ["scope", "scp"].iter().any(|name| match claims.get(*name) {
                // RFC 8693 section 4.2: words
                Some(Value::String(words)) => words.split(' ').any(|word| word == scope),
                Some(Value::Array(list)) => list.iter().any(|word| word == scope.as_str()),
                _ => false,
            })
        };
        if !self.scopes.iter().all(has) {
            return Err(Refusal::Scope(self.scopes.join(" ")));
        }
        Ok(claims)
    }
}
