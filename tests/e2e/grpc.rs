//! gRPC through the edge: tonic's client and server, over TLS in front and h2c or TLS behind.

use std::{
    convert::Infallible,
    future::pending,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Buf, BufMut};
use futures_util::{Stream, StreamExt, stream};
use http::uri::PathAndQuery;
use hyper_util::rt::{TokioExecutor, TokioIo};
use portcullis_testkit::certs::TestCa;
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet};
use tonic::{
    Code, Request, Response, Status, Streaming,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::{Channel, Endpoint},
};
use tower::service_fn;

use crate::support::{Dir, edge::Edge, run, tls, within};

/// Messages that are text as it is.
#[derive(Clone, Copy, Default)]
struct Text;

impl Codec for Text {
    type Encode = String;
    type Decode = String;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Text {
    type Item = String;
    type Error = Status;

    fn encode(&mut self, item: String, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(item.as_bytes());
        Ok(())
    }
}

impl Decoder for Text {
    type Item = String;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<String>, Status> {
        let bytes = from.copy_to_bytes(from.remaining());
        String::from_utf8(bytes.to_vec()).map(Some).map_err(|_| Status::data_loss("no text"))
    }
}

/// What the server saw.
#[derive(Default)]
struct Seen {
    /// Calls that hang, or did.
    begun: AtomicU64,
    /// Those that were dropped before their end.
    cancelled: AtomicU64,
    /// `grpc-timeout` of the last call.
    timeout: std::sync::Mutex<Option<String>>,
}

struct OnDrop(Arc<Seen>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.cancelled.fetch_add(1, Ordering::SeqCst);
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<String, Status>> + Send>>;

async fn unary(request: Request<String>) -> Result<Response<String>, Status> {
    let seen = request.metadata().get("x-from").and_then(|from| from.to_str().ok()).unwrap_or("").to_owned();
    let text = request.into_inner();
    if text.starts_with("fail") {
        let mut status = Status::not_found("no such thing: ä");
        status.metadata_mut().insert("x-detail", "of the failure".parse().unwrap());
        return Err(status);
    }
    let mut response = Response::new(format!("you said {text}"));
    response.metadata_mut().insert("x-seen", seen.parse().unwrap());
    Ok(response)
}

async fn count(request: Request<String>) -> Result<Response<Answers>, Status> {
    let n: u32 = request.into_inner().parse().map_err(|_| Status::invalid_argument("a number"))?;
    let end = Err(Status::resource_exhausted("that was all"));
    let answers = stream::iter((0..n).map(|n| Ok(n.to_string())).chain([end]));
    Ok(Response::new(Box::pin(answers)))
}

async fn join(request: Request<Streaming<String>>) -> Result<Response<String>, Status> {
    let mut messages = request.into_inner();
    let mut all = String::new();
    while let Some(message) = messages.message().await? {
        all += &message;
    }
    Ok(Response::new(all))
}

async fn talk(request: Request<Streaming<String>>) -> Result<Response<Answers>, Status> {
    let answers = request.into_inner().map(|message| message.map(|message| format!("{message}!")));
    Ok(Response::new(Box::pin(answers)))
}

async fn serve(
    request: http::Request<hyper::body::Incoming>,
    seen: Arc<Seen>,
) -> Result<http::Response<tonic::body::Body>, Infallible> {
    let timeout = request.headers().get("grpc-timeout").and_then(|timeout| timeout.to_str().ok());
    *seen.timeout.lock().unwrap() = timeout.map(str::to_owned);
    assert_eq!(request.headers()["te"], "trailers");
    let mut grpc = tonic::server::Grpc::new(Text);
    Ok(match request.uri().path() {
        "/test.Echo/Unary" => grpc.unary(service_fn(unary), request).await,
        "/test.Echo/Count" => grpc.server_streaming(service_fn(count), request).await,
        "/test.Echo/Join" => grpc.client_streaming(service_fn(join), request).await,
        "/test.Echo/Talk" => grpc.streaming(service_fn(talk), request).await,
        _ => {
            let hang = move |_: Request<String>| {
                seen.begun.fetch_add(1, Ordering::SeqCst);
                let waiting = OnDrop(Arc::clone(&seen));
                async move {
                    let _waiting = waiting;
                    pending::<Result<Response<String>, Status>>().await
                }
            };
            grpc.unary(service_fn(hang), request).await
        }
    })
}

struct Server {
    addr: SocketAddr,
    seen: Arc<Seen>,
    _task: JoinSet<()>,
}

impl Server {
    async fn start(acceptor: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let told = Arc::clone(&seen);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut all = JoinSet::new();
            loop {
                let (io, _) = listener.accept().await.unwrap();
                let (seen, acceptor) = (Arc::clone(&told), acceptor.clone());
                all.spawn(async move {
                    let service =
                        hyper::service::service_fn(move |request| serve(request, Arc::clone(&seen)));
                    let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = match acceptor {
                        None => http.serve_connection(TokioIo::new(io), service).await,
                        Some(acceptor) => {
                            let io = acceptor.accept(io).await.unwrap();
                            http.serve_connection(TokioIo::new(io), service).await
                        }
                    };
                });
            }
        });
        Self { addr, seen, _task: task }
    }
}

async fn client(edge: &Edge) -> Grpc<Channel> {
    let addr = edge.https();
    let connect = move |_| async move {
        let io = tls::connect(addr, "localhost", &["h2"]).await;
        Ok::<_, std::io::Error>(TokioIo::new(io))
    };
    // the scheme is the connector's affair
    let channel =
        Endpoint::from_static("http://localhost").connect_with_connector(service_fn(connect)).await.unwrap();
    Grpc::new(channel)
}

fn method(name: &str) -> PathAndQuery {
    format!("/test.Echo/{name}").parse().unwrap()
}

async fn ready(client: &mut Grpc<Channel>) {
    client.ready().await.unwrap();
}

/// All that has to work, over one channel.
async fn all_of_it(client: &mut Grpc<Channel>, seen: &Seen) {
    ready(client).await;
    let mut request = Request::new("hello".to_owned());
    request.metadata_mut().insert("x-from", "me".parse().unwrap());
    let response = client.unary(request, method("Unary"), Text).await.unwrap();
    assert_eq!(response.metadata().get("x-seen").unwrap(), "me");
    assert_eq!(response.into_inner(), "you said hello");

    ready(client).await;
    let status =
        client.unary::<String, String, _>(Request::new("fail".to_owned()), method("Unary"), Text).await;
    let status = status.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "no such thing: ä"));
    assert_eq!(status.metadata().get("x-detail").unwrap(), "of the failure");

    // a status behind messages comes in trailers
    ready(client).await;
    let response =
        client.server_streaming(Request::new("300".to_owned()), method("Count"), Text).await.unwrap();
    let messages: Vec<Result<String, Status>> = response.into_inner().collect().await;
    assert_eq!(messages.len(), 301);
    assert_eq!(messages[299].as_ref().unwrap(), "299");
    assert_eq!(messages[300].as_ref().unwrap_err().code(), Code::ResourceExhausted);

    ready(client).await;
    let parts = stream::iter((0..1000).map(|n| format!("{n},")));
    let joined: Response<String> =
        client.client_streaming(Request::new(parts), method("Join"), Text).await.unwrap();
    assert_eq!(joined.into_inner(), (0..1000).map(|n| format!("{n},")).collect::<String>());

    // each answer comes before the next question is asked
    ready(client).await;
    let (say, said) = mpsc::unbounded_channel::<String>();
    let said = stream::unfold(said, |mut said| async move { Some((said.recv().await?, said)) });
    let talk = client.streaming(Request::new(said), method("Talk"), Text);
    say.send("0".to_owned()).unwrap();
    let mut answers = within(Duration::from_secs(5), "an answer", talk).await.unwrap().into_inner();
    for n in 0..20 {
        let answer: Option<String> =
            within(Duration::from_secs(5), "an answer", answers.message()).await.unwrap();
        assert_eq!(answer.as_deref(), Some(&*format!("{n}!")));
        say.send((n + 1).to_string()).unwrap();
    }
    drop(say);
    assert_eq!(answers.message().await.unwrap().as_deref(), Some("20!"));
    assert_eq!(answers.message().await.unwrap(), None);

    // a deadline is told to the server as the client set it, and the call ends at the client
    ready(client).await;
    let mut request = Request::new(String::new());
    request.set_timeout(Duration::from_millis(300));
    let call = client.unary::<String, String, _>(request, method("Hang"), Text);
    let ended = within(Duration::from_secs(5), "the deadline", call).await;
    assert!(ended.is_err());
    assert_eq!(seen.timeout.lock().unwrap().as_deref(), Some("300000u"));
    cancelled(seen, 1).await;

    // a call without one that nobody waits for any more is cancelled where it runs
    ready(client).await;
    let call = client.unary::<String, String, _>(Request::new(String::new()), method("Hang"), Text);
    let begun = async {
        while seen.begun.load(Ordering::SeqCst) < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        ended = call => panic!("the call ended by itself: {ended:?}"),
        () = within(Duration::from_secs(5), "the call to arrive", begun) => {}
    }
    assert_eq!(seen.cancelled.load(Ordering::SeqCst), 1, "not before its client went");
    assert_eq!(*seen.timeout.lock().unwrap(), None);
    cancelled(seen, 2).await;
}

/// Waits until so many calls were cancelled at the server.
async fn cancelled(seen: &Seen, count: u64) {
    let all = async {
        while seen.cancelled.load(Ordering::SeqCst) < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(Duration::from_secs(5), "the server's call to be cancelled", all).await;
}

fn config(server: &Server, more: &str) -> String {
    format!(
        "[[certificate]]\nself_signed = [\"localhost\"]\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"https\"\n\
         [[route]]\ncluster = \"app\"\n\
         [[cluster]]\nname = \"app\"\nendpoints = [\"{}\"]\nprotocol = \"http2\"\n{more}",
        server.addr
    )
}

#[test]
fn all_shapes_of_calls_with_h2c_behind() {
    run(async {
        let server = Server::start(None).await;
        let edge = Edge::run(&config(&server, "")).await;
        all_of_it(&mut client(&edge).await, &server.seen).await;
    });
}

#[test]
fn all_shapes_of_calls_with_tls_behind() {
    run(async {
        let ca = TestCa::new();
        let cert = ca.issue(&["grpc.test"]);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der()], cert.key_der())
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let server = Server::start(Some(Arc::new(tls).into())).await;
        let dir = Dir::new();
        let roots = dir.write("ca.pem", &ca.pem());
        let keys = format!("tls = true\ntls_server_name = \"grpc.test\"\ntls_ca = \"{}\"\n", roots.display());
        let edge = Edge::run_in(dir, &config(&server, &keys)).await;
        all_of_it(&mut client(&edge).await, &server.seen).await;
    });
}
