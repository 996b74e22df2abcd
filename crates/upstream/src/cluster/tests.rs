use super::*;

fn cluster(count: usize) -> Cluster {
    let endpoints = (0..count).map(|n| format!("10.0.0.{}:80", n + 1).parse().unwrap()).collect();
    Cluster::new("test", endpoints, ClusterOptions::default()).unwrap()
}

fn pick(cluster: &Cluster, tried: &Tried) -> usize {
    cluster.shared.with_pick(&Wish::default(), tried, |index, _| index).unwrap()
}

#[tokio::test]
async fn contradictions_are_refused() {
    assert_eq!(
        Cluster::new("a", vec![], ClusterOptions::default()).unwrap_err(),
        ClusterError::Empty("a".to_owned())
    );
    let one: Endpoint = "10.0.0.1:80".parse().unwrap();
    assert!(Cluster::new("a", vec![one.clone(), one], ClusterOptions::default()).is_err());
}

#[tokio::test]
async fn an_idle_cluster_is_used_in_turn() {
    let cluster = cluster(3);
    let mut counts = [0; 3];
    for _ in 0..300 {
        counts[pick(&cluster, &Tried::default())] += 1;
    }
    assert_eq!(counts, [100, 100, 100]);
}

#[tokio::test]
async fn endpoints_that_stay_keep_what_is_known_of_them() {
    let cluster = cluster(2);
    let handles = cluster.endpoints();
    handles[1].set_healthy(false);
    let text = |handle: &EndpointHandle| handle.endpoint().to_string();
    cluster.replace_endpoints(vec!["10.0.0.9:80".parse().unwrap(), handles[1].endpoint().clone()]).unwrap();
    assert!(handles[0].is_removed() && !handles[1].is_removed());
    let now = cluster.endpoints();
    assert_eq!(now.iter().map(text).collect::<Vec<_>>(), ["10.0.0.9:80", "10.0.0.2:80"]);
    assert!(!cluster.stats().endpoints[1].healthy);
    assert!((0..9).all(|_| pick(&cluster, &Tried::default()) == 0));
    let twice = vec![now[0].endpoint().clone(), now[0].endpoint().clone()];
    assert!(cluster.replace_endpoints(twice).is_err());
    assert_eq!(cluster.endpoints().len(), 2);
    cluster.replace_endpoints(Vec::new()).unwrap();
    assert!(cluster.shared.with_pick(&Wish::default(), &Tried::default(), |_, _| ()).is_none());
}

#[tokio::test]
async fn a_request_goes_where_it_was_before_while_it_can() {
    let cluster = cluster(4);
    let identity = Some(cluster.endpoints()[2].state.identity);
    let wish = Wish { identity, hash: None };
    let pick = |tried: &Tried| cluster.shared.with_pick(&wish, tried, |index, _| index).unwrap();
    assert!((0..9).all(|_| pick(&Tried::default()) == 2));
    let mut tried = Tried::default();
    tried.insert(2);
    assert_ne!(pick(&tried), 2);
    cluster.endpoints()[2].set_healthy(false);
    assert_ne!(pick(&Tried::default()), 2);
}

#[tokio::test]
async fn answers_that_fail_eject_but_never_the_last_endpoint() {
    let cluster = cluster(2);
    let handles = cluster.endpoints();
    for handle in &handles {
        for _ in 0..5 {
            cluster.shared.answered(&handle.state, StatusCode::BAD_GATEWAY);
        }
    }
    assert!(!handles[0].stats().healthy && handles[1].stats().healthy);
    assert_eq!(cluster.stats().ejections, 1);
}

#[tokio::test]
async fn tried_and_failing_endpoints_come_last() {
    let cluster = cluster(2);
    cluster.endpoints()[0].set_healthy(false);
    assert!((0..9).all(|_| pick(&cluster, &Tried::default()) == 1));
    let mut tried = Tried::default();
    tried.insert(1);
    assert_eq!(pick(&cluster, &tried), 0, "the doubtful one gets its chance");
    assert!(!cluster.shared.has_untried(&tried));
}

#[tokio::test(start_paused = true)]
async fn the_first_list_is_waited_for_and_not_for_ever() {
    let options = ClusterOptions::default().with_max_pending(1);
    let cluster = Cluster::discovered("a", options);
    let begun = Instant::now();
    assert!(matches!(cluster.shared.first_list().await, Err(Error::NoEndpoint)));
    assert_eq!(begun.elapsed(), cluster.options().queue_timeout);
    let waits = tokio::spawn({
        let cluster = cluster.clone();
        async move { cluster.shared.first_list().await }
    });
    while cluster.stats().pending == 0 {
        tokio::task::yield_now().await;
    }
    assert!(cluster.shared.first_list().await.is_err_and(|error| error.is_overload()));
    cluster.replace_endpoints(Vec::new()).unwrap();
    waits.await.unwrap().unwrap();
    cluster.shared.first_list().await.unwrap();
    assert_eq!((begun.elapsed(), cluster.stats().pending), (cluster.options().queue_timeout, 0));
}

#[tokio::test]
async fn requests_and_waiting_ones_are_bounded() {
    let options = ClusterOptions::default().with_max_requests(1).with_max_pending(1);
    let cluster = Cluster::discovered("a", options);
    let one = Ticket::take(&cluster.shared).unwrap();
    assert!(Ticket::take(&cluster.shared).is_err_and(|error| error.is_overload()));
    assert_eq!(cluster.stats().active, 1);
    drop(one);
    assert!(Ticket::take(&cluster.shared).is_ok());
    let waiting = cluster.shared.wait();
    assert!(waiting.is_some() && cluster.shared.wait().is_none());
    drop(waiting);
    assert!(cluster.shared.wait().is_some());
}
