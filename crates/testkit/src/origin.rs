//! An origin server on loopback that speaks raw bytes, so that a test decides every byte of an answer and sees
//! every byte of a request.

use std::{
    future::Future,
    io::{self, IoSlice},
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use pin_project_lite::pin_project;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{AbortHandle, JoinSet},
};

/// What a scripted origin does once a whole request has come.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Sends these bytes and reads the next request on the same connection.
    Reply(Bytes),
    /// Sends these bytes and closes.
    ReplyThenClose(Bytes),
    /// Sends these bytes and resets the connection (RST).
    ReplyThenReset(Bytes),
    /// Says nothing more and keeps the connection open.
    Hang,
    /// Closes without a byte.
    Close,
}

impl Answer {
    /// A `200 OK` with a body, a `Content-Length` and no other field.
    pub fn ok(body: &str) -> Self {
        Self::Reply(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into())
    }

    /// These bytes as they are; the connection stays open.
    pub fn raw(bytes: impl Into<Bytes>) -> Self {
        Self::Reply(bytes.into())
    }
}

#[derive(Debug, Default)]
struct Log {
    received: Mutex<Vec<Vec<u8>>>,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The server. It stops, and its connections are cut, when this is dropped.
#[derive(Debug)]
pub struct RawOrigin {
    addr: SocketAddr,
    log: Arc<Log>,
    connections: watch::Receiver<usize>,
    requests: watch::Receiver<usize>,
    accept: AbortHandle,
}

impl RawOrigin {
    /// Runs `handler` for every connection, each in its own task.
    pub async fn with<F, Fut>(handler: F) -> Self
    where
        F: Fn(OriginConn) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("loopback has a free port");
        let addr = listener.local_addr().expect("a bound socket has an address");
        let log = Arc::new(Log::default());
        let (count, connections) = watch::channel(0);
        let (served, requests) = watch::channel(0);
        let accept = tokio::spawn({
            let log = Arc::clone(&log);
            async move {
                let mut tasks = JoinSet::new();
                while let Ok((io, _)) = listener.accept().await {
                    let index = {
                        let mut all = log.lock();
                        all.push(Vec::new());
                        all.len() - 1
                    };
                    let (log, served) = (Arc::clone(&log), served.clone());
                    tasks.spawn(handler(OriginConn { io, index, log, served }));
                    count.send_replace(index + 1);
                }
            }
        })
        .abort_handle();
        Self { addr, log, connections, requests, accept }
    }

    /// Answers requests from a list, in the order in which they come over all connections; the last answer
    /// repeats. A request is read to the end of its `Content-Length` or `chunked` body first.
    pub async fn script(answers: Vec<Answer>) -> Self {
        assert!(!answers.is_empty(), "a script needs an answer");
        let next = Arc::new(Mutex::new(0));
        Self::with(move |conn| {
            let (answers, next) = (answers.clone(), Arc::clone(&next));
            async move {
                let take = || {
                    let mut next = next.lock().unwrap_or_else(PoisonError::into_inner);
                    let answer = answers[(*next).min(answers.len() - 1)].clone();
                    *next += 1;
                    answer
                };
                // The peer may cut the connection at any point; that ends this connection's part of the script.
                let _ = run_script(conn, take).await;
            }
        })
        .await
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What came so far, one entry per connection in the order of accepting.
    pub fn received(&self) -> Vec<Vec<u8>> {
        self.log.lock().clone()
    }

    /// What came so far over all connections, one after the other, as text.
    pub fn received_text(&self) -> String {
        String::from_utf8_lossy(&self.log.lock().concat()).into_owned()
    }

    /// How many connections were accepted.
    pub fn connections(&self) -> usize {
        *self.connections.borrow()
    }

    /// How many whole requests were read (by [`RawOrigin::script`] or [`OriginConn::read_request`]).
    pub fn requests(&self) -> usize {
        *self.requests.borrow()
    }

    /// Waits until at least this many connections were accepted.
    pub async fn wait_for_connections(&self, n: usize) {
        self.connections.clone().wait_for(|count| *count >= n).await.expect("the accept task is running");
    }

    /// Waits until at least this many whole requests were read.
    pub async fn wait_for_requests(&self, n: usize) {
        self.requests.clone().wait_for(|count| *count >= n).await.expect("the accept task is running");
    }
}

impl Drop for RawOrigin {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

async fn run_script(mut conn: OriginConn, mut take: impl FnMut() -> Answer) -> io::Result<()> {
    let mut buffer = Vec::new();
    while conn.read_request(&mut buffer).await?.is_some() {
        match take() {
            Answer::Reply(bytes) => conn.write_all(&bytes).await?,
            Answer::ReplyThenClose(bytes) => {
                conn.write_all(&bytes).await?;
                return conn.shutdown().await;
            }
            Answer::ReplyThenReset(bytes) => {
                conn.write_all(&bytes).await?;
                return conn.reset();
            }
            Answer::Hang => std::future::pending().await,
            Answer::Close => return Ok(()),
        }
    }
    Ok(())
}

pin_project! {
    /// The origin's end of a connection; what is read through it is recorded.
    #[derive(Debug)]
    pub struct OriginConn {
        #[pin]
        io: TcpStream,
        index: usize,
        log: Arc<Log>,
        served: watch::Sender<usize>,
    }
}

impl OriginConn {
    /// Which connection this is, counted from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Closes with a reset (RST) in place of an orderly end.
    pub fn reset(self) -> io::Result<()> {
        self.io.set_zero_linger()
    }

    /// Reads one whole HTTP/1.1 request, head and body, or gives `None` at the end of the connection. `buffer`
    /// keeps what came beyond it and goes into the next call.
    pub async fn read_request(&mut self, buffer: &mut Vec<u8>) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(len) = request_len(buffer) {
                let rest = buffer.split_off(len);
                self.served.send_modify(|count| *count += 1);
                return Ok(Some(std::mem::replace(buffer, rest)));
            }
            if self.read_buf(buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

/// The length of the first request in the buffer, once it is there as a whole.
fn request_len(buffer: &[u8]) -> Option<usize> {
    let head = find(buffer, b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&buffer[..head]).to_ascii_lowercase();
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name).map(str::trim));
    if field("transfer-encoding:").is_some_and(|value| value.contains("chunked")) {
        return chunked_len(&buffer[head..]).map(|body| head + body);
    }
    let body =
        field("content-length:").map_or(0, |value| value.parse().expect("a test's length is a number"));
    (buffer.len() >= head + body).then_some(head + body)
}

fn chunked_len(body: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let line_end = at + find(&body[at..], b"\r\n")?;
        let line = std::str::from_utf8(&body[at..line_end]).expect("a chunk size line is ASCII");
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).expect("a chunk size is hexadecimal");
        at = line_end + 2;
        if size == 0 {
            // No trailers, or a trailer section that ends in an empty line.
            let end = if body[at..].starts_with(b"\r\n") { 2 } else { find(&body[at..], b"\r\n\r\n")? + 4 };
            return Some(at + end);
        }
        at += size + 2;
        if at > body.len() {
            return None;
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

impl AsyncRead for OriginConn {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.project();
        let before = buf.filled().len();
        ready!(this.io.poll_read(cx, buf))?;
        this.log.lock()[*this.index].extend_from_slice(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for OriginConn {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.project().io.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.project().io.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read_reply(io: &mut TcpStream, len: usize) -> String {
        let mut got = vec![0; len];
        io.read_exact(&mut got).await.unwrap();
        String::from_utf8(got).unwrap()
    }

    #[tokio::test]
    async fn a_script_answers_in_order_and_records() {
        let first = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na";
        let origin = RawOrigin::script(vec![Answer::ok("a"), Answer::Close]).await;
        let mut io = TcpStream::connect(origin.addr()).await.unwrap();
        io.write_all(b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET /2 HTTP/1.1\r\n\r\n")
            .await
            .unwrap();
        assert_eq!(read_reply(&mut io, first.len()).await, first);
        assert_eq!(io.read(&mut [0]).await.unwrap(), 0, "the second answer is a close");
        assert_eq!((origin.connections(), origin.requests()), (1, 2));
        assert!(origin.received_text().ends_with("abcGET /2 HTTP/1.1\r\n\r\n"));
    }

    #[tokio::test]
    async fn a_closure_sees_the_connection() {
        let origin = RawOrigin::with(|mut conn| async move {
            conn.write_all(b"hi").await.unwrap();
        })
        .await;
        let mut io = TcpStream::connect(origin.addr()).await.unwrap();
        assert_eq!(read_reply(&mut io, 2).await, "hi");
        origin.wait_for_connections(1).await;
    }

    #[test]
    fn request_lengths() {
        for (bytes, want) in [
            ("GET / HTTP/1.1\r\n\r", None),
            ("GET / HTTP/1.1\r\n\r\n", Some(18)),
            ("P / H\r\ncontent-LENGTH: 2\r\n\r\nx", None),
            ("P / H\r\ncontent-LENGTH: 2\r\n\r\nxyz", Some(30)),
            ("P / H\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", None),
            ("P / H\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\nGET", Some(48)),
            ("P / H\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nx: y\r\n\r\n", Some(48)),
        ] {
            assert_eq!(request_len(bytes.as_bytes()), want, "{bytes:?}");
        }
    }
}
