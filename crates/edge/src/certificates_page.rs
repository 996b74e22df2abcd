//! What the admin service tells of certificates, as JSON.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use portcullis_acme::{Acme, CertState, CertStatus};
use portcullis_telemetry::rfc3339;
use portcullis_tls::{CertStore, CertSummary};
use serde_json::{Value, json};

/// At most so many of each kind: a page for a person, not a backup.
const MOST: usize = 10_000;

/// The page as it is now. It takes some 400 bytes for each certificate.
pub(crate) fn page(store: &Arc<CertStore>, acme: Option<&Acme>) -> String {
    let served: Vec<_> = store.certificates().iter().take(MOST).map(served).collect();
    let managed: Vec<_> =
        acme.map(|acme| acme.status().iter().take(MOST).map(managed).collect()).unwrap_or_default();
    let mut text = json!({ "certificates": served, "acme": managed }).to_string();
    text.push('\n');
    text
}

fn served(certificate: &CertSummary) -> Value {
    json!({
        "names": certificate.names,
        "addresses": certificate.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "not_after": time(certificate.not_after),
        "fingerprint": certificate.fingerprint,
        "resolutions": certificate.resolutions,
    })
}

fn managed(certificate: &CertStatus) -> Value {
    let (state, until) = state(certificate.state);
    json!({
        "names": certificate.names,
        "on_demand": certificate.on_demand,
        "state": state,
        "until": until.map(time),
        "not_after": certificate.not_after.map(time),
        "next_renewal": certificate.next_renewal.map(time),
        "last_error": certificate.last_error.as_ref().map(|error| json!({
            "at": time(error.at),
            "text": error.text,
        })),
        "attempts": certificate.attempts,
        "issued": certificate.issued,
    })
}

pub(crate) fn state(state: CertState) -> (&'static str, Option<SystemTime>) {
    match state {
        CertState::Missing => ("missing", None),
        CertState::Valid => ("valid", None),
        CertState::Due => ("due", None),
        CertState::Expired => ("expired", None),
        CertState::Issuing => ("issuing", None),
        CertState::Waiting { until } => ("waiting", Some(until)),
        _ => ("other", None),
    }
}

/// To the second.
fn time(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs()))
}
