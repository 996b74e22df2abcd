use super::*;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use tower::{Service, ServiceExt};
use tower_test::mock::{self, Handle, Mock};

type Answer = Full<Bytes>;
type Backend = Handle<Request<u32>, Response<Answer>>;

type Front = Concurrency<Mock<Request<u32>, Response<Answer>>>;

fn pair(options: ConcurrencyOptions) -> (Front, Backend) {
    let (mock, handle) = mock::pair();
    (ConcurrencyLayer::new(options).layer(mock), handle)
}

type Call = tokio::task::JoinHandle<Response<PlaceBody<Answer>>>;

/// A request that is under way when this returns: it runs, waits or is refused.
async fn call(service: &Front, number: u32) -> Call {
    let mut service = service.clone();
    service.ready().await.unwrap();
    let mut future = Box::pin(service.call(Request::new(number)));
    let first = std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
    tokio::spawn(async move {
        match first {
            Poll::Ready(response) => response.unwrap(),
            Poll::Pending => future.await.unwrap(),
        }
    })
}

async fn answer(backend: &mut Backend, text: &'static str) -> u32 {
    let (request, send) = backend.next_request().await.unwrap();
    send.send_response(Response::new(Answer::from(text)));
    request.into_body()
}

#[tokio::test(start_paused = true)]
async fn a_place_is_held_until_the_body_has_ended() {
    let (service, mut backend) = pair(ConcurrencyOptions::new(1));
    let limit = service.limit.clone();
    let first = call(&service, 1).await;
    let second = call(&service, 2).await;
    assert_eq!((limit.stats().running, limit.stats().waiting), (1, 1));
    assert_eq!(answer(&mut backend, "body").await, 1);
    let first = first.await.unwrap();
    // the head is there, the body is not read: nobody else comes in
    assert_eq!((limit.stats().running, limit.stats().waiting), (1, 1));
    assert_eq!(first.into_body().collect().await.unwrap().to_bytes(), "body");
    assert_eq!(answer(&mut backend, "").await, 2);
    let second = second.await.unwrap();
    // an empty body holds nothing
    assert_eq!(limit.stats(), ConcurrencyStats { limit: 1, ..Default::default() });
    assert!(second.into_body().into_placeless().is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_is_beyond_the_queue_is_refused_at_once_and_the_rest_after_its_time() {
    let wait = Duration::from_secs(3);
    let options = ConcurrencyOptions::new(1)
        .with_queue(1)
        .with_wait(wait)
        .with_retry_after(Duration::from_millis(1500));
    let (service, mut backend) = pair(options);
    let begun = Instant::now();
    let first = call(&service, 1).await;
    let second = call(&service, 2).await;
    let third = call(&service, 3).await.await.unwrap();
    assert_eq!((third.status().as_u16(), begun.elapsed()), (503, Duration::ZERO));
    assert_eq!(third.headers()["retry-after"], "2");
    let second = second.await.unwrap();
    assert!([&third, &second].iter().all(|refusal| refusal.extensions().get::<OwnAnswer>().is_some()));
    assert_eq!((second.status().as_u16(), begun.elapsed()), (503, wait));
    assert_eq!(service.limit.stats().refused, 2);
    assert_eq!(service.limit.stats().waiting, 0);
    answer(&mut backend, "").await;
    assert_eq!(first.await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn in_the_order_in_which_they_came() {
    let (service, mut backend) = pair(ConcurrencyOptions::new(1));
    let mut calls = Vec::new();
    for number in 0..5 {
        calls.push(call(&service, number).await);
    }
    for number in 0..5 {
        assert_eq!(answer(&mut backend, "").await, number);
    }
    for call in calls {
        assert_eq!(call.await.unwrap().status(), 200);
    }
}

#[tokio::test(start_paused = true)]
async fn who_goes_away_leaves_the_queue_and_the_place() {
    let (service, mut backend) = pair(ConcurrencyOptions::new(1));
    let first = call(&service, 1).await;
    let second = call(&service, 2).await;
    second.abort();
    assert!(second.await.unwrap_err().is_cancelled());
    assert_eq!(service.limit.stats().waiting, 0);
    let third = call(&service, 3).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    // the first one's request is there still, though nobody waits for its answer
    assert_eq!(answer(&mut backend, "").await, 1);
    assert_eq!(answer(&mut backend, "").await, 3);
    assert_eq!(third.await.unwrap().status(), 200);
    assert_eq!(service.limit.stats().running, 0);
}

#[tokio::test(start_paused = true)]
async fn a_higher_limit_lets_those_in_who_wait() {
    let (service, mut backend) = pair(ConcurrencyOptions::new(1));
    let calls = [call(&service, 1).await, call(&service, 2).await, call(&service, 3).await];
    service.limit.set(ConcurrencyOptions::new(3));
    let (mut sends, mut numbers) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let (request, send) = backend.next_request().await.unwrap();
        numbers.push(request.into_body());
        sends.push(send);
    }
    assert_eq!(numbers, [1, 2, 3]);
    for send in sends {
        send.send_response(Response::new(Answer::default()));
    }
    for call in calls {
        assert_eq!(call.await.unwrap().status(), 200);
    }
}

/// A service that is slower the more it has to do, and a limit that finds out.
#[tokio::test(start_paused = true)]
async fn the_limit_follows_latency() {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };
    let running = Arc::new(AtomicU32::new(0));
    let inner = tower::service_fn({
        let running = Arc::clone(&running);
        move |_: Request<()>| {
            let running = Arc::clone(&running);
            async move {
                // ten at once take 20 ms each
                let now = running.fetch_add(1, Ordering::Relaxed) + 1;
                tokio::time::sleep(Duration::from_millis(20) * now.max(10) / 10).await;
                running.fetch_sub(1, Ordering::Relaxed);
                Ok::<_, std::convert::Infallible>(Response::new(Answer::from("x")))
            }
        }
    });
    let options = ConcurrencyOptions::new(500)
        .with_queue(10_000)
        .with_wait(Duration::from_secs(600))
        .with_adaptive(Some(AdaptiveOptions::default().with_min(2)));
    let service = ConcurrencyLayer::new(options).layer(inner);
    let limit = service.limit.clone();
    // nothing to do at first, and then far too much
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..400_u64 {
        let service = service.clone();
        clients.spawn(async move {
            tokio::time::sleep(Duration::from_millis(if client < 5 { 0 } else { 1000 })).await;
            for _ in 0..50 {
                let response = service.clone().oneshot(Request::new(())).await.unwrap();
                drop(response.into_body().collect().await);
            }
        });
    }
    tokio::time::sleep(Duration::from_secs(15)).await;
    let stats = limit.stats();
    assert!((8..=40).contains(&stats.limit), "{stats:?}");
    assert!(stats.running <= 40 && stats.waiting > 100, "{stats:?}");
}
