//! One check over one connection.

use std::{borrow::Cow, io};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Request, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    task::JoinSet,
};

use super::{Check, HttpCheck, TcpCheck, grpc};
use crate::{Address, Endpoint};

/// The most of a body that is read.
pub(super) const MAX_BODY: usize = 64 * 1024;
/// The most of a head, and of what is read ahead.
const MAX_HEAD: usize = 16 * 1024;
pub(super) const USER_AGENT: HeaderValue = HeaderValue::from_static("portcullis-health");

/// Why a check failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// It took too long, connecting included.
    #[error("no answer in time")]
    Timeout,
    /// No connection.
    #[error("no connection could be made")]
    Connect(#[source] io::Error),
    /// The connection broke.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// Not an answer in HTTP/1.1.
    #[error("no answer in HTTP/1.1")]
    Http(#[from] hyper::Error),
    /// A status that does not pass.
    #[error("status {0}")]
    Status(u16),
    /// The text is not in the body, or not in the part that is read.
    #[error("the body does not contain the text within its first 64 KiB")]
    Body,
    /// Other bytes than expected.
    #[error("other bytes than expected")]
    Bytes,
    /// Not an answer in HTTP/2.
    #[error("no answer in HTTP/2")]
    Http2(#[from] h2::Error),
    /// Not an answer of the health service.
    #[error("no answer of grpc.health.v1.Health: {0}")]
    Grpc(&'static str),
    /// A status of gRPC other than OK.
    #[error("gRPC status {0}")]
    GrpcStatus(String),
    /// The service does not serve.
    #[error("the service's state is {0}")]
    NotServing(&'static str),
    /// The check did not come to its end.
    #[error("the check panicked")]
    Panic,
}

pub(super) async fn run<Io>(check: &Check, endpoint: &Endpoint, io: Io) -> Result<(), CheckError>
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match check {
        Check::Http(check) => http(check, endpoint, io).await,
        Check::Tcp(check) => tcp(check, io).await,
        Check::Grpc(check) => grpc::run(check, endpoint, io).await,
    }
}

/// `host:port` of the endpoint, where it has such.
pub(super) fn authority(endpoint: &Endpoint) -> Cow<'_, str> {
    let name = endpoint.name();
    match (endpoint.host(), endpoint.address()) {
        (Some(host), Address::Socket(addr)) => format!("{host}:{}", addr.port()).into(),
        _ if name.parse::<http::uri::Authority>().is_ok() => name.into(),
        _ => "localhost".into(),
    }
}

async fn http<Io>(check: &HttpCheck, endpoint: &Endpoint, io: Io) -> Result<(), CheckError>
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(io)).await?;
    // ends with this function, however it ends
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    let response = sender.send_request(request(check, endpoint)).await?;
    let status = response.status().as_u16();
    if !check.statuses.iter().any(|range| range.contains(&status)) {
        return Err(CheckError::Status(status));
    }
    match &check.body_contains {
        Some(text) => find(response.into_body(), text).await,
        None => Ok(()),
    }
}

fn request(check: &HttpCheck, endpoint: &Endpoint) -> Request<Empty<Bytes>> {
    let mut request = Request::new(Empty::new());
    *request.method_mut() = if check.method == Method::HEAD { Method::HEAD } else { Method::GET };
    *request.uri_mut() = Uri::from(check.path.clone());
    let headers = request.headers_mut();
    let host = check.host.clone().or_else(|| HeaderValue::from_str(&authority(endpoint)).ok());
    // RFC 9112 section 3.2: Host comes with every request
    headers.insert(header::HOST, host.unwrap_or(HeaderValue::from_static("localhost")));
    headers.insert(header::USER_AGENT, USER_AGENT);
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    headers.extend(check.headers.clone());
    request
}

async fn find(mut body: hyper::body::Incoming, text: &[u8]) -> Result<(), CheckError> {
    let mut read = BytesMut::new();
    let mut searched = 0_usize;
    loop {
        // what begins in the part that was searched already, and ends behind it, counts too
        let from = searched.saturating_sub(text.len());
        if text.is_empty() || read[from..].windows(text.len()).any(|window| window == text) {
            return Ok(());
        }
        searched = read.len();
        if read.len() >= MAX_BODY {
            return Err(CheckError::Body);
        }
        let Some(frame) = body.frame().await.transpose()? else {
            return Err(CheckError::Body);
        };
        if let Some(data) = frame.data_ref() {
            read.extend_from_slice(&data[..data.len().min(MAX_BODY - read.len())]);
        }
    }
}

async fn tcp<Io>(check: &TcpCheck, mut io: Io) -> Result<(), CheckError>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    if !check.send.is_empty() {
        io.write_all(&check.send).await?;
        io.flush().await?;
    }
    let mut rest = &check.expect[..];
    let mut buffer = [0; 512];
    while !rest.is_empty() {
        let most = rest.len().min(buffer.len());
        let count = io.read(&mut buffer[..most]).await?;
        let (expected, behind) = rest.split_at(count);
        if count == 0 || expected != &buffer[..count] {
            return Err(CheckError::Bytes);
        }
        rest = behind;
    }
    Ok(())
}

#[cfg(test)]
#[path = "probe/tests.rs"]
mod tests;
