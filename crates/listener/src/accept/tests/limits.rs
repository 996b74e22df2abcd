//! Limits of all, of a listener, of a client.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_listener_has_a_limit_of_its_own() {
    let limits = Limits::new(3);
    let (small, large) = (limits.listener("small", Some(1)), limits.listener("large", None));
    let scripts = [Script::new([Ok(()); 4]), Script::new([Ok(()); 4])];
    let mut first = Loop::spawn(&scripts[0], &small);
    // a second socket of the same listener, which comes first to nothing
    let mut sibling = Loop::spawn(&scripts[0], &small);
    let mut other = Loop::spawn(&scripts[1], &large);
    let held = assert_ready!(first.poll_accept()).unwrap();
    assert_pending!(first.poll_accept());
    assert_pending!(sibling.poll_accept());
    let open: Vec<_> = (0..2).map(|_| assert_ready!(other.poll_accept()).unwrap()).collect();
    assert_pending!(other.poll_accept());
    assert_eq!((small.open(), large.open(), limits.open()), (1, 2, 3));

    drop(held);
    assert!(first.is_woken(), "its listener has room");
    assert!(other.is_woken(), "and so have all");
    let held = assert_ready!(other.poll_accept()).unwrap();
    // the permit of all went to the other one
    assert_pending!(first.poll_accept());
    assert_pending!(sibling.poll_accept());
    drop(held);
    assert!(first.is_woken() || sibling.is_woken());
    let held = assert_ready!(first.poll_accept()).unwrap();
    assert_pending!(sibling.poll_accept());
    small.set_max(Some(2));
    assert!(sibling.is_woken(), "its listener has room; there is none for all");
    assert_pending!(sibling.poll_accept());
    limits.set_max(10);
    assert!(sibling.is_woken());
    let second = assert_ready!(sibling.poll_accept()).unwrap();
    drop((held, second, open));
    assert_eq!((small.open(), large.open(), limits.open()), (0, 0, 0));

    let names: Vec<_> = limits.listeners().into_iter().map(|(name, stats)| (name, stats.accepted)).collect();
    assert_eq!(names, [("small".to_owned(), 3), ("large".to_owned(), 3)]);
    drop((first, sibling, small));
    assert_eq!(limits.listeners().len(), 1);
    assert_eq!(limits.stats().accepted, 6, "what a listener did outlives it");
}

#[tokio::test(start_paused = true)]
async fn a_permit_of_all_passes_by_a_listener_that_is_full() {
    let limits = Limits::new(2);
    let small = limits.listener("small", Some(1));
    let scripts = [Script::new([Ok(()); 2]), Script::new([Ok(()); 2])];
    let mut first = Loop::spawn(&scripts[0], &small);
    let mut other = Loop::spawn(&scripts[1], &limits);
    let (a, b) = (limits.try_acquire().unwrap(), limits.try_acquire().unwrap());
    // both wait for a permit of all, the small one before the other
    assert_pending!(first.poll_accept());
    assert_pending!(other.poll_accept());
    small.set_max(Some(0));
    drop(a);
    assert!(first.is_woken() && !other.is_woken());
    assert_pending!(first.poll_accept());
    assert!(other.is_woken(), "the one that could not take it has passed the call on");
    assert!(assert_ready!(other.poll_accept()).is_some());
    drop(b);
}

#[tokio::test(start_paused = true)]
async fn pause_and_resume() {
    let limits = Limits::new(5);
    let named = limits.listener("named", None);
    let script = Script::new([Ok(()); 3]);
    let mut accepting = Loop::spawn(&script, &named);
    limits.pause();
    assert_pending!(accepting.poll_accept());
    assert!(limits.is_paused() && limits.try_acquire().is_none());
    assert_eq!(script.calls(), 0);
    limits.resume();
    assert!(accepting.is_woken());
    let _first = assert_ready!(accepting.poll_accept());
    named.pause();
    assert_pending!(accepting.poll_accept());
    assert!(limits.try_acquire().is_some(), "the others go on");
    named.resume();
    assert!(accepting.is_woken());
    let _second = assert_ready!(accepting.poll_accept());
    assert_eq!(limits.stats().limit_reached, 0, "a pause is not a limit");
    // a closed one ends, paused or not
    limits.pause();
    assert_pending!(accepting.poll_accept());
    limits.close();
    assert!(assert_ready!(accepting.poll_accept()).is_none());
}

#[tokio::test(start_paused = true)]
async fn the_limit_is_told_once_an_episode() {
    let log = Log::capture();
    let limits = Limits::new(1);
    let script = Script::new([Ok(()); 100]);
    let mut accepting = Loop::spawn(&script, &limits);
    let mut open = assert_ready!(accepting.poll_accept());
    for _ in 0..20 {
        assert_pending!(accepting.poll_accept());
        advance(1000).await;
        drop(open);
        open = assert_ready!(accepting.poll_accept());
    }
    assert_eq!(log.lines().len(), 1, "{:?}", log.lines());
    assert!(
        log.lines()[0].contains("max=1") && log.lines()[0].contains("kernel's queue"),
        "{:?}",
        log.lines()
    );
    assert_eq!(limits.stats().at_limit, Duration::from_secs(20));
    advance(6000).await;
    limits.set_max(3);
    let _second = assert_ready!(accepting.poll_accept());
    assert_eq!(log.lines().len(), 2, "{:?}", log.lines());
    assert!(log.lines()[1].contains("no longer reached") && log.lines()[1].contains("times=20"));
    let _third = assert_ready!(accepting.poll_accept());
    assert_pending!(accepting.poll_accept());
    assert_eq!((log.lines().len(), limits.stats().limit_reached), (3, 2));
    drop(open);

    // a listener's own is told in the same way
    let log = Log::capture();
    let limits = Limits::new(10);
    let small = limits.listener("small", Some(1));
    let mut accepting = Loop::spawn(&Script::new([Ok(()); 10]), &small);
    let mut open = assert_ready!(accepting.poll_accept());
    for _ in 0..3 {
        assert_pending!(accepting.poll_accept());
        advance(1000).await;
        drop(open);
        open = assert_ready!(accepting.poll_accept());
    }
    assert_eq!(log.lines().len(), 1, "{:?}", log.lines());
    assert!(log.lines()[0].contains("of=\"small\" max=1"), "{:?}", log.lines());
    advance(6000).await;
    small.set_max(None);
    let _second = assert_ready!(accepting.poll_accept());
    assert!(log.lines()[1].contains("no longer reached"), "{:?}", log.lines());
    drop(open);
}

#[tokio::test(start_paused = true)]
async fn past_the_limit_connections_can_be_refused() {
    for (over, resets) in [(OverLimit::Close, 0), (OverLimit::Reset, 3)] {
        let limits = Limits::with_options(LimitOptions::default().with_max_connections(1).with_over(over));
        let script = Script::new([Ok(()); 4]);
        let mut accepting = Loop::spawn(&script, &limits);
        let open = assert_ready!(accepting.poll_accept());
        assert_pending!(accepting.poll_accept());
        let stats = limits.stats();
        assert_eq!((stats.accepted, stats.refused_over_limit, stats.open), (1, 3, 1));
        assert_eq!(script.resets(), resets);
        drop(open);
        script.push([Ok(())]);
        assert!(assert_ready!(accepting.poll_accept()).is_some());
    }
}

pub(super) fn per_client(limit: ClientLimit) -> Limits {
    Limits::with_options(LimitOptions::default().with_max_connections(300).with_per_client(Some(limit)))
}

#[tokio::test(start_paused = true)]
async fn a_client_has_its_share_and_no_more() {
    for (over, resets) in [(OverClient::Close, 0), (OverClient::Reset, 2)] {
        let limits = per_client(ClientLimit::new(2).with_over(over));
        let script = Script::default();
        for client in ["192.0.2.1", "192.0.2.1", "192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2"] {
            script.push_client(client);
        }
        let mut accepting = Loop::spawn(&script, &limits);
        let open: Vec<_> = (0..3).map(|_| assert_ready!(accepting.poll_accept()).unwrap()).collect();
        assert_pending!(accepting.poll_accept());
        let stats = limits.stats();
        assert_eq!((stats.accepted, stats.refused_over_client, stats.open), (3, 2, 3));
        assert_eq!((limits.clients(), script.resets()), (2, resets));
        drop(open);
        assert_eq!((limits.clients(), limits.open()), (0, 0));
        script.push_client("192.0.2.1");
        assert!(assert_ready!(accepting.poll_accept()).is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_delayed_connection_is_served_when_its_client_has_room() {
    let up_to = Duration::from_secs(3);
    let limits = per_client(ClientLimit::new(1).with_over(OverClient::Delay { up_to }));
    let script = Script::default();
    for _ in 0..3 {
        script.push_client("192.0.2.1");
    }
    script.push_client("192.0.2.2");
    let mut accepting = Loop::spawn(&script, &limits);
    let first = assert_ready!(accepting.poll_accept()).unwrap();
    let other = assert_ready!(accepting.poll_accept()).unwrap();
    assert_pending!(accepting.poll_accept());
    assert_eq!(limits.open(), 4, "those that are delayed hold a permit");
    advance(1000).await;
    assert!(!accepting.is_woken());
    drop(first);
    assert!(accepting.is_woken());
    let second = assert_ready!(accepting.poll_accept()).unwrap();
    assert_pending!(accepting.poll_accept());
    advance(2001).await;
    assert!(accepting.is_woken(), "the last one's time is over");
    assert_pending!(accepting.poll_accept());
    let stats = limits.stats();
    assert_eq!((stats.accepted, stats.delayed, stats.refused_over_client, stats.open), (3, 2, 1, 2));
    drop((second, other));

    // more than are kept are reset
    for _ in 0..delayed::MOST + 10 {
        script.push_client("192.0.2.3");
    }
    let _first = assert_ready!(accepting.poll_accept()).unwrap();
    while !script.answers.lock().is_empty() {
        assert_pending!(accepting.poll_accept());
    }
    assert_eq!(script.resets(), 9);
    drop(accepting);
    assert_eq!(limits.open(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_client_behind_a_proxy_is_counted_later() {
    let up_to = Duration::from_secs(3);
    let proxies = ["10.0.0.0/8".parse().unwrap()];
    let limits = per_client(ClientLimit::new(1).with_exempt(proxies));
    let client = IpAddr::from([192, 0, 2, 1]);
    let script = Script::default();
    for _ in 0..3 {
        script.push_client("10.0.0.1");
    }
    let mut accepting = Loop::spawn(&script, &limits);
    let [mut a, mut b, mut c] = [(); 3].map(|()| assert_ready!(accepting.poll_accept()).unwrap());
    a.count_client(client).await.unwrap();
    a.count_client(IpAddr::from([192, 0, 2, 9])).await.unwrap();
    a.count_client(client).await.unwrap();
    let refused = b.count_client(client).await.unwrap_err();
    assert!(!refused.reset && refused.to_string().contains("192.0.2.1 has 1 connections"), "{refused}");
    assert_eq!(limits.clients(), 1);

    limits.set_per_client(Some(ClientLimit::new(1).with_over(OverClient::Delay { up_to })));
    let mut waiting = task::spawn(b.count_client(client));
    assert_pending!(waiting.poll());
    drop(a);
    assert!(waiting.is_woken());
    assert_ready!(waiting.poll()).unwrap();
    drop(waiting);
    let begin = tokio::time::Instant::now();
    assert!(c.count_client(client).await.is_err());
    assert_eq!(begin.elapsed().as_secs(), 3);
    drop((b, c));
    assert_eq!((limits.clients(), limits.open()), (0, 0));
    assert_eq!(limits.stats().refused_over_client, 2);
}

#[tokio::test(start_paused = true)]
async fn connections_of_other_kinds_count_for_their_client() {
    let limits = per_client(ClientLimit::new(2));
    let client = IpAddr::from([192, 0, 2, 1]);
    let script = Script::default();
    for _ in 0..2 {
        script.push_client("192.0.2.1");
    }
    let mut accepting = Loop::spawn(&script, &limits);
    let elsewhere = limits.count_client(client).unwrap();
    let open = assert_ready!(accepting.poll_accept()).unwrap();
    assert_pending!(accepting.poll_accept());
    assert_eq!((limits.open(), limits.stats().refused_over_client), (1, 1));
    assert!(limits.count_client(client).is_err());
    drop(elsewhere);
    assert!(limits.count_client(client).is_ok());
    drop(open);
    assert_eq!(limits.clients(), 0);
}
