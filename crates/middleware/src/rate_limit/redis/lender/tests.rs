//! With a store inside the test that speaks enough of the protocol.

use std::{num::NonZeroU32, sync::atomic::AtomicUsize};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::watch,
};

use super::*;
use crate::rate_limit::{
    options::RateQuota,
    store::{Bucket, RateStore, Take, Verdict},
};

/// Long enough for a busy machine; a connection is given up after four times that.
const TIMEOUT: Duration = Duration::from_millis(200);

/// Answers every question with a loan, but for the time that it is stalled.
struct Fake {
    url: String,
    stalled: watch::Sender<bool>,
    connections: Arc<AtomicUsize>,
}

impl Fake {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        let (stalled, is_stalled) = watch::channel(false);
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        let seed = Arc::new(Mutex::new(String::new()));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve(stream, Arc::clone(&seed), is_stalled.clone()));
            }
        });
        Self { url, stalled, connections }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

async fn serve(
    stream: TcpStream,
    seed: Arc<Mutex<String>>,
    mut stalled: watch::Receiver<bool>,
) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let words = words(&mut stream).await?;
        let reply = match &*words[0] {
            "SETNX" => {
                seed.lock().clone_from(&words[2]);
                ":1\r\n".to_owned()
            }
            "GET" => format!("$32\r\n{}\r\n", seed.lock()),
            "EVALSHA" => {
                stalled.wait_for(|stalled| !stalled).await.ok()?;
                "*4\r\n:1\r\n:9\r\n:0\r\n$0\r\n\r\n".to_owned()
            }
            _ => "+OK\r\n".to_owned(),
        };
        stream.write_all(reply.as_bytes()).await.ok()?;
    }
}

/// A command, which is an array of strings.
async fn words(stream: &mut BufReader<TcpStream>) -> Option<Vec<String>> {
    let count = number(stream).await?;
    let mut words = Vec::new();
    for _ in 0..count {
        let mut word = vec![0; number(stream).await? + 2];
        stream.read_exact(&mut word).await.ok()?;
        word.truncate(word.len() - 2);
        words.push(String::from_utf8(word).unwrap());
    }
    Some(words)
}

async fn number(stream: &mut BufReader<TcpStream>) -> Option<usize> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    line.get(1..)?.trim().parse().ok()
}

fn ask(store: &Borrowing<RedisLender>, key: u128) -> impl Future<Output = Verdict> + Send + use<> {
    let quota = RateQuota { each: Duration::from_secs(1), burst: NonZeroU32::new(10).unwrap() };
    let take = store.take(&Bucket::new("rule", key, store.seed(), quota), NonZeroU32::MIN);
    async move {
        match take {
            Take::Now(verdict) => verdict,
            Take::Later(later) => later.await,
        }
    }
}

/// A store that has its connection and knows the seed.
async fn connected(fake: &Fake) -> Borrowing<RedisLender> {
    let store = store(&RedisOptions::new(&*fake.url).with_timeout(TIMEOUT)).unwrap();
    tokio::time::timeout(TIMEOUT * 50, async {
        while !matches!(ask(&store, 1).await, Verdict::Allowed(_)) {
            tokio::time::sleep(TIMEOUT / 20).await;
        }
    })
    .await
    .expect("it connects");
    assert_eq!(fake.connections(), 1);
    store
}

#[tokio::test]
async fn a_stall_costs_neither_the_connection_nor_the_next_request() {
    let fake = Fake::start().await;
    let store = connected(&fake).await;
    fake.stalled.send_replace(true);
    let late = tokio::join!(ask(&store, 2), ask(&store, 3), ask(&store, 4), ask(&store, 5));
    assert_eq!(late.0, Verdict::Unavailable);
    assert_eq!((late.1, late.2, late.3), (Verdict::Unavailable, Verdict::Unavailable, Verdict::Unavailable));
    // the questions themselves fail in about the same moment
    tokio::time::sleep(TIMEOUT / 10).await;
    fake.stalled.send_replace(false);
    let next = ask(&store, 6).await;
    assert!(matches!(next, Verdict::Allowed(_)), "{next:?}");
    assert_eq!(fake.connections(), 1);
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_given_up() {
    let fake = Fake::start().await;
    let store = connected(&fake).await;
    fake.stalled.send_replace(true);
    assert_eq!(ask(&store, 2).await, Verdict::Unavailable);
    assert!(store.lender().inner.connection.lock().is_some(), "it may be late, for all that is known");
    tokio::time::timeout(TIMEOUT * 50, async {
        while store.lender().inner.connection.lock().is_some() {
            tokio::time::sleep(TIMEOUT / 20).await;
        }
    })
    .await
    .expect("nobody waits for it any more, and it is given up all the same");
    fake.stalled.send_replace(false);
    let next = ask(&store, 3).await;
    assert!(matches!(next, Verdict::Allowed(_) | Verdict::Unavailable), "{next:?}");
    assert_eq!(fake.connections(), 2, "the next question makes another");
}
