//! Both ends of a WebSocket, over HTTP/1.1, HTTP/2 and, from a client, HTTP/3.

use std::{
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, Method, Request, Response};
use portcullis_conn::ConnectProtocol;
use portcullis_h3::client::Connection;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::protocol::{Role, WebSocketConfig},
};

use crate::{
    config::{plain, secure},
    support::{SOON, edge::Edge, tls, within},
};

/// A stream of HTTP/2 as bytes.
pub(crate) struct H2Io {
    send: h2::SendStream<Bytes>,
    recv: h2::RecvStream,
    held: Bytes,
}

impl H2Io {
    pub(crate) fn new(send: h2::SendStream<Bytes>, recv: h2::RecvStream) -> Self {
        Self { send, recv, held: Bytes::new() }
    }
}

pub(crate) fn broken(error: h2::Error) -> std::io::Error {
    std::io::Error::other(error)
}

impl AsyncRead for H2Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        while self.held.is_empty() {
            match ready!(self.recv.poll_data(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(Ok(data)) => {
                    self.recv.flow_control().release_capacity(data.len()).map_err(broken)?;
                    self.held = data;
                }
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
        let size = self.held.len().min(buf.remaining());
        let data = self.held.split_to(size);
        buf.put_slice(&data);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for H2Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.send.reserve_capacity(bytes.len().min(16 << 10));
        while self.send.capacity() == 0 {
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Err(std::io::ErrorKind::BrokenPipe.into())),
            }
        }
        let size = self.send.capacity().min(bytes.len());
        self.send.send_data(Bytes::copy_from_slice(&bytes[..size]), false).map_err(broken)?;
        Poll::Ready(Ok(size))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        // twice is no harm
        let _ = self.send.send_data(Bytes::new(), true);
        Poll::Ready(Ok(()))
    }
}

pub(crate) type BoxIo = Box<dyn Io>;

pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

pub(crate) type Socket = WebSocketStream<BoxIo>;

pub(crate) const LARGE: usize = 16 << 20;

pub(crate) fn large() -> WebSocketConfig {
    WebSocketConfig::default().max_message_size(Some(LARGE)).max_frame_size(Some(LARGE))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Http {
    One,
    Two,
    Three,
}

/// What a connection of HTTP/2 to the edge can do.
pub(crate) struct Two {
    pub(crate) sender: h2::client::SendRequest<Bytes>,
    driver: AbortHandle,
}

impl Drop for Two {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

pub(crate) async fn connect_two(edge: SocketAddr) -> Two {
    let io = TcpStream::connect(edge).await.unwrap();
    io.set_nodelay(true).unwrap();
    let (sender, mut conn) =
        h2::client::Builder::new().initial_window_size(1 << 20).handshake::<_, Bytes>(io).await.unwrap();
    let mut pings = conn.ping_pong().unwrap();
    let driver = tokio::spawn(async move {
        let _ = conn.await;
    })
    .abort_handle();
    // its SETTINGS came before the answer
    within(SOON, "a PING's answer", pings.ping(h2::Ping::opaque())).await.unwrap();
    Two { sender, driver }
}

impl Two {
    pub(crate) async fn ask(
        &self,
        protocol: Option<&'static str>,
        uri: &str,
    ) -> (Response<h2::RecvStream>, h2::SendStream<Bytes>) {
        let mut request = Request::builder().method(Method::CONNECT).uri(uri);
        if let Some(protocol) = protocol {
            request = request.extension(h2::ext::Protocol::from_static(protocol));
        }
        let request = request.header("sec-websocket-version", "13").body(()).unwrap();
        let mut sender = self.sender.clone().ready().await.unwrap();
        let (response, send) = sender.send_request(request, false).unwrap();
        (within(SOON, "an answer", response).await.unwrap(), send)
    }
}

/// A connection of HTTP/3 to the edge.
pub(crate) async fn connect_three(edge: SocketAddr) -> Connection {
    let config = tls::config(None, &["h3"]);
    within(SOON, "a connection", Connection::connect(edge, "localhost", config)).await.unwrap()
}

/// An extended CONNECT.
pub(crate) fn ask_three(protocol: &str, path: &str) -> Request<()> {
    Request::connect(format!("https://localhost{path}"))
        .extension(ConnectProtocol::new(protocol))
        .header("sec-websocket-version", "13")
        .body(())
        .unwrap()
}

/// What has to live as long as a WebSocket: its connection.
#[allow(dead_code, reason = "it is there to be dropped")]
pub(crate) enum Below {
    One,
    Two(Two),
    Three(Connection),
}

/// The answer to an extended CONNECT has no field of an upgrade.
fn has_no_upgrade(headers: &HeaderMap) {
    for absent in
        ["connection", "upgrade", "sec-websocket-accept", "content-length", "transfer-encoding", "x-hop"]
    {
        assert!(!headers.contains_key(absent), "{absent}");
    }
}

/// A WebSocket to the edge.
pub(crate) async fn open(http: Http, edge: &Edge) -> (Socket, Below) {
    match http {
        Http::One => {
            let io: BoxIo = Box::new(TcpStream::connect(edge.http()).await.unwrap());
            let opening = tokio_tungstenite::client_async_with_config("ws://a.test/chat", io, Some(large()));
            let (socket, response) = within(SOON, "the handshake", opening).await.unwrap();
            assert_eq!(response.headers()["connection"], "upgrade");
            (socket, Below::One)
        }
        Http::Two => {
            let two = connect_two(edge.http()).await;
            let (response, send) = two.ask(Some("websocket"), "http://a.test/chat").await;
            assert_eq!(response.status(), 200);
            has_no_upgrade(response.headers());
            let io: BoxIo = Box::new(H2Io::new(send, response.into_body()));
            (WebSocketStream::from_raw_socket(io, Role::Client, Some(large())).await, Below::Two(two))
        }
        Http::Three => {
            let three = connect_three(edge.https()).await;
            let opening = three.open_tunnel(ask_three("websocket", "/chat"));
            let (response, tunnel) = within(SOON, "an answer", opening).await.unwrap();
            assert_eq!(response.status(), 200);
            has_no_upgrade(response.headers());
            let io: BoxIo = Box::new(tunnel.unwrap());
            (WebSocketStream::from_raw_socket(io, Role::Client, Some(large())).await, Below::Three(three))
        }
    }
}

/// Sends back what it gets: text and binary whole, and a close as it came.
pub(crate) async fn echo(mut socket: Socket) {
    while let Some(Ok(message)) = socket.next().await {
        if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
            return;
        }
    }
    // a stream that is dropped before the other end is done is reset, with what is still on its way
    let mut io = socket.into_inner();
    let _ = io.shutdown().await;
    let _ = io.read_to_end(&mut Vec::new()).await;
}

/// An origin that echoes in WebSockets. Cut when it is dropped.
pub(crate) struct Echo {
    pub(crate) addr: SocketAddr,
    accept: AbortHandle,
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

impl Echo {
    pub(crate) async fn start(http: Http) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let accept = tokio::spawn(async move {
            let mut all = JoinSet::new();
            while let Ok((io, _)) = listener.accept().await {
                match http {
                    Http::Three => unreachable!("no origin speaks HTTP/3 here"),
                    Http::One => all.spawn(async move {
                        let io: BoxIo = Box::new(io);
                        if let Ok(socket) =
                            tokio_tungstenite::accept_async_with_config(io, Some(large())).await
                        {
                            echo(socket).await;
                        }
                    }),
                    Http::Two => all.spawn(serve_two(io)),
                };
            }
        })
        .abort_handle();
        Self { addr, accept }
    }

    pub(crate) fn config(&self, downstream: Http, http: Http) -> String {
        let listener = if downstream == Http::Three { secure(self.addr) } else { plain(self.addr) };
        let protocol = if http == Http::Two { "protocol = \"http2\"\n" } else { "" };
        format!("{listener}{protocol}")
    }
}

pub(crate) async fn serve_two(io: TcpStream) {
    let mut builder = h2::server::Builder::new();
    let mut conn = builder
        .enable_connect_protocol()
        .initial_window_size(1 << 20)
        .handshake::<_, Bytes>(io)
        .await
        .unwrap();
    let mut all = JoinSet::new();
    while let Some(Ok((request, mut respond))) = conn.accept().await {
        assert_eq!(request.extensions().get::<h2::ext::Protocol>().unwrap().as_str(), "websocket");
        for absent in ["connection", "upgrade", "sec-websocket-key"] {
            assert!(!request.headers().contains_key(absent), "{absent}");
        }
        all.spawn(async move {
            let response = Response::builder().header("x-origin", "two").body(()).unwrap();
            let send = respond.send_response(response, false).unwrap();
            let io: BoxIo = Box::new(H2Io::new(send, request.into_body()));
            echo(WebSocketStream::from_raw_socket(io, Role::Server, Some(large())).await).await;
        });
    }
}
