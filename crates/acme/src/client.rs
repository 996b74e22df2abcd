//! HTTP to the authority: one connection for each request, bounded in time and in size. Orders are rare and their
//! requests few.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT},
};
use http_body::Body;
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, HttpClient};
use parking_lot::Mutex;
use portcullis_tls::client::{ClientOptions, Connector, Roots, client_config};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use crate::error::{BoxError, OptionsError};

/// For all of a request, from the look-up of the name to the last byte.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// For each address of a name.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A chain of certificates has some KiB.
const MAX_BODY: usize = 1 << 20;
const AGENT: &str = concat!("portcullis-acme/", env!("CARGO_PKG_VERSION"));

/// Checks that a URL is absolute and has one of these schemes.
pub(crate) fn check_url(url: &str, what: &'static str, schemes: &[&str]) -> Result<(), OptionsError> {
    let bad = |reason| OptionsError::Url { url: url.to_owned(), what, reason };
    let uri: Uri = url.parse().map_err(|_| bad("it is no URL"))?;
    let scheme = uri.scheme_str().ok_or_else(|| bad("it has no scheme, as https://"))?;
    if !schemes.contains(&scheme) {
        return Err(bad("its scheme is not allowed here: give an https URL"));
    }
    match uri.authority() {
        Some(authority) if authority.as_str().contains('@') => Err(bad("it has a user name in it")),
        Some(authority) if !authority.host().is_empty() => Ok(()),
        _ => Err(bad("it has no host")),
    }
}

/// Makes connections. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// `None` where no `https` URL is ever asked.
    tls: Option<Connector>,
}

impl Client {
    pub(crate) fn new(roots: Roots) -> Result<Self, OptionsError> {
        let options = ClientOptions::default().with_roots(roots).with_alpn([b"http/1.1".to_vec()]);
        let config = client_config(options).map_err(OptionsError::Tls)?;
        Ok(Self { tls: Some(Connector::new(config, HANDSHAKE_TIMEOUT)) })
    }

    /// For `http` URLs alone: needs no roots.
    pub(crate) fn without_tls() -> Self {
        Self { tls: None }
    }

    /// The status of a GET; an error is a text for the log.
    pub(crate) async fn status(&self, url: &str) -> Result<StatusCode, String> {
        let request = Request::get(url).body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
        let response = self.send(request).await.map_err(|error| error.to_string())?;
        Ok(response.status())
    }

    /// Sends a request and gets its response whole.
    async fn send<B>(&self, request: Request<B>) -> Result<Response<Bytes>, BoxError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let url = request.uri().to_string();
        match tokio::time::timeout(REQUEST_TIMEOUT, self.exchange(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(format!("{url}: {}", crate::error::Causes(&*error)).into()),
            Err(_) => Err(format!("{url}: no response within {} s", REQUEST_TIMEOUT.as_secs()).into()),
        }
    }

    async fn exchange<B>(&self, request: Request<B>) -> Result<Response<Bytes>, BoxError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let uri = request.uri();
        let is_tls = uri.scheme_str() == Some("https");
        let authority = uri.authority().ok_or("the URL has no host")?;
        // an IPv6 address stands in brackets
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let stream = connect(&host, port).await?;
        if is_tls {
            let tls = self.tls.as_ref().ok_or("there is no TLS for this URL")?;
            let stream = tls.connect(ServerName::try_from(host)?, stream).await?;
            talk(stream, request).await
        } else {
            talk(stream, request).await
        }
    }
}

/// To the first address that answers: one that swallows packets is not waited for as long as there is another.
async fn connect(host: &str, port: u16) -> std::io::Result<TcpStream> {
    let mut failed = None;
    for addr in tokio::net::lookup_host((host, port)).await? {
        match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(addr)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => failed = Some(error),
            Err(_) => failed = Some(std::io::ErrorKind::TimedOut.into()),
        }
    }
    Err(failed.unwrap_or_else(|| std::io::ErrorKind::NotFound.into()))
}

async fn talk<Io, B>(stream: Io, mut request: Request<B>) -> Result<Response<Bytes>, BoxError>
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let authority = request.uri().authority().ok_or("the URL has no host")?.as_str();
    let host = HeaderValue::from_str(authority)?;
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).parse()?;
    *request.uri_mut() = path;
    request.headers_mut().insert(HOST, host);
    request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(AGENT));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut exchange = pin!(async move {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, MAX_BODY).collect().await?.to_bytes();
        Ok(Response::from_parts(head, body))
    });
    // the connection is driven here and ends with this future
    tokio::select! {
        biased;
        response = &mut exchange => response,
        // what it had read before its end is still to be had
        _ = connection => exchange.await,
    }
}

/// The client as the protocol's library takes it: `https` only, and it remembers when the authority said to come
/// again. Made for each order.
#[derive(Clone, Debug)]
pub(crate) struct AuthorityClient {
    client: Client,
    retry_after: Arc<Mutex<Option<SystemTime>>>,
}

impl AuthorityClient {
    pub(crate) fn new(client: &Client) -> Self {
        Self { client: client.clone(), retry_after: Arc::default() }
    }

    /// What the last refusal said about when to come again; it is then forgotten.
    pub(crate) fn take_retry_after(&self) -> Option<SystemTime> {
        self.retry_after.lock().take()
    }

    async fn ask(self, request: Request<BodyWrapper<Bytes>>) -> Result<Response<Full<Bytes>>, BoxError> {
        let url = request.uri().to_string();
        if request.uri().scheme_str() != Some("https") {
            return Err(format!("the authority's URL {url} is not https").into());
        }
        let is_get = request.method() == Method::GET;
        let mut response = self.client.send(request).await?;
        let status = response.status();
        let told =
            response.headers().get(RETRY_AFTER).and_then(|value| retry_after(value, SystemTime::now()));
        if !status.is_success() {
            *self.retry_after.lock() = told;
            // without a problem document (RFC 7807) all that is known is the status
            let is_json = response.headers().get(CONTENT_TYPE).is_some_and(|kind| {
                kind.to_str().is_ok_and(|kind| kind.starts_with("application/") && kind.contains("json"))
            });
            if !is_json {
                return Err(format!("{url} answered {status}").into());
            }
        } else if is_get && told.is_none() {
            // RFC 9773 section 4.3.2: a client then chooses; the library takes it for an error
            let every = crate::schedule::ARI_EVERY.as_secs();
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(every));
        }
        Ok(response.map(Full::new))
    }
}

impl HttpClient for AuthorityClient {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let this = self.clone();
        Box::pin(async move {
            let response = this.ask(request).await.map_err(instant_acme::Error::Other)?;
            Ok(BytesResponse::from(response))
        })
    }
}

/// RFC 9110 section 10.2.3: seconds, or a date.
fn retry_after(value: &HeaderValue, now: SystemTime) -> Option<SystemTime> {
    let text = value.to_str().ok()?.trim();
    match text.parse::<u32>() {
        Ok(seconds) => Some(now + Duration::from_secs(seconds.into())),
        Err(_) => httpdate::parse_http_date(text).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_testkit::origin::{Answer, RawOrigin};

    #[test]
    fn urls() {
        for (url, is_good) in [
            ("https://acme.example/directory", true),
            ("https://[::1]:14000/dir", true),
            ("http://acme.example/directory", false),
            ("https://user@acme.example/", false),
            ("/directory", false),
            ("acme.example", false),
            ("", false),
        ] {
            assert_eq!(check_url(url, "a test", &["https"]).is_ok(), is_good, "{url}");
        }
    }

    #[test]
    fn when_to_come_again() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let read = |text: &'static str| {
            retry_after(&HeaderValue::from_static(text), now)
                .map(|at| at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs())
        };
        assert_eq!(read("120"), Some(1_000_000_120));
        assert_eq!(read("Sun, 09 Sep 2001 01:46:41 GMT"), Some(1_000_000_001));
        assert_eq!(read("soon"), None);
        assert_eq!(read("99999999999999"), None);
    }

    #[tokio::test]
    async fn a_status_comes_over_plain_http() {
        let origin = RawOrigin::script(vec![
            Answer::ok("yes"),
            Answer::raw("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
            Answer::Close,
        ])
        .await;
        let client = Client::new(Roots::DangerouslyAcceptAnyCertificate).unwrap();
        let url = format!("http://{}/ask?domain=a.example", origin.addr());
        assert_eq!(client.status(&url).await.unwrap(), StatusCode::OK);
        assert_eq!(client.status(&url).await.unwrap(), StatusCode::NOT_FOUND);
        assert!(client.status(&url).await.unwrap_err().contains(&url));
        let received = origin.received_text();
        assert!(received.starts_with("GET /ask?domain=a.example HTTP/1.1\r\n"), "{received}");
        assert!(received.contains(&format!("host: {}\r\n", origin.addr())), "{received}");
        assert!(received.contains("user-agent: portcullis-acme/"), "{received}");
    }

    #[tokio::test]
    async fn a_body_without_end_is_cut() {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n".to_vec();
        let origin = RawOrigin::script(vec![Answer::raw([head, vec![b'x'; 2_000_000]].concat())]).await;
        let client = Client::new(Roots::DangerouslyAcceptAnyCertificate).unwrap();
        let error = client.status(&format!("http://{}/", origin.addr())).await.unwrap_err();
        assert!(error.contains("length limit"), "{error}");
    }

    #[tokio::test]
    async fn the_protocol_is_not_spoken_in_the_clear() {
        let client = Client::new(Roots::DangerouslyAcceptAnyCertificate).unwrap();
        let request = Request::get("http://127.0.0.1:1/dir").body(BodyWrapper::default()).unwrap();
        let error = AuthorityClient::new(&client).ask(request).await.unwrap_err().to_string();
        assert!(error.contains("not https"), "{error}");
    }
}
