//! `get`: one request, and what came back.

use std::{
    error::Error,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, Uri, Version as HttpVersion, header, uri::PathAndQuery};
use http_body::{Frame, SizeHint};
use hyper_util::rt::{TokioExecutor, TokioIo};
use portcullis_h3::client::{Client, Connection};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;

use crate::{
    cli::{GetOptions, Version},
    error::chain,
    io::{Io, TlsTarget},
    target::{self, Target},
    tls,
    worker::Body,
};

type BoxError = Box<dyn Error + Send + Sync>;

/// Makes the request and prints the answer; any status counts as an answer.
pub(crate) fn run(options: GetOptions) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let timeout = options.timeout;
    let exchange = async { tokio::time::timeout(timeout, exchange(options)).await };
    match runtime.block_on(exchange) {
        Ok(done) => done.map_err(|error| error as Box<dyn Error>),
        Err(_) => Err(format!("no complete answer within {} s", timeout.as_secs_f64()).into()),
    }
}

async fn exchange(options: GetOptions) -> Result<(), BoxError> {
    let target = target::find(&options.url, &options.resolve, options.own_host)?;
    let name = || ServerName::try_from(target.host.clone());
    let config = |alpn: &[&[u8]]| tls::client_config(&options.trust, alpn, true);
    if options.version == Version::H3 {
        let (config, request) = (config(&[b"h3"])?, request(&options, HttpVersion::HTTP_3)?);
        let (client, connection) = connect_h3(&target, &config).await?;
        let shown = match connection.send(request).await {
            Ok(response) => show(&options, response).await,
            Err(error) => Err(error.into()),
        };
        // a server should not have to guess that nobody is there any more
        connection.close();
        drop(connection);
        let _ = tokio::time::timeout(Duration::from_millis(200), client.wait_idle()).await;
        return shown;
    }
    let tls = if options.url.scheme_str() == Some("https") {
        let alpn: &[&[u8]] = match options.version {
            Version::H1 => &[b"http/1.1"],
            Version::H2 => &[b"h2"],
            _ => &[b"h2", b"http/1.1"],
        };
        Some(TlsTarget { config: config(alpn)?, name: name()? })
    } else {
        None
    };
    let io = connect(&target.addresses, tls.as_ref()).await?;
    // without TLS, HTTP/2 is by prior knowledge
    let agreed = io.alpn() == Some(b"h2");
    if options.version == Version::H2 && tls.is_some() && !agreed {
        return Err("the server did not agree on h2".into());
    }
    if agreed || options.version == Version::H2 {
        let request = request(&options, HttpVersion::HTTP_2)?;
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await?;
        let _driver = Driver(tokio::spawn(connection));
        show(&options, sender.send_request(request).await?).await
    } else {
        let request = request(&options, HttpVersion::HTTP_11)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
        let _driver = Driver(tokio::spawn(connection));
        show(&options, sender.send_request(request).await?).await
    }
}

/// Ends the task that drives a connection.
struct Driver(tokio::task::JoinHandle<Result<(), hyper::Error>>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn connect_h3(target: &Target, config: &Arc<ClientConfig>) -> Result<(Client, Connection), BoxError> {
    let mut last: BoxError = "no address".into();
    for address in &target.addresses {
        let any: IpAddr =
            if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let client = Client::new((any, 0).into())?;
        match client.connect(*address, &target.host, Arc::clone(config)).await {
            Ok(connection) => return Ok((client, connection)),
            Err(error) => last = format!("{address}: {}", chain(&error)).into(),
        }
    }
    Err(last)
}

async fn connect(addresses: &[SocketAddr], tls: Option<&TlsTarget>) -> Result<Io, BoxError> {
    let mut last: BoxError = "no address".into();
    for address in addresses {
        match Io::connect(*address, tls).await {
            Ok(io) => return Ok(io),
            Err(error) => last = format!("{address}: {error}").into(),
        }
    }
    Err(last)
}

/// The request in the form that a version wants.
fn request(options: &GetOptions, version: HttpVersion) -> Result<Request<Filler>, BoxError> {
    let mut request = Request::new(Filler::new(options.data_bytes));
    *request.method_mut() = options.method.clone();
    *request.version_mut() = version;
    let authority = options.url.authority().ok_or("the URL names no host")?;
    if version == HttpVersion::HTTP_11 {
        let target = options.url.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
        *request.uri_mut() = Uri::from(target);
        request.headers_mut().insert(header::HOST, HeaderValue::from_str(authority.as_str())?);
    } else {
        *request.uri_mut() = options.url.clone();
    }
    for (name, value) in &options.headers {
        request.headers_mut().append(name, value.clone());
    }
    if options.data_bytes > 0 && options.method != Method::HEAD {
        request.headers_mut().insert(header::CONTENT_LENGTH, options.data_bytes.into());
    }
    Ok(request)
}

async fn show<B>(options: &GetOptions, response: Response<B>) -> Result<(), BoxError>
where
    B: http_body::Body<Data: AsRef<[u8]>, Error: Into<BoxError>>,
{
    let mut out = io::stdout().lock();
    let (parts, body) = response.into_parts();
    writeln!(out, "{:?} {}", parts.version, parts.status)?;
    for (name, value) in &parts.headers {
        writeln!(out, "{name}: {}", String::from_utf8_lossy(value.as_bytes()))?;
    }
    writeln!(out)?;
    let mut body = std::pin::pin!(body);
    let mut count = 0_u64;
    while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        match frame.map_err(Into::into)?.into_data() {
            Ok(data) => {
                count += data.as_ref().len() as u64;
                if !options.count {
                    out.write_all(data.as_ref())?;
                }
            }
            Err(frame) => {
                for (name, value) in frame.trailers_ref().into_iter().flatten() {
                    writeln!(out, "{name}: {}", String::from_utf8_lossy(value.as_bytes()))?;
                }
            }
        }
    }
    if options.count {
        writeln!(out, "{count} bytes")?;
    }
    out.flush()?;
    Ok(())
}

/// A request body of a given length.
#[derive(Debug)]
pub(crate) struct Filler {
    body: Body,
    left: u64,
}

impl Filler {
    pub(crate) fn new(len: u64) -> Self {
        Self { body: Body::new(len), left: len }
    }

    /// The same bytes for a run's next request; nothing is copied.
    pub(crate) fn of(body: &Body) -> Self {
        Self { body: body.clone(), left: body.len }
    }
}

impl http_body::Body for Filler {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        if this.left == 0 {
            return Poll::Ready(None);
        }
        let piece = this.body.piece(this.left, usize::MAX);
        this.left -= piece.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{self, Command};
    use http_body::Body as _;

    fn options(args: &[&str]) -> GetOptions {
        match cli::parse(std::iter::once(&"get").chain(args).map(Into::into)) {
            Ok(Command::Get(options)) => *options,
            _ => panic!("not a get"),
        }
    }

    #[test]
    fn http1_has_origin_form_and_host() {
        let options = options(&["-H", "x-a: 1", "-H", "x-a: 2", "http://localhost:8080/a?b"]);
        let request = request(&options, HttpVersion::HTTP_11).unwrap();
        assert_eq!(request.uri(), "/a?b");
        assert_eq!(request.headers()["host"], "localhost:8080");
        assert_eq!(request.headers().get_all("x-a").iter().count(), 2);
        assert!(request.body().is_end_stream());
    }

    #[test]
    fn later_versions_have_the_whole_uri() {
        let options = options(&["--data-bytes=70000", "https://localhost/a"]);
        let request = request(&options, HttpVersion::HTTP_2).unwrap();
        assert_eq!(request.uri(), "https://localhost/a");
        assert_eq!(request.method(), Method::POST);
        assert!(request.headers().get("host").is_none());
        assert_eq!(request.headers()["content-length"], "70000");
        assert_eq!(request.body().size_hint().exact(), Some(70_000));
    }
}
