use std::time::SystemTime;

use http::{HeaderValue, StatusCode};
use parking_lot::Mutex;

use super::*;
use crate::{
    meta::{Asked, Times, judge},
    purge::{Purge, Reach},
    rules::CacheRules,
};

type Once = Box<dyn FnOnce(&Shared) + Send>;

/// Runs once, the next time that a list has been made and is not stored yet.
#[derive(Default)]
pub(crate) struct Meanwhile(Mutex<Option<Once>>);

impl Meanwhile {
    fn set(&self, what: impl FnOnce(&Shared) + Send + 'static) {
        *self.0.lock() = Some(Box::new(what));
    }

    pub(super) fn run(&self, shared: &Shared) {
        let what = self.0.lock().take();
        if let Some(what) = what {
            what(shared);
        }
    }
}

fn request(x: &str) -> HeaderMap {
    [("x".parse().unwrap(), HeaderValue::from_str(x).unwrap())].into_iter().collect()
}

/// A response that varies by `x`.
fn stored(x: &str, tag: &'static str, len: u64) -> Arc<Stored> {
    let fields = [("cache-control", "max-age=60"), ("vary", "x"), ("cache-tag", tag)];
    let fields = fields.map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
    let now = Instant::now();
    let times = Times { asked: now, received: now, wall: SystemTime::now() };
    let asked = Asked { fields: request(x), authorized: false };
    let headers = fields.into_iter().collect();
    let meta = judge(&asked, StatusCode::OK, &headers, times, &CacheRules::default()).unwrap();
    Arc::new(Stored::new(meta, StoredBody { len, ..StoredBody::default() }, Duration::ZERO))
}

fn key() -> Key {
    b"https://a:443/"[..].into()
}

fn insert(shared: &Shared, x: &str, tag: &'static str, len: u64) -> Arc<Stored> {
    let stored = stored(x, tag, len);
    assert!(shared.insert(&key(), shared.ticket(&key()), &stored));
    stored
}

fn has(shared: &Shared, x: &str) -> bool {
    shared.get(&key()).is_some_and(|variants| select(&variants, &request(x)).is_some())
}

/// A purge that comes while another variant is being stored is not undone by it.
#[test]
fn what_is_purged_is_not_put_back_by_an_insertion() {
    for (how, is_left) in [(Purge::Hard, false), (Purge::Soft, true)] {
        let shared = Shared::new(CacheOptions::default(), None);
        insert(&shared, "1", "t", 0);
        shared.meanwhile.set(move |shared| assert_eq!(shared.purge(&Reach::Tag("t".into()), how), 1));
        insert(&shared, "2", "u", 0);
        assert!(has(&shared, "2"), "{how:?}");
        assert_eq!(has(&shared, "1"), is_left, "{how:?}");
        let variants = shared.get(&key()).unwrap();
        let marked = variants.iter().filter(|stored| stored.is_outdated()).count();
        assert_eq!((variants.len(), marked), (2, 1), "{how:?}");
        // The next list is made without it.
        insert(&shared, "3", "u", 0);
        assert_eq!(shared.get(&key()).unwrap().len(), if is_left { 3 } else { 2 }, "{how:?}");
    }
}

/// Neither is one by the end of a variant, and neither is an invalidation.
#[test]
fn what_is_forgotten_is_not_put_back_with_the_rest() {
    for forget in [
        |shared: &Shared| assert!(shared.forget(&key())),
        |shared: &Shared| assert_eq!(shared.purge(&Reach::All, Purge::Hard), 1),
        |shared: &Shared| assert!(shared.forget_invalid(&key())),
    ] {
        let shared = Shared::new(CacheOptions::default(), None);
        insert(&shared, "1", "t", 0);
        let second = insert(&shared, "2", "t", 0);
        shared.meanwhile.set(forget);
        shared.forget_variant(&key(), &second);
        assert!(!has(&shared, "1") && !has(&shared, "2"));
        insert(&shared, "1", "t", 0);
        assert!(has(&shared, "1"));
    }
}

/// Nor is what memory drops meanwhile, which a purge does not find.
#[test]
fn what_no_purge_found_is_not_put_back() {
    let purges: [fn(&Shared); 2] = [
        |shared| assert_eq!(shared.purge(&Reach::Tag("t".into()), Purge::Hard), 0),
        |shared| shared.generations.pass(&key()),
    ];
    for (n, purge) in purges.into_iter().enumerate() {
        let shared = Shared::new(CacheOptions::default(), None);
        insert(&shared, "1", "t", 0);
        let second = insert(&shared, "2", "u", 0);
        shared.meanwhile.set(move |shared| {
            shared.cache.invalidate(&*key());
            purge(shared);
        });
        if n == 0 {
            insert(&shared, "3", "u", 0);
            assert!(has(&shared, "2") && has(&shared, "3"));
        } else {
            shared.forget_variant(&key(), &second);
        }
        assert!(!has(&shared, "1"), "{n}");
    }
}

/// The weight of a key is a number of 32 bits, and the bound is that of all keys: what does not fit goes, the oldest first.
#[test]
fn variants_fit_into_the_weight_of_a_key() {
    const GIB: u64 = 1 << 30;
    for (max_bytes, len, fit) in
        [(64 * GIB, GIB, 3), (64 * GIB, 16, 16), (1 << 20, 300 << 10, 3), (1 << 20, 900 << 10, 1)]
    {
        let shared = Shared::new(CacheOptions::default().with_max_bytes(max_bytes), None);
        for n in 0..16 {
            insert(&shared, &n.to_string(), "t", len);
            shared.run_pending();
        }
        let variants = shared.get(&key()).unwrap();
        assert_eq!(variants.len(), fit, "{max_bytes} {len}");
        assert!(u64::from(weight(&key(), &variants)) > len * fit as u64);
        assert!((16 - fit..16).all(|n| has(&shared, &n.to_string())), "{max_bytes} {len}");
    }
}

/// Of two responses to one request the one that was asked for later stays, whichever comes first; others have their own.
#[test]
fn what_was_asked_for_before_does_not_take_the_place() {
    let shared = Shared::new(CacheOptions::default(), None);
    let before = shared.ticket(&key());
    let newer = insert(&shared, "1", "new", 0);
    let old = stored("1", "old", 0);
    assert!(!shared.insert(&key(), before, &old));
    assert!(shared.insert(&key(), before, &stored("2", "old", 0)), "another selection");
    let variants = shared.get(&key()).unwrap();
    assert!(variants.len() == 2 && variants.iter().any(|stored| Arc::ptr_eq(stored, &newer)));
    // With other selectors it would take the place of all.
    let mut other = stored("1", "old", 0);
    Arc::get_mut(&mut other).unwrap().meta.selectors = Box::default();
    assert!(!shared.insert(&key(), before, &other));
    // What is forgotten keeps nobody out.
    newer.leave();
    assert!(shared.insert(&key(), before, &stored("1", "old", 0)));
    assert!(shared.insert(&key(), shared.ticket(&key()), &stored("1", "new", 0)));
}

/// A body is as old as the request for it, also after it was found right.
#[test]
fn a_refreshed_body_does_not_take_the_place_of_a_newer_one() {
    let shared = Shared::new(CacheOptions::default(), None);
    let old = insert(&shared, "1", "old", 0);
    let slow = shared.ticket(&key());
    let ticket = shared.ticket(&key());
    assert!(shared.refresh(&key(), ticket, &stored("1", "old", 0), &old));
    assert!(
        !shared.insert(&key(), slow, &stored("1", "old", 0)),
        "it was found right after that was asked for"
    );
    // One that was asked for before the validation may be of after it.
    let (old, slow) = (insert(&shared, "1", "old", 0), shared.ticket(&key()));
    let ticket = shared.ticket(&key());
    assert!(shared.insert(&key(), slow, &stored("1", "new", 0)));
    assert!(!shared.refresh(&key(), ticket, &stored("1", "old", 0), &old));
    // What memory has dropped comes back with it, what was forgotten does not.
    shared.cache.invalidate(&*key());
    assert!(shared.refresh(&key(), ticket, &stored("1", "old", 0), &old));
    old.leave();
    assert!(!shared.refresh(&key(), shared.ticket(&key()), &stored("1", "old", 0), &old));
}
