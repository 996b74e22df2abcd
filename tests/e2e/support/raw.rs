//! Bytes over TCP, as no client would send them.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{SOON, within};

/// What came back.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) text: String,
    /// Whether the connection was closed; if not, nothing came for a while.
    pub(crate) closed: bool,
}

impl Answered {
    /// The statuses of all responses, in their order.
    pub(crate) fn statuses(&self) -> Vec<u16> {
        self.text
            .match_indices("HTTP/1.")
            .filter_map(|(at, _)| self.text.get(at + "HTTP/1.1 ".len()..)?.get(..3)?.parse().ok())
            .collect()
    }
}

/// Sends these bytes and reads as [`drain`] does.
pub(crate) async fn send(addr: SocketAddr, bytes: impl AsRef<[u8]>) -> Answered {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(bytes.as_ref()).await.unwrap();
    drain(&mut stream).await
}

/// Reads until the connection is closed, or was quiet for half a second after something came.
pub(crate) async fn drain(stream: &mut (impl AsyncRead + Unpin)) -> Answered {
    let mut got = Vec::new();
    let closed = loop {
        let patience = if got.is_empty() { SOON } else { Duration::from_millis(500) };
        match timeout(patience, stream.read_buf(&mut got)).await {
            // a reset closes as well
            Ok(Ok(0) | Err(_)) => break true,
            Ok(Ok(_)) => {}
            Err(_) => break false,
        }
    };
    Answered { text: String::from_utf8_lossy(&got).into_owned(), closed }
}

/// Reads to the end of a head, and no further than what comes with it.
pub(crate) async fn head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut got = Vec::new();
    while !got.windows(4).any(|window| window == b"\r\n\r\n") {
        let n = within(SOON, "a response's head", stream.read_buf(&mut got)).await.unwrap();
        assert_ne!(n, 0, "closed inside of a head: {:?}", String::from_utf8_lossy(&got));
    }
    String::from_utf8_lossy(&got).into_owned()
}

/// Waits until the other end closes.
pub(crate) async fn closed(stream: &mut (impl AsyncRead + Unpin), limit: Duration) {
    let mut scrap = [0; 4096];
    let read = async { while !matches!(stream.read(&mut scrap).await, Ok(0) | Err(_)) {} };
    within(limit, "the connection is closed", read).await;
}
