//! HTTP/1.1 load: a slot is a connection, and its codec runs in the slot's own task on two reused buffers.

pub(crate) mod wire;

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    io::Io,
    stats::{Failure, Outcome},
    worker::{Plan, Worker},
};
use wire::Framing;

const BUFFER: usize = 64 * 1024;

/// Sends requests on one connection, and on the next when it ends, until the run is over.
pub(crate) async fn slot(worker: Rc<Worker>) {
    let plan = Rc::new(Prepared::new(&worker.plan));
    let mut connection: Option<Connection<Io>> = None;
    let mut connected_before = false;
    while let Some(ticket) = worker.next().await {
        let reused = connection.is_some();
        let mut result = one(&worker, &plan, &mut connection).await;
        if reused && result.as_ref().is_err_and(|failure| failure.stale) {
            // an idle connection that the server closed; RFC 9112 section 9.3.1 expects a client to try again
            result = one(&worker, &plan, &mut connection).await;
        }
        if !reused && connected_before {
            worker.reconnected();
        }
        connected_before = true;
        let no_connection = result.as_ref().is_err_and(|failure| failure.kind == "connect");
        worker.finish(ticket, result);
        if no_connection {
            worker.pause().await;
        }
    }
}

async fn one(
    worker: &Worker,
    prepared: &Prepared,
    slot: &mut Option<Connection<Io>>,
) -> Result<Outcome, Failure> {
    // taken out while in use: a connection that failed is not put back
    let mut connection = match slot.take() {
        Some(connection) => connection,
        None => {
            let io = Io::connect(worker.plan.addr, worker.plan.tls.as_ref()).await;
            Connection::new(io.map_err(|error| Failure::new("connect", error))?)
        }
    };
    let (outcome, keep) = connection.exchange(&worker.plan, prepared).await?;
    connection.used += 1;
    if keep && worker.plan.per_connection.is_none_or(|most| connection.used < most) {
        *slot = Some(connection);
    }
    Ok(outcome)
}

/// The request as bytes: the head, with the body behind it when that is small.
struct Prepared {
    first: Vec<u8>,
    body_left: u64,
}

impl Prepared {
    fn new(plan: &Plan) -> Self {
        let mut first = Vec::new();
        let target = plan.uri.path_and_query().map_or("/", |target| target.as_str());
        first.extend_from_slice(format!("{} {target} HTTP/1.1\r\nhost: ", plan.method).as_bytes());
        first.extend_from_slice(plan.host.as_bytes());
        if plan.body.len > 0 {
            first.extend_from_slice(format!("\r\ncontent-length: {}", plan.body.len).as_bytes());
        }
        first.extend_from_slice(b"\r\n\r\n");
        let mut body_left = plan.body.len;
        if first.len() as u64 + body_left <= BUFFER as u64 {
            first.extend_from_slice(&plan.body.piece(body_left, BUFFER));
            body_left = 0;
        }
        Self { first, body_left }
    }
}

struct Connection<S> {
    io: S,
    buffer: Box<[u8]>,
    /// What is in the buffer and not yet used.
    start: usize,
    end: usize,
    used: u64,
}

/// How far one exchange is.
struct Progress {
    first_sent: usize,
    body_left: u64,
    sent: bool,
    head: Option<wire::Head>,
    bytes: u64,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    fn new(io: S) -> Self {
        Self { io, buffer: vec![0; BUFFER].into(), start: 0, end: 0, used: 0 }
    }

    /// One request and its response; also tells whether the connection can be used again.
    async fn exchange(&mut self, plan: &Plan, prepared: &Prepared) -> Result<(Outcome, bool), Failure> {
        let mut progress =
            Progress { first_sent: 0, body_left: prepared.body_left, sent: false, head: None, bytes: 0 };
        poll_fn(|cx| {
            // sending and receiving go on side by side: an echo of a long body needs both
            if !progress.sent {
                match self.poll_send(cx, plan, prepared, &mut progress) {
                    Poll::Ready(Ok(())) => progress.sent = true,
                    // the response may have come before the server stopped reading
                    Poll::Ready(Err(error)) => match self.poll_receive(cx, plan, &mut progress) {
                        Poll::Ready(Ok(outcome)) => return Poll::Ready(Ok((outcome, false))),
                        _ => {
                            return Poll::Ready(Err(Failure {
                                stale: self.untouched(&progress),
                                ..Failure::new("send", error)
                            }));
                        }
                    },
                    Poll::Pending => {}
                }
            }
            self.poll_receive(cx, plan, &mut progress).map_ok(|outcome| {
                let close = progress.head.is_none_or(|head| head.close);
                (outcome, progress.sent && !close && self.start == self.end)
            })
        })
        .await
    }

    fn untouched(&self, progress: &Progress) -> bool {
        progress.head.is_none() && self.start == self.end
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        plan: &Plan,
        prepared: &Prepared,
        progress: &mut Progress,
    ) -> Poll<io::Result<()>> {
        let some = |written: usize| -> io::Result<usize> {
            if written == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(written) }
        };
        while progress.first_sent < prepared.first.len() {
            let rest = &prepared.first[progress.first_sent..];
            progress.first_sent += some(ready!(Pin::new(&mut self.io).poll_write(cx, rest))?)?;
        }
        while progress.body_left > 0 {
            let piece = plan.body.piece(progress.body_left, BUFFER);
            progress.body_left -= some(ready!(Pin::new(&mut self.io).poll_write(cx, &piece))?)? as u64;
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        plan: &Plan,
        progress: &mut Progress,
    ) -> Poll<Result<Outcome, Failure>> {
        loop {
            while progress.head.is_none() {
                match wire::head(&self.buffer[self.start..self.end], &plan.method) {
                    Err(failure) => return Poll::Ready(Err(failure)),
                    Ok(None) => {
                        if ready!(self.poll_fill(cx))? == 0 {
                            let failure =
                                Failure::new("receive", "the connection was closed before the response");
                            return Poll::Ready(Err(Failure { stale: self.untouched(progress), ..failure }));
                        }
                    }
                    Ok(Some(head)) => {
                        self.start += head.len;
                        // RFC 9110 section 15.2: any number of interim responses may come first
                        if head.status >= 200 {
                            progress.head = Some(head);
                        }
                    }
                }
            }
            let Some(head) = progress.head.as_mut() else { continue };
            let outcome = |bytes| Outcome { status: head.status, bytes };
            let available = &self.buffer[self.start..self.end];
            let done = match &mut head.body {
                Framing::Length(left) => {
                    let here =
                        usize::try_from(*left).map_or(available.len(), |left| left.min(available.len()));
                    *left -= here as u64;
                    self.start += here;
                    progress.bytes += here as u64;
                    *left == 0
                }
                Framing::Chunked(chunked) => {
                    let (taken, data) = chunked.take(available)?;
                    self.start += taken;
                    progress.bytes += data;
                    chunked.is_done()
                }
                Framing::UntilClose => {
                    progress.bytes += available.len() as u64;
                    self.start = self.end;
                    false
                }
            };
            if done {
                return Poll::Ready(Ok(outcome(progress.bytes)));
            }
            let until_close = head.body == Framing::UntilClose;
            let result = outcome(progress.bytes);
            if ready!(self.poll_fill(cx))? == 0 {
                return Poll::Ready(if until_close {
                    Ok(result)
                } else {
                    Err(Failure::new(
                        "receive",
                        format_args!("the body was cut after {} bytes", result.bytes),
                    ))
                });
            }
        }
    }

    /// Reads more behind what is there; 0 is the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Failure>> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.buffer.len() {
            return Poll::Ready(Err(Failure::new("protocol", "a response head of more than 64 KiB")));
        }
        let mut buf = ReadBuf::new(&mut self.buffer[self.end..]);
        match ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf)) {
            Ok(()) => {
                let read = buf.filled().len();
                self.end += read;
                Poll::Ready(Ok(read))
            }
            Err(error) => {
                let stale = self.end == 0;
                Poll::Ready(Err(Failure { stale, ..Failure::new("receive", error) }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli::Protocol, worker::Body};
    use http::{HeaderValue, Method, Uri};
    use std::{net::SocketAddr, time::Duration};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn plan(method: Method, body: u64) -> Plan {
        Plan {
            protocol: Protocol::H1,
            addr: SocketAddr::from(([127, 0, 0, 1], 1)),
            tls: None,
            method,
            uri: Uri::from_static("http://localhost/path?query"),
            host: HeaderValue::from_static("localhost"),
            body: Body::new(body),
            streams: 1,
            per_connection: None,
            timeout: Duration::from_secs(1),
        }
    }

    /// One exchange with a server that reads everything and answers `answer`, `step` bytes at a time.
    async fn exchange(answer: &str, step: usize) -> Result<(Outcome, bool), Failure> {
        let plan = plan(Method::GET, 0);
        let prepared = Prepared::new(&plan);
        let (client, mut server) = tokio::io::duplex(1 << 16);
        let mut connection = Connection::new(client);
        let serve = async move {
            let mut request = vec![0; 1024];
            let read = server.read(&mut request).await.unwrap();
            assert!(request[..read].starts_with(b"GET /path?query HTTP/1.1\r\nhost: localhost\r\n\r\n"));
            for piece in answer.as_bytes().chunks(step) {
                server.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        tokio::join!(connection.exchange(&plan, &prepared), serve).0
    }

    #[tokio::test]
    async fn responses_in_pieces_of_any_size() {
        for (answer, bytes, keep) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", 5, true),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 3, true),
            ("HTTP/1.1 200 OK\r\n\r\nuntil the end", 13, false),
            ("HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx", 1, true),
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nxx", 2, false),
        ] {
            for step in [1, 2, 7, 1000] {
                let (outcome, kept) = exchange(answer, step).await.unwrap();
                assert_eq!(outcome, Outcome { status: 200, bytes }, "{answer} by {step}");
                assert_eq!(kept, keep, "{answer} by {step}");
            }
        }
    }

    #[tokio::test]
    async fn extra_bytes_spoil_the_connection() {
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nxxHTTP/1.1 200 OK\r\n\r\n";
        assert!(!exchange(answer, 1000).await.unwrap().1);
    }

    #[tokio::test]
    async fn cut_responses_are_failures() {
        let closed = exchange("", 1).await.unwrap_err();
        assert!(closed.stale);
        let head = exchange("HTTP/1.1 200 OK\r\n", 100).await.unwrap_err();
        assert!(!head.stale);
        let body = exchange("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel", 100).await.unwrap_err();
        assert!(body.text.contains("after 3 bytes"), "{}", body.text);
        let chunk = exchange("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel", 100).await;
        assert_eq!(chunk.unwrap_err().kind, "receive");
    }

    #[tokio::test]
    async fn a_long_body_is_sent_while_the_echo_is_read() {
        let len = 300_000;
        let plan = plan(Method::POST, len);
        let prepared = Prepared::new(&plan);
        // far less than the body in either direction
        let (client, server) = tokio::io::duplex(1 << 12);
        let mut connection = Connection::new(client);
        let (mut from, mut to) = tokio::io::split(server);
        let serve = async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(from.read_u8().await.unwrap());
            }
            to.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {len}\r\n\r\n").as_bytes())
                .await
                .unwrap();
            tokio::io::copy(&mut from.take(len), &mut to).await.unwrap();
        };
        let (outcome, kept) = tokio::join!(connection.exchange(&plan, &prepared), serve).0.unwrap();
        assert_eq!(outcome, Outcome { status: 200, bytes: len });
        assert!(kept);
    }
}
