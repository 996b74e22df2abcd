//! The second tier: what memory drops comes back, and a purge means it too.

use std::path::PathBuf;

use http::{Method, Uri};
use portcullis_cache::{CacheLayer, DiskError, DiskOptions, Purge};

use crate::world::{Got, World, get, https, reply, request};

/// A directory that goes with the test.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("portcullis-cache-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Self(path)
    }

    fn options(&self) -> DiskOptions {
        DiskOptions::new(&self.0).with_max_bytes(64 << 20)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const COUNT: usize = 64;
const BODY: usize = 64 << 10;

/// A memory for a few responses in front of a disk for all of them. A response has its path as its tag.
fn small(dir: &Dir) -> World {
    let layer = CacheLayer::open(https().with_max_bytes(512 << 10).with_disk(Some(dir.options()))).unwrap();
    World::over(layer, |n, parts| {
        let path = parts.uri.path().to_owned();
        let fields = [
            ("cache-control", "max-age=600"),
            ("cache-tag", path.trim_start_matches('/')),
            ("etag", "\"e\""),
            ("x-two", "1"),
            ("x-two", "2"),
        ];
        reply(200, &fields, &body(n, &path))
    })
}

fn body(n: usize, path: &str) -> String {
    format!("{n} {path} ").repeat(BODY / 4)[..BODY].to_owned()
}

fn path(n: usize) -> String {
    format!("/{n}")
}

/// When nothing is being written: what is in the middle of that may be asked for anew.
async fn get_of(world: &World, path: &str) -> Got {
    world.layer.wait_for_disk().await;
    world.get(path).await
}

async fn fill(world: &World) {
    for n in 0..COUNT {
        assert_eq!(get_of(world, &path(n)).await.body, body(n, &path(n)));
    }
    assert_eq!(world.calls(), COUNT);
    assert!(world.stats().evicted > COUNT as u64 / 2, "{:?}", world.stats());
}

#[tokio::test]
async fn what_memory_drops_comes_back_as_it_was() {
    let dir = Dir::new("back");
    let world = small(&dir);
    fill(&world).await;
    for _ in 0..2 {
        for n in 0..COUNT {
            let got = get_of(&world, &path(n)).await;
            assert!(got.is_hit(), "{n}: {}", got.cache_status());
            assert_eq!(got.body, body(n, &path(n)), "{n}");
            let two: Vec<_> =
                got.headers.get_all("x-two").iter().map(|value| value.to_str().unwrap()).collect();
            assert_eq!((two, got.field("etag")), (vec!["1", "2"], "\"e\""), "{n}");
            assert!(got.field("age").parse::<u64>().unwrap() < 60);
        }
    }
    assert_eq!(world.calls(), COUNT, "the origin is not asked again");
    // one that was dropped answers a condition, too
    let conditional = world.send(get(&path(0), &[("if-none-match", "\"e\"")])).await;
    assert_eq!(conditional.status, 304);
    let stats = world.stats();
    assert!(stats.bytes <= 600 << 10, "memory is bounded as before: {stats:?}");
    assert!(stats.disk_hits > COUNT as u64 / 2 && stats.disk_writes >= stats.disk_hits, "{stats:?}");
}

#[tokio::test]
async fn what_a_purge_means_is_not_given_out() {
    let dir = Dir::new("purge");
    let world = small(&dir);
    fill(&world).await;
    let uri = |text: &str| text.parse::<Uri>().unwrap();
    world.layer.purge(&uri("https://a.example.com/0"), Purge::Hard).unwrap();
    world.layer.purge(&uri("https://a.example.com/1"), Purge::Soft).unwrap();
    world.layer.purge_tag("2", Purge::Hard);
    world.layer.purge_tag("3", Purge::Soft);
    world.layer.purge_prefix(&uri("https://a.example.com/6"), Purge::Hard).unwrap();
    // RFC 9111 section 4.4
    let mut post = request(Method::POST, "/4", &[("host", "a.example.com")]);
    post.headers_mut().insert("content-length", "0".parse().unwrap());
    world.send(post).await;
    for n in 0..COUNT {
        let before = world.calls();
        get_of(&world, &path(n)).await;
        let meant = n <= 4 || n == 6 || n >= 60;
        // keys share counters, so that a purge of a key may take another along
        assert!(world.calls() > before || !meant, "{n}");
    }
    assert!(world.calls() < 2 * COUNT - 20, "the others are still there: {}", world.calls());
    world.layer.clear();
    let before = world.calls();
    for n in 0..COUNT {
        get_of(&world, &path(n)).await;
    }
    assert_eq!(world.calls(), before + COUNT);
}

/// Whatever else was purged meanwhile.
#[tokio::test]
async fn what_no_purge_means_stays() {
    let dir = Dir::new("stays");
    let world = small(&dir);
    let first = 6;
    for n in 0..first {
        get_of(&world, &path(n)).await;
    }
    for n in 0..600 {
        let uri = format!("https://a.example.com/none/{n}").parse().unwrap();
        world.layer.purge_prefix(&uri, Purge::Hard).unwrap();
    }
    // what was stored before them goes to the disk after them, since the others are wanted more
    for _ in 0..4 {
        for n in first..COUNT {
            get_of(&world, &path(n)).await;
        }
    }
    for n in 0..first {
        assert!(get_of(&world, &path(n)).await.is_hit(), "{n}");
    }
    // what was on disk before
    for n in 0..600 {
        assert_eq!(world.layer.purge_tag(&format!("none-{n}"), Purge::Hard), 0);
    }
    for n in 0..COUNT {
        assert!(get_of(&world, &path(n)).await.is_hit(), "{n}");
    }
    assert_eq!(world.calls(), COUNT);
}

#[tokio::test]
async fn a_store_begins_empty_and_has_a_place_of_its_own() {
    let dir = Dir::new("slots");
    let first = small(&dir);
    fill(&first).await;
    let second = small(&dir);
    assert!(!second.get("/0").await.is_hit());
    assert!(first.get("/0").await.is_hit());
    let open = || CacheLayer::open(https().with_disk(Some(dir.options())));
    let more: Vec<_> = (0..6).map(|_| open().unwrap()).collect();
    assert!(matches!(open(), Err(DiskError::Busy { .. })));
    drop((first, more));
    let third = small(&dir);
    assert!(!third.get("/0").await.is_hit(), "nothing of who was there before");

    std::fs::write(dir.0.join("file"), "").unwrap();
    let wrong = DiskOptions::new(dir.0.join("file"));
    assert!(matches!(CacheLayer::open(https().with_disk(Some(wrong))), Err(DiskError::Directory { .. })));
}
