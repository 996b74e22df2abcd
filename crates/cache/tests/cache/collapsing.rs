//! Many requests for one thing that is not stored.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use portcullis_cache::{Cache, CacheBody, CacheBodyError, CacheLayer, CacheRules};
use tokio::sync::{mpsc, oneshot};
use tower::{Layer, Service, ServiceExt, util::BoxCloneService};

use crate::world::{FRESH, get, https};

pub(crate) type Inner = BoxCloneService<Request<Full<Bytes>>, Response<Channel>, Infallible>;
pub(crate) type Answer = oneshot::Sender<Response<Channel>>;

/// Polls a future once, with the task's own waker.
macro_rules! poll {
    ($future:expr) => {{
        let mut future = $future;
        std::future::poll_fn(|cx| Poll::Ready(Future::poll(std::pin::Pin::new(&mut future), cx))).await
    }};
}

pub(crate) use poll;

/// A body that a test feeds.
pub(crate) struct Channel {
    frames: mpsc::Receiver<Result<Bytes, &'static str>>,
}

impl Body for Channel {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        self.frames.poll_recv(cx).map(|frame| frame.map(|frame| frame.map(Frame::data)))
    }
}

/// An origin whose answers a test gives one by one.
pub(crate) struct Origin {
    pub(crate) layer: CacheLayer,
    pub(crate) cache: Cache<Inner>,
    pub(crate) requests: mpsc::UnboundedReceiver<(Request<Full<Bytes>>, Answer)>,
}

impl Origin {
    pub(crate) fn new(rules: CacheRules) -> Self {
        let (sender, requests) = mpsc::unbounded_channel();
        let inner = tower::service_fn(move |request| {
            let (answer, response) = oneshot::channel();
            sender.send((request, answer)).unwrap();
            async move {
                match response.await {
                    Ok(response) => Ok(response),
                    Err(_) => std::future::pending().await,
                }
            }
        });
        let layer = CacheLayer::new(https()).with_rules(rules);
        let cache = layer.layer(BoxCloneService::new(inner));
        Self { layer, cache, requests }
    }

    pub(crate) async fn ask(&self, fields: &[(&'static str, &str)]) -> Response<CacheBody<Channel>> {
        let mut cache = self.cache.clone();
        cache.ready().await.unwrap().call(get("/", fields)).await.unwrap()
    }

    /// The next request that came to the origin.
    pub(crate) fn came(&mut self) -> Option<Answer> {
        self.requests.try_recv().ok().map(|(_, answer)| answer)
    }

    /// The same, with its cookie.
    pub(crate) fn came_from(&mut self) -> Option<(String, Answer)> {
        let (request, answer) = self.requests.try_recv().ok()?;
        Some((request.headers()["cookie"].to_str().unwrap().to_owned(), answer))
    }
}

pub(crate) fn reply(
    status: u16,
    fields: &[(&'static str, &str)],
) -> (Response<Channel>, mpsc::Sender<Result<Bytes, &'static str>>) {
    let (sender, frames) = mpsc::channel(1000);
    let mut response = Response::new(Channel { frames });
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in fields {
        response.headers_mut().append(*name, value.parse().unwrap());
    }
    (response, sender)
}

pub(crate) fn data(text: &str) -> Result<Bytes, &'static str> {
    Ok(Bytes::from(text.to_owned()))
}

pub(crate) async fn whole(response: Response<CacheBody<Channel>>) -> Result<String, CacheBodyError> {
    let bytes = response.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8(bytes.to_vec()).unwrap())
}

async fn next(response: &mut Response<CacheBody<Channel>>) -> String {
    let data = response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
    String::from_utf8(data.to_vec()).unwrap()
}

pub(crate) fn status(response: &Response<CacheBody<Channel>>) -> String {
    // The time that a test takes may be in it.
    response.headers()["cache-status"].to_str().unwrap().replace("ttl=59", "ttl=60")
}

/// They get what came so far while the rest is on its way, each at his own pace.
#[tokio::test]
async fn the_others_read_along() {
    let mut origin = Origin::new(CacheRules::default());
    let cache = origin.cache.clone();
    let mut first = Box::pin(cache.clone().oneshot(get("/", &[])));
    let mut second = Box::pin(cache.clone().oneshot(get("/", &[("cookie", "a=1")])));
    assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
    let answer = origin.came().unwrap();
    assert!(origin.came().is_none(), "one request");
    let (response, body) = reply(200, &[("cache-control", "max-age=60"), ("x-a", "1")]);
    answer.send(response).ok().unwrap();
    let (mut first, mut second) = (first.await.unwrap(), second.await.unwrap());
    assert_eq!(status(&first), "portcullis; fwd=uri-miss; stored");
    assert_eq!(status(&second), "portcullis; fwd=uri-miss; ttl=60; collapsed");
    assert_eq!(
        (second.headers()["x-a"].to_str().unwrap(), &second.headers()["age"]),
        ("1", &"0".parse().unwrap())
    );
    body.send(data("one ")).await.unwrap();
    // The first's client is slow: it does not read.
    assert_eq!(next(&mut second).await, "one ");
    body.send(data("two ")).await.unwrap();
    let third = origin.ask(&[]).await;
    assert_eq!(status(&third), "portcullis; fwd=uri-miss; ttl=60; collapsed", "late, and gets all of it");
    assert_eq!(next(&mut second).await, "two ");
    assert_eq!(next(&mut first).await, "one ");
    drop(first);
    body.send(data("three")).await.unwrap();
    drop(body);
    assert_eq!(whole(second).await.unwrap(), "three");
    assert_eq!(whole(third).await.unwrap(), "one two three");
    assert_eq!(whole(origin.ask(&[]).await).await.unwrap(), "one two three");
    assert!(origin.came().is_none());
    let stats = origin.layer.stats();
    assert_eq!((stats.misses, stats.collapsed, stats.hits, stats.stored, stats.filling), (1, 2, 1, 1, 0));
}

#[tokio::test]
async fn a_leader_that_goes_away_makes_room_for_another() {
    let mut origin = Origin::new(CacheRules::default());
    let cache = origin.cache.clone();
    let mut leader = Box::pin(cache.clone().oneshot(get("/", &[])));
    assert!(poll!(&mut leader).is_pending());
    let mut others: Vec<_> = (0..3).map(|_| Box::pin(cache.clone().oneshot(get("/", &[])))).collect();
    for other in &mut others {
        assert!(poll!(other).is_pending());
    }
    assert!(origin.came().is_some() && origin.came().is_none());
    drop(leader);
    for other in &mut others {
        assert!(poll!(other).is_pending());
    }
    let answer = origin.came().unwrap();
    assert!(origin.came().is_none(), "one of them asks for all");
    let (response, body) = reply(200, FRESH);
    answer.send(response).ok().unwrap();
    body.send(data("x")).await.unwrap();
    drop(body);
    for response in join_all(others).await {
        assert_eq!(whole(response.unwrap()).await.unwrap(), "x");
    }
}

#[tokio::test]
async fn what_is_for_one_is_asked_for_by_each() {
    for (code, fields) in [
        (200, &[("cache-control", "private")][..]),
        (200, &[("cache-control", "no-store")]),
        (200, &[("cache-control", "max-age=60"), ("set-cookie", "id=1")]),
        (200, &[]),
        (404, &[]),
    ] {
        let mut origin = Origin::new(CacheRules::default());
        let cache = origin.cache.clone();
        let mut all: Vec<_> = (0..4).map(|_| Box::pin(cache.clone().oneshot(get("/", &[])))).collect();
        for one in &mut all {
            assert!(poll!(one).is_pending());
        }
        let answer = origin.came().unwrap();
        let (response, _body) = reply(code, fields);
        answer.send(response).ok().unwrap();
        for one in &mut all {
            let _ = poll!(one);
        }
        let answers: Vec<_> = std::iter::from_fn(|| origin.came()).collect();
        assert_eq!(answers.len(), 3, "all at once, {fields:?}");
        // From now on nobody waits.
        let mut later: Vec<_> = (0..2).map(|_| Box::pin(cache.clone().oneshot(get("/", &[])))).collect();
        for one in &mut later {
            assert!(poll!(one).is_pending());
        }
        assert_eq!(std::iter::from_fn(|| origin.came()).count(), 2, "{fields:?}");
        assert_eq!(origin.layer.stats().collapsed, 0);
    }
}

#[tokio::test]
async fn who_never_waits() {
    let off = CacheRules::default().with_collapse(false);
    for (rules, fields) in [
        (off, &[][..]),
        (CacheRules::default(), &[("authorization", "Bearer x")]),
        (CacheRules::default(), &[("if-none-match", "\"x\"")]),
    ] {
        let mut origin = Origin::new(rules);
        let cache = origin.cache.clone();
        let mut all: Vec<_> = (0..3).map(|_| Box::pin(cache.clone().oneshot(get("/", fields)))).collect();
        for one in &mut all {
            assert!(poll!(one).is_pending());
        }
        assert_eq!(std::iter::from_fn(|| origin.came()).count(), 3, "{fields:?}");
    }
}

#[tokio::test]
async fn each_variant_has_a_leader_of_its_own() {
    let mut origin = Origin::new(CacheRules::default());
    let cache = origin.cache.clone();
    let ask = |language: &str| Box::pin(cache.clone().oneshot(get("/", &[("accept-language", language)])));
    // Nobody knows yet that it varies.
    let (mut german, mut english, mut too) = (ask("de"), ask("en"), ask("DE"));
    assert!(
        poll!(&mut german).is_pending() && poll!(&mut english).is_pending() && poll!(&mut too).is_pending()
    );
    let vary = [("cache-control", "max-age=60"), ("vary", "accept-language")];
    let answer = origin.came().unwrap();
    assert!(origin.came().is_none());
    let (response, body) = reply(200, &vary);
    answer.send(response).ok().unwrap();
    body.send(data("deutsch")).await.unwrap();
    drop(body);
    let german = german.await.unwrap();
    assert!(poll!(&mut english).is_pending(), "this is not for me");
    let answer = origin.came().unwrap();
    let too = too.await.unwrap();
    assert_eq!(
        (whole(german).await.unwrap(), whole(too).await.unwrap()),
        ("deutsch".into(), "deutsch".into())
    );
    let (response, body) = reply(200, &vary);
    answer.send(response).ok().unwrap();
    body.send(data("english")).await.unwrap();
    drop(body);
    assert_eq!(whole(english.await.unwrap()).await.unwrap(), "english");
    // Now it is known: two that are not stored ask side by side.
    let (mut french, mut dutch, mut again) = (ask("fr"), ask("nl"), ask("fr"));
    assert!(
        poll!(&mut french).is_pending() && poll!(&mut dutch).is_pending() && poll!(&mut again).is_pending()
    );
    assert_eq!(std::iter::from_fn(|| origin.came()).count(), 2);
}

/// As long as the first variant is on its way nothing is stored, but what came of it tells the others apart.
#[tokio::test]
async fn a_second_variant_has_a_leader_while_the_first_streams() {
    let mut origin = Origin::new(CacheRules::default());
    let cache = origin.cache.clone();
    let ask = |language: &str| Box::pin(cache.clone().oneshot(get("/", &[("accept-language", language)])));
    let (mut german, mut english, mut too) = (ask("de"), ask("en"), ask("EN"));
    for one in [&mut german, &mut english, &mut too] {
        assert!(poll!(one).is_pending());
    }
    let fields = [("cache-control", "max-age=60"), ("vary", "accept-language")];
    let (response, held) = reply(200, &fields);
    origin.came().unwrap().send(response).ok().unwrap();
    held.send(data("deutsch")).await.unwrap();
    let german = german.await.unwrap();
    assert!(poll!(&mut english).is_pending() && poll!(&mut too).is_pending());
    // One that comes later knows nothing, and learns it at once.
    let mut late = ask("en");
    assert!(poll!(&mut late).is_pending());
    let answer = origin.came().unwrap();
    assert!(origin.came().is_none(), "one for all of them");
    let (response, body) = reply(200, &fields);
    answer.send(response).ok().unwrap();
    body.send(data("english")).await.unwrap();
    drop(body);
    for english in [english, too, late] {
        assert_eq!(whole(english.await.unwrap()).await.unwrap(), "english");
    }
    drop(held);
    assert_eq!(whole(german).await.unwrap(), "deutsch");
    assert_eq!(whole(ask("en").await.unwrap()).await.unwrap(), "english");
    assert!(origin.came().is_none());
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_slow_leader_for_ever() {
    let mut origin = Origin::new(CacheRules::default());
    let cache = origin.cache.clone();
    let mut leader = Box::pin(cache.clone().oneshot(get("/", &[])));
    assert!(poll!(&mut leader).is_pending());
    let _held = origin.came().unwrap();
    let other = tokio::spawn(cache.clone().oneshot(get("/", &[])));
    let start = tokio::time::Instant::now();
    let (_, answer) = origin.requests.recv().await.unwrap();
    assert_eq!(start.elapsed().as_secs(), 5);
    let (response, body) = reply(200, FRESH);
    answer.send(response).ok().unwrap();
    drop(body);
    assert_eq!(status(&other.await.unwrap().unwrap()), "portcullis; fwd=uri-miss; stored");
}

#[tokio::test]
async fn a_stale_response_is_validated_once_for_all() {
    let mut origin = Origin::new(CacheRules::default());
    let cache = origin.cache.clone();
    let ask = || Box::pin(cache.clone().oneshot(get("/", &[])));
    let mut first = ask();
    assert!(poll!(&mut first).is_pending());
    let fields = [("cache-control", "max-age=60"), ("etag", "\"a\""), ("age", "60")];
    let (response, body) = reply(200, &fields);
    origin.came().unwrap().send(response).ok().unwrap();
    body.send(data("body")).await.unwrap();
    drop(body);
    whole(first.await.unwrap()).await.unwrap();
    let mut all: Vec<_> = (0..5).map(|_| ask()).collect();
    for one in &mut all {
        assert!(poll!(one).is_pending());
    }
    let answer = origin.came().unwrap();
    assert!(origin.came().is_none());
    answer.send(reply(304, &fields[..2]).0).ok().unwrap();
    let all = join_all(all).await;
    let statuses: Vec<_> = all.iter().map(|response| status(response.as_ref().unwrap())).collect();
    assert_eq!(statuses[0], "portcullis; fwd=stale; fwd-status=304");
    assert!(
        statuses[1..].iter().all(|status| status == "portcullis; hit; ttl=60; collapsed"),
        "{statuses:?}"
    );
    for response in all {
        assert_eq!(whole(response.unwrap()).await.unwrap(), "body");
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_does_so_for_all_and_is_not_stored() {
    let mut origin = Origin::new(CacheRules::default());
    let cache = origin.cache.clone();
    let mut first = Box::pin(cache.clone().oneshot(get("/", &[])));
    let mut second = Box::pin(cache.clone().oneshot(get("/", &[])));
    assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
    let (response, body) = reply(200, FRESH);
    origin.came().unwrap().send(response).ok().unwrap();
    body.send(data("one")).await.unwrap();
    body.send(Err("lost")).await.unwrap();
    let (first, mut second) = (first.await.unwrap(), second.await.unwrap());
    assert_eq!(next(&mut second).await, "one");
    for error in [whole(first).await.unwrap_err(), whole(second).await.unwrap_err()] {
        let source = std::error::Error::source(&error).unwrap();
        assert_eq!(source.to_string(), "lost");
    }
    let mut again = Box::pin(cache.clone().oneshot(get("/", &[])));
    assert!(poll!(&mut again).is_pending());
    assert!(origin.came().is_some());
    let stats = origin.layer.stats();
    assert_eq!((stats.stored, stats.abandoned, stats.filling), (0, 1, 0));
}

/// Too large to be stored, and nobody knew: what all have is let go of, no more is read ahead of the slowest than a window, and who does not read is cut.
#[tokio::test(start_paused = true)]
async fn a_body_that_outgrows_the_store_is_shared_within_a_window() {
    const FRAME: usize = 10_000;
    let mut origin = Origin::new(CacheRules::default().with_max_object_bytes(50_000));
    let cache = origin.cache.clone();
    let mut first = Box::pin(cache.clone().oneshot(get("/", &[])));
    let mut second = Box::pin(cache.clone().oneshot(get("/", &[])));
    assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
    let (response, body) = reply(200, FRESH);
    origin.came().unwrap().send(response).ok().unwrap();
    let (mut slow, mut fast) = (first.await.unwrap(), second.await.unwrap());
    for _ in 0..100 {
        body.try_send(Ok(vec![b'x'; FRAME].into())).unwrap();
    }
    let mut read = 0;
    while let Poll::Ready(frame) = poll!(fast.body_mut().frame()) {
        read += frame.unwrap().unwrap().into_data().unwrap().len();
    }
    assert!((256 << 10..(256 << 10) + 2 * FRAME).contains(&read), "{read} bytes ahead");
    // The slow one goes on a little, so the fast one does too.
    let piece = slow.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(piece.len(), FRAME);
    assert!(poll!(fast.body_mut().frame()).is_ready());
    let start = tokio::time::Instant::now();
    while read < 90 * FRAME {
        read += fast.body_mut().frame().await.unwrap().unwrap().into_data().unwrap().len();
    }
    assert_eq!(start.elapsed(), Duration::from_secs(5), "and then no more");
    let error = whole(slow).await.unwrap_err();
    assert!(matches!(error, CacheBodyError::TooSlow), "{error}");
    drop(body);
    whole(fast).await.unwrap();
    assert_eq!(origin.layer.stats().stored, 0);
}

#[tokio::test]
async fn a_fetch_is_finished_for_nobody_by_choice() {
    for finish in [true, false] {
        let mut origin = Origin::new(CacheRules::default().with_finish_fetch(finish));
        let cache = origin.cache.clone();
        let mut first = Box::pin(cache.clone().oneshot(get("/", &[])));
        assert!(poll!(&mut first).is_pending());
        let (response, body) = reply(200, FRESH);
        origin.came().unwrap().send(response).ok().unwrap();
        drop(first.await.unwrap());
        if finish {
            body.send(data("body")).await.unwrap();
            let whole = whole(origin.ask(&[]).await);
            drop(body);
            assert_eq!(whole.await.unwrap(), "body");
        } else {
            assert!(body.is_closed());
        }
        assert_eq!(origin.layer.stats().stored, u64::from(finish));
    }
}

/// A thousand at once on several threads, for ten mebibytes: the origin is asked once, everybody gets every byte, and it is in memory once.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_for_one() {
    const FRAMES: usize = 640;
    const FRAME: usize = 16 << 10;
    let frame = |n: usize| vec![u8::try_from(n % 251).unwrap(); FRAME];
    let all: Arc<[u8]> = (0..FRAMES).flat_map(frame).collect();
    let asked = Arc::new(AtomicUsize::new(0));
    let inner = tower::service_fn({
        let asked = Arc::clone(&asked);
        move |_: Request<Full<Bytes>>| {
            asked.fetch_add(1, Ordering::Relaxed);
            async move {
                let (response, sender) =
                    reply(200, &[("cache-control", "max-age=60"), ("content-length", "10485760")]);
                tokio::spawn(async move {
                    for n in 0..FRAMES {
                        if sender.send(Ok(frame(n).into())).await.is_err() {
                            return;
                        }
                    }
                });
                Ok::<_, Infallible>(response)
            }
        }
    });
    let layer = CacheLayer::new(https());
    let cache = layer.layer(inner);
    let mut clients = tokio::task::JoinSet::new();
    for n in 0..1000 {
        let (cache, all) = (cache.clone(), Arc::clone(&all));
        clients.spawn(async move {
            let mut response = cache.oneshot(get("/", &[])).await.unwrap();
            let (mut at, mut held) = (0, Vec::new());
            while let Some(frame) = response.body_mut().frame().await {
                let data = frame.unwrap().into_data().unwrap();
                assert!(data == all[at..at + data.len()], "at {at}");
                at += data.len();
                // Some hold on to all that they got: it is the same memory.
                if n % 10 == 0 {
                    held.push(data);
                }
                if n % 7 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            assert_eq!(at, FRAMES * FRAME);
            held.iter().map(|data| data.as_ptr() as usize).collect::<Vec<_>>()
        });
    }
    let mut places = std::collections::HashSet::new();
    while let Some(client) = clients.join_next().await {
        places.extend(client.unwrap());
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    // Ten mebibytes in blocks of 64 KiB, in pieces of a frame: each piece is in one place for everybody.
    assert!(places.len() <= FRAMES * 2, "{} places", places.len());
    layer.run_pending();
    let stats = layer.stats();
    assert_eq!((stats.misses, stats.hits + stats.collapsed, stats.stored, stats.filling), (1, 999, 1, 0));
    assert!(stats.bytes < 11 << 20, "{stats:?}");
}
