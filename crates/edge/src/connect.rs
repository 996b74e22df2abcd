//! From an endpoint to the connection that carries HTTP to it: TCP or a unix socket, the header of the PROXY protocol, TLS.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use portcullis_proxy_protocol::Header;
use portcullis_tls::client::{self, Connector as TlsConnector, ServerName, TlsStream};
use portcullis_upstream::health::Check;
use portcullis_upstream::{Address, ConnectError, Connector, Destination, Stream, Transport};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tower_service::Service;

use crate::{
    PlanFault,
    plan::{ClusterPlan, ProxyHeader},
};

/// How the endpoints of one cluster are connected to.
#[derive(Clone, Debug)]
pub(crate) struct ToEndpoint {
    connector: Connector,
    /// One reference for all that is not needed on every connection.
    extra: Option<Arc<Extra>>,
}

#[derive(Debug)]
struct Extra {
    tls: Option<(TlsConnector, Option<ServerName<'static>>)>,
    proxy_header: Option<ProxyHeader>,
}

impl ToEndpoint {
    /// Reads the files that the cluster's TLS names. Blocks.
    pub(crate) fn new(plan: &ClusterPlan) -> Result<Self, PlanFault> {
        Self::with_alpn(plan, plan.alpn())
    }

    /// The same for checks, which speak what they speak.
    pub(crate) fn for_checks(plan: &ClusterPlan, check: &Check) -> Result<Self, PlanFault> {
        Self::with_alpn(plan, if matches!(check, Check::Grpc(_)) { &[b"h2"] } else { &[b"http/1.1"] })
    }

    fn with_alpn(plan: &ClusterPlan, alpn: &[&'static [u8]]) -> Result<Self, PlanFault> {
        let tls = match &plan.tls {
            None => None,
            Some(tls) => Some(tls_of(plan, tls, alpn)?),
        };
        let connector = Connector::default().with_timeout(plan.options.connect_timeout);
        let extra = (tls.is_some() || plan.proxy_header.is_some())
            .then(|| Arc::new(Extra { tls, proxy_header: plan.proxy_header }));
        Ok(Self { connector, extra })
    }

    /// Connects for a purpose of the edge's own: with a header that says so, where there is one.
    pub(crate) async fn connect(self, destination: Destination) -> Result<UpstreamIo, ConnectError> {
        let mut stream = self.connector.connect(destination.address.clone()).await?;
        let Some(extra) = self.extra else { return Ok(UpstreamIo::Plain(stream)) };
        if let Some(version) = extra.proxy_header {
            // before TLS, which is the endpoint's affair (section 2 of the specification: at the very beginning)
            stream.write_all(&proxy_header(version, &destination)?).await?;
        }
        let Some((tls, name)) = &extra.tls else { return Ok(UpstreamIo::Plain(stream)) };
        let name = match name {
            Some(name) => name.clone(),
            None => name_of(&destination)?,
        };
        match tls.connect(name, stream).await {
            Ok(stream) => Ok(UpstreamIo::Tls(Box::new(stream))),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(ConnectError::TlsTimeout),
            Err(error) => Err(ConnectError::Tls(error.into())),
        }
    }
}

fn tls_of(
    plan: &ClusterPlan,
    tls: &crate::plan::UpstreamTlsPlan,
    alpn: &[&'static [u8]],
) -> Result<(TlsConnector, Option<ServerName<'static>>), PlanFault> {
    let (config, name) = tls_config(plan, tls, alpn)?;
    Ok((TlsConnector::new(config, plan.options.tls_timeout), name))
}

/// What a client of the cluster's endpoints is configured with, and the name that they must prove if one is given. Blocks.
pub(crate) fn tls_config(
    plan: &ClusterPlan,
    tls: &crate::plan::UpstreamTlsPlan,
    alpn: &[&'static [u8]],
) -> Result<(Arc<rustls::ClientConfig>, Option<ServerName<'static>>), PlanFault> {
    let fault = |source| PlanFault::UpstreamTls { cluster: plan.name.clone(), source };
    let mut options = client::ClientOptions::default()
        .with_roots(tls.roots.load().map_err(fault)?)
        .with_versions(tls.versions)
        .with_alpn(alpn.iter().copied());
    if let Some((chain, key)) = &tls.identity {
        options = options.with_identity_files(chain, key).map_err(fault)?;
    }
    let config = client::client_config(options).map_err(fault)?;
    let name = match &tls.server_name {
        None => None,
        Some(name) => Some(
            ServerName::try_from(name.clone())
                .map_err(|_| PlanFault::UpstreamName { cluster: plan.name.clone(), name: name.clone() })?,
        ),
    };
    Ok((config, name))
}

/// The name that an endpoint must prove where none is given: its own.
pub(crate) fn name_of(destination: &Destination) -> Result<ServerName<'static>, ConnectError> {
    let named = |host: &Arc<str>| {
        ServerName::try_from(host.to_string()).map_err(|error| ConnectError::Tls(error.into()))
    };
    if let Some(host) = &destination.host {
        return named(host);
    }
    match &destination.address {
        Address::Socket(address) => Ok(ServerName::from(address.ip())),
        Address::Name { host, .. } => named(host),
        _ => Err(ConnectError::Tls("a unix socket has no name to prove: set one for the cluster".into())),
    }
}

/// The header for a client's connection, or one that says that the connection is the proxy's own (section 2.2: LOCAL).
fn proxy_header(version: ProxyHeader, destination: &Destination) -> Result<Vec<u8>, ConnectError> {
    let header = match destination.client {
        Some(client) => Header::proxy(client.peer, client.local),
        None => Header::local(),
    };
    let mut bytes = Vec::new();
    match version {
        ProxyHeader::V1 => header.encode_v1(&mut bytes),
        ProxyHeader::V2 => header.encode_v2(&mut bytes).map_err(io::Error::other)?,
    }
    Ok(bytes)
}

impl Service<Destination> for ToEndpoint {
    type Response = UpstreamIo;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<UpstreamIo, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, destination: Destination) -> Self::Future {
        Box::pin(self.clone().connect(destination))
    }
}

/// The byte stream to an endpoint.
#[derive(Debug)]
pub(crate) enum UpstreamIo {
    Plain(Stream),
    Tls(Box<TlsStream<Stream>>),
}

impl Transport for UpstreamIo {
    fn is_secure(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    fn alpn(&self) -> Option<&[u8]> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(io) => io.get_ref().1.alpn_protocol(),
        }
    }
}

macro_rules! each {
    ($self:expr, $io:ident => $call:expr) => {
        match $self {
            UpstreamIo::Plain($io) => $call,
            UpstreamIo::Tls($io) => $call,
        }
    };
}

impl AsyncRead for UpstreamIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for UpstreamIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), io => Pin::new(io).poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), io => Pin::new(io).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        each!(self, io => io.is_write_vectored())
    }
}
