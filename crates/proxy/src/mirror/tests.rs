use std::sync::Mutex;

use http_body_util::{BodyExt, Full};

use super::*;

type Sent = Arc<Mutex<Vec<Bytes>>>;

fn keep(sent: &Sent) -> impl FnOnce(Copy, Bytes) + use<> {
    let sent = Arc::clone(sent);
    move |copy, bytes| {
        sent.lock().unwrap().push(bytes);
        copy.answered();
    }
}

fn mirror(max_body: usize) -> Mirror {
    Mirror::new(MirrorOptions::default().with_max_body(max_body).with_max_in_flight(2))
}

type Chunk = Result<Frame<Bytes>, &'static str>;

struct Chunks(std::collections::VecDeque<Chunk>);

impl Body for Chunks {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Chunk>> {
        Poll::Ready(self.0.pop_front())
    }
}

fn chunks(chunks: &[Result<&'static str, &'static str>]) -> Chunks {
    Chunks(
        chunks
            .iter()
            .map(|chunk| chunk.map(|data| Frame::data(Bytes::from_static(data.as_bytes()))))
            .collect(),
    )
}

#[tokio::test]
async fn a_body_passes_and_its_copy_is_sent_when_it_is_over() {
    let (mirror, sent) = (mirror(6), Sent::default());
    let copy = mirror.begin(&SizeHint::new()).unwrap();
    let body = MirrorBody::new(chunks(&[Ok("abc"), Ok("def")]), copy, keep(&sent));
    assert_eq!(body.collect().await.unwrap().to_bytes(), "abcdef");
    assert_eq!(*sent.lock().unwrap(), ["abcdef"]);
    // one whose length is known, by a reader that does not ask for the end
    let body = Full::new(Bytes::from_static(b"xyz"));
    let copy = mirror.begin(&body.size_hint()).unwrap();
    let mut body = std::pin::pin!(MirrorBody::new(body, copy, keep(&sent)));
    assert!(body.frame().await.unwrap().is_ok());
    assert_eq!(sent.lock().unwrap().len(), 2);
    let stats = mirror.stats();
    assert_eq!((stats.answered, stats.failed, stats.in_flight), (2, 0, 0));
}

#[tokio::test]
async fn long_and_broken_bodies_are_not_copied() {
    let (mirror, sent) = (mirror(5), Sent::default());
    assert!(mirror.begin(&SizeHint::with_exact(6)).is_none());
    let copy = mirror.begin(&SizeHint::new()).unwrap();
    let body = MirrorBody::new(chunks(&[Ok("abc"), Ok("def")]), copy, keep(&sent));
    assert_eq!(body.collect().await.unwrap().to_bytes(), "abcdef");
    let copy = mirror.begin(&SizeHint::new()).unwrap();
    let body = MirrorBody::new(chunks(&[Ok("abc"), Err("gone")]), copy, keep(&sent));
    assert_eq!(body.collect().await.unwrap_err(), "gone");
    let copy = mirror.begin(&SizeHint::new()).unwrap();
    drop(MirrorBody::new(chunks(&[Ok("abc")]), copy, keep(&sent)));
    assert!(sent.lock().unwrap().is_empty());
    let stats = mirror.stats();
    assert_eq!((stats.too_long, stats.broken, stats.in_flight), (2, 2, 0));
}

#[test]
fn copies_in_flight_are_bounded() {
    let mirror = mirror(5);
    let (one, two) = (mirror.begin(&SizeHint::new()), mirror.begin(&SizeHint::new()));
    assert!(one.is_some() && two.is_some());
    assert!(mirror.begin(&SizeHint::new()).is_none());
    assert_eq!((mirror.stats().over_bound, mirror.stats().in_flight), (1, 2));
    drop(one);
    assert_eq!((mirror.stats().failed, mirror.stats().in_flight), (1, 1));
    assert!(mirror.begin(&SizeHint::new()).is_some());
}

#[test]
fn a_share_of_requests_is_copied() {
    let mirror = Mirror::new(MirrorOptions::default().with_percent(10));
    let copied = (0..1000).filter(|_| mirror.begin(&SizeHint::with_exact(0)).is_some()).count();
    assert_eq!(copied, 100);
}
