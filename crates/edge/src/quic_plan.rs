//! What all QUIC endpoints of an edge have in common, and the files it is read from.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use portcullis_h3::{CidError, CidKey, ConnectionIds, QuicKeyError, QuicKeys, RoutableIds};
use tracing::warn;

use crate::plan::{ListenerMode, Plan, QlogPlan};

/// More than a file of keys ever has.
const MAX_FILE: u64 = 64 * 1024;

/// What all QUIC endpoints of an edge have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuicPlan {
    /// Connection ids by which a load balancer finds this instance. `None` (the default): they name the worker alone.
    pub ids: Option<RoutableIdsPlan>,
    /// A file with the secrets of address tokens and stateless resets, for instances that share them; see [`QuicKeys`]. It is followed. `None` (the default):
    /// secrets that nobody else has.
    pub keys: Option<PathBuf>,
    /// Whose connections are traced. `None` (the default): nobody's.
    pub qlog: Option<QlogPlan>,
    /// The number that this process gives its ids, default 0. Of two processes that share a port each knows by it whose a packet is.
    pub generation: u8,
}

/// Connection ids for a load balancer; see [`RoutableIds`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RoutableIdsPlan {
    /// All but the key.
    pub ids: RoutableIds,
    /// A file with the key: 32 hexadecimal digits. `None` (the default): whoever sees an id can read which instance it belongs to.
    pub key: Option<PathBuf>,
}

impl RoutableIdsPlan {
    /// Ids without a key.
    pub fn new(ids: RoutableIds) -> Self {
        Self { ids, key: None }
    }

    /// Reads the key's file, and makes the ids.
    ///
    /// # Errors
    ///
    /// [`QuicFileError`]: what keeps the file from being read or used, or what no id can be made of.
    pub fn load(&self) -> Result<ConnectionIds, QuicFileError> {
        let key = self.key.as_deref().map(read_key).transpose()?;
        ConnectionIds::routable(self.ids.clone().with_key(key)).map_err(QuicFileError::Ids)
    }
}

/// Why QUIC can't have what its plan names.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuicFileError {
    /// A file could not be read.
    #[error("cannot read {}: make it a file that only this server's user can read", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The directory of traces could not be read.
    #[error("cannot use {} for traces: make it a directory that this server's user can write to", path.display())]
    Qlog {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What the file holds is no key.
    #[error("{} is no key of connection ids: it wants 32 hexadecimal digits; make one with `openssl rand -hex 16`", .0.display())]
    CidKey(PathBuf),
    /// What the file holds are no secrets.
    #[error("{} can not be used", path.display())]
    Keys {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        source: QuicKeyError,
    },
    /// There can be no such connection ids.
    #[error("no connection id can be made like this")]
    Ids(#[source] CidError),
}

/// The key of encrypted connection ids, from a file with its 32 hexadecimal digits.
///
/// # Errors
///
/// What keeps the file from being read, or that there is no key in it.
pub fn read_key(path: &Path) -> Result<CidKey, QuicFileError> {
    let text = read_secret(path)?;
    let key = hex(text.trim()).and_then(|bytes| bytes.try_into().ok());
    key.map(CidKey::new).ok_or_else(|| QuicFileError::CidKey(path.to_owned()))
}

/// The bytes that hexadecimal digits stand for.
pub fn hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(16)).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2))?;
    Some(digits.chunks_exact(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect())
}

/// A file that nobody else should read, which is told if somebody else can.
fn read_secret(path: &Path) -> Result<String, QuicFileError> {
    let failed = |source| QuicFileError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            warn!(
                path = %path.display(),
                mode = format!("{mode:03o}"),
                "other users can read these keys: take that from them by `chmod 600`, and make new keys"
            );
        }
    }
    let mut text = String::new();
    file.take(MAX_FILE).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

/// Shared secrets, and the file that they are read from.
pub(crate) type KeysOfFile = (QuicKeys, PathBuf);

/// Gives all listeners with HTTP/3 the ids and secrets of the plan, and has packets steered by the ids.
pub(crate) fn settle(plan: &mut Plan) -> Result<Option<KeysOfFile>, QuicFileError> {
    let is_quic = |mode: &ListenerMode| matches!(mode, ListenerMode::Https { http3: true, .. });
    if !plan.listeners.iter().any(|listener| is_quic(&listener.mode)) {
        return Ok(None);
    }
    let routable = plan.quic.ids.as_ref().map(RoutableIdsPlan::load).transpose()?;
    let keys = match &plan.quic.keys {
        None => None,
        Some(path) => {
            let keys = QuicKeys::from_text(&read_secret(path)?);
            let keys = keys.map_err(|source| QuicFileError::Keys { path: path.clone(), source })?;
            Some((keys, path.clone()))
        }
    };
    let traces = match &plan.quic.qlog {
        None => None,
        Some(qlog) => {
            let failed = |source| QuicFileError::Qlog { path: qlog.directory.clone(), source };
            Some(qlog.load().map_err(failed)?)
        }
    };
    for listener in &mut plan.listeners {
        // clones: listeners share the nonces
        let ids = routable.clone().unwrap_or_else(|| listener.quic.connection_ids.clone());
        let ids = ids.with_generation(plan.quic.generation);
        // an id has at most 20 bytes
        let worker_byte = u8::try_from(ids.worker_byte()).ok();
        listener.udp.steer_by_cid_byte = listener.udp.steer_by_cid_byte.and(worker_byte);
        listener.quic.connection_ids = ids;
        if traces.is_some() {
            listener.quic.traces.clone_from(&traces);
        }
        if let Some((keys, _)) = &keys {
            listener.quic.keys = Some(keys.clone());
        }
    }
    Ok(keys)
}

/// Reads the secrets again; whether they are others.
pub(crate) fn reload_keys(keys: &QuicKeys, path: &Path) -> Result<bool, QuicFileError> {
    let text = read_secret(path)?;
    keys.replace(&text).map_err(|source| QuicFileError::Keys { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_digits() {
        for (text, wanted) in [
            ("", Some(vec![])),
            ("00fF1a", Some(vec![0, 255, 26])),
            ("0", None),
            ("0g", None),
            ("+1", None),
            ("é", None),
        ] {
            assert_eq!(hex(text), wanted, "{text}");
        }
    }
}
