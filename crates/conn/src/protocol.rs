//! The protocol of an extended CONNECT.

use std::sync::Arc;

/// What a client asks for by an extended CONNECT over HTTP/3: the `:protocol` pseudo-header field (RFC 9220 section 3, RFC 8441
/// section 4), `websocket` for one. Among the extensions of such a request and of no other; over HTTP/2 hyper has a type of
/// its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConnectProtocol(Arc<str>);

impl ConnectProtocol {
    /// The protocol of this name.
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// Its name, as it was received.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
