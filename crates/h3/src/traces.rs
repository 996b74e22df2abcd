//! Traces of single connections, in qlog's format.

use std::{fmt, io::Write, net::IpAddr, sync::Arc, time::Instant};

use quinn::{QlogConfig, ServerConfig};

use crate::{EndpointError, QuicOptions, transport};

/// Where a trace goes.
pub type TraceWriter = Box<dyn Write + Send + Sync>;

type Open = dyn Fn(IpAddr, &[u8]) -> Option<TraceWriter> + Send + Sync;

/// Says which connections are traced, and to where: JSON text sequences (RFC 7464) in qlog's format, with what is sent, received and lost, and how the
/// path is. They hold the client's addresses and connection ids, and no content.
///
/// A trace is written by the thread that serves, so a writer must not block for long. It bounds by itself what it takes: what it has no room for it takes
/// and forgets, since an error would be told of once for each event.
#[derive(Clone)]
pub struct Traces(Arc<Open>);

impl Traces {
    /// `open` is asked for each connection attempt that is let in, by the address that it comes from, which is not proven yet, and the connection id that the client
    /// made up for it.
    pub fn new(open: impl Fn(IpAddr, &[u8]) -> Option<TraceWriter> + Send + Sync + 'static) -> Self {
        Self(Arc::new(open))
    }

    /// A configuration for this connection alone, if it is traced.
    pub(crate) fn config(
        &self,
        incoming: &quinn::Incoming,
        server: &ServerConfig,
        options: &QuicOptions,
    ) -> Result<Option<Arc<ServerConfig>>, EndpointError> {
        let client = incoming.remote_address().ip().to_canonical();
        let Some(writer) = (self.0)(client, &incoming.orig_dst_cid()) else { return Ok(None) };
        let mut qlog = QlogConfig::default();
        qlog.writer(writer).title(Some("portcullis".to_owned())).start_time(Instant::now());
        let mut transport = transport::transport_config(options)?;
        transport.qlog_stream(qlog.into_stream());
        let mut server = server.clone();
        server.transport_config(Arc::new(transport));
        Ok(Some(Arc::new(server)))
    }
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Traces(..)")
    }
}

/// The same if they are shared.
impl PartialEq for Traces {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Traces {}
