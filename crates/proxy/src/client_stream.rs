//! The client's stream behind an upgrade or a CONNECT, whoever drives its connection.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use http::{Extensions, Version};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::tunnel::BoxIo;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Stream = Pin<Box<dyn Future<Output = Result<BoxIo, BoxError>> + Send>>;

/// The client's stream, from a driver that is not hyper's (HTTP/3). Put among the extensions of a CONNECT it stands for hyper's
/// `OnUpgrade`: it is awaited once the answer that opens the tunnel is on its way, and dropped if there is none.
#[derive(Clone)]
pub struct ClientStream(Arc<Mutex<Option<Stream>>>);

impl ClientStream {
    /// A stream that is there once its future is ready.
    pub fn new<Io, E>(stream: impl Future<Output = Result<Io, E>> + Send + 'static) -> Self
    where
        Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        E: Into<BoxError>,
    {
        let stream = async { stream.await.map(|io| Box::new(io) as BoxIo).map_err(Into::into) };
        Self(Arc::new(Mutex::new(Some(Box::pin(stream)))))
    }

    fn take(&self) -> Option<Stream> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl fmt::Debug for ClientStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientStream").finish_non_exhaustive()
    }
}

/// A client's stream to come.
pub(crate) enum Downstream {
    Hyper(OnUpgrade),
    Other(ClientStream),
}

impl Downstream {
    /// Takes it from a request. `None` where the driver has none to give.
    pub(crate) fn remove(extensions: &mut Extensions) -> Option<Self> {
        let hyper = extensions.remove::<OnUpgrade>().map(Self::Hyper);
        let other = extensions.remove::<ClientStream>().map(Self::Other);
        hyper.or(other)
    }

    /// Waits until the driver hands it over.
    pub(crate) async fn wait(self) -> Result<BoxIo, BoxError> {
        match self {
            Self::Hyper(stream) => Ok(Box::new(TokioIo::new(stream.await?))),
            Self::Other(stream) => stream.take().ok_or("the client's stream was taken before")?.await,
        }
    }
}

/// What the log calls the protocol that a tunnel runs in.
pub(crate) fn over(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/1.1",
    }
}
