//! Queues, retries, hedges and lives of connections, against origins whose every byte the test decides.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full, combinators::UnsyncBoxBody};
use portcullis_testkit::{
    body::ScriptBody,
    origin::{Answer, RawOrigin},
};
use portcullis_upstream::{
    ClientAddresses, Cluster, ClusterOptions, ConnectError, Connector, Destination, Endpoint, Error,
    HedgeOptions, OutlierOptions, RetryOptions, Trip,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

const MS: Duration = Duration::from_millis(1);

fn get(path: &str) -> Request<Body> {
    let none = Empty::new().map_err(|never| match never {});
    Request::get(path).header("host", "t").body(none.boxed_unsync()).unwrap()
}

fn with_body(method: &str, body: &'static str) -> Request<Body> {
    let body = Full::new(Bytes::from_static(body.as_bytes())).map_err(|never| match never {});
    Request::builder().method(method).uri("/").header("host", "t").body(body.boxed_unsync()).unwrap()
}

fn cluster(origins: &[&RawOrigin], options: ClusterOptions) -> Cluster {
    // what these tests are about is not who is left alone
    let outlier = OutlierOptions::default().with_consecutive_failures(0).with_consecutive_gateway(0);
    let endpoints = origins.iter().map(|origin| Endpoint::from(origin.addr())).collect();
    Cluster::new("test", endpoints, options.with_outlier(outlier)).unwrap()
}

async fn text<B: http_body::Body<Data = Bytes, Error = Error>>(response: Response<B>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// Answers each request when the gate lets it.
async fn gated(gate: Arc<Semaphore>) -> RawOrigin {
    RawOrigin::with(move |mut conn| {
        let gate = Arc::clone(&gate);
        async move {
            let mut request = Vec::new();
            while conn.read_request(&mut request).await.is_ok_and(|whole| whole.is_some()) {
                gate.acquire().await.unwrap().forget();
                let _ = conn.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            }
        }
    })
    .await
}

#[tokio::test]
async fn at_the_limit_requests_wait_for_the_connection_of_another() {
    let gate = Arc::new(Semaphore::new(0));
    let origin = gated(Arc::clone(&gate)).await;
    let options =
        ClusterOptions::default().with_max_connections(1).with_queue_timeout(5000 * MS).with_max_pending(3);
    let cluster = cluster(&[&origin], options);
    let client = cluster.client();
    let mut all = JoinSet::new();
    for _ in 0..5 {
        let client = client.clone();
        all.spawn(async move {
            match client.send(get("/")).await {
                Ok(response) => text(response).await,
                Err(error) => format!("{}", error.is_overload()),
            }
        });
    }
    while cluster.stats().pending < 3 {
        tokio::task::yield_now().await;
    }
    gate.add_permits(10);
    let mut answers = all.join_all().await;
    answers.sort();
    // one under way, three in the line, and one too many
    assert_eq!(answers, ["ok", "ok", "ok", "ok", "true"]);
    assert_eq!((origin.connections(), cluster.stats().pending, cluster.stats().active), (1, 0, 0));
}

#[tokio::test]
async fn a_request_does_not_wait_for_ever() {
    let origin = gated(Arc::new(Semaphore::new(0))).await;
    let options = ClusterOptions::default().with_max_connections(1).with_queue_timeout(20 * MS);
    let client = cluster(&[&origin], options).client();
    let first = client.clone();
    let _held = tokio::spawn(async move { first.send(get("/")).await.map(drop) });
    while origin.connections() == 0 {
        tokio::task::yield_now().await;
    }
    assert!(matches!(client.send(get("/")).await, Err(Error::QueueTimeout { .. })));
}

#[tokio::test]
async fn an_answer_that_is_retried_is_anothers_and_the_last_one_is_passed_on() {
    let bad = || Answer::raw("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 3\r\n\r\nbad");
    let (one, two) =
        (RawOrigin::script(vec![bad()]).await, RawOrigin::script(vec![Answer::ok("ok"), bad()]).await);
    let cluster = cluster(&[&one, &two], ClusterOptions::default());
    let client = cluster.client();
    let response = client.send(get("/")).await.unwrap();
    assert_eq!((response.status(), text(response).await), (StatusCode::OK, "ok".to_owned()));
    let response = client.send(get("/")).await.unwrap();
    assert_eq!(
        (response.status(), text(response).await),
        (StatusCode::SERVICE_UNAVAILABLE, "bad".to_owned())
    );
    // POST may have done something: its answer is its answer
    let before = one.requests() + two.requests();
    assert_eq!(client.send(with_body("POST", "x")).await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(one.requests() + two.requests(), before + 1);
}

#[tokio::test]
async fn a_body_that_was_kept_is_sent_again_whole() {
    let (bad, good) =
        (RawOrigin::script(vec![Answer::Close]).await, RawOrigin::script(vec![Answer::ok("ok")]).await);
    let cluster = cluster(&[&bad, &good], ClusterOptions::default());
    let client = cluster.client();
    for _ in 0..4 {
        let response = client.send(with_body("PUT", "hello there")).await.unwrap();
        assert_eq!(text(response).await, "ok");
    }
    assert!(bad.requests() > 0 && cluster.stats().retries >= bad.requests() as u64);
    for received in good.received() {
        let received = String::from_utf8(received).unwrap();
        assert_eq!(received.matches("hello there").count(), received.matches("PUT / HTTP/1.1").count());
    }
}

#[tokio::test]
async fn a_body_that_is_too_long_to_be_kept_is_not_sent_again() {
    let (bad, good) =
        (RawOrigin::script(vec![Answer::Close]).await, RawOrigin::script(vec![Answer::ok("ok")]).await);
    let retry = RetryOptions::default().with_replay_bytes(4);
    let cluster = cluster(&[&bad, &good], ClusterOptions::default().with_retry(retry));
    let client = cluster.client();
    let mut failed = 0;
    for _ in 0..4 {
        failed += usize::from(client.send(with_body("PUT", "hello there")).await.is_err());
    }
    assert_eq!((failed, cluster.stats().retries), (bad.requests(), 0));
    assert!(failed > 0);
}

#[tokio::test]
async fn retries_end_with_the_budget() {
    let (one, two) =
        (RawOrigin::script(vec![Answer::Close]).await, RawOrigin::script(vec![Answer::Close]).await);
    let retry = RetryOptions::default().with_budget_percent(0).with_budget_min(2);
    let cluster = cluster(&[&one, &two], ClusterOptions::default().with_retry(retry));
    let client = cluster.client();
    for _ in 0..20 {
        assert!(client.send(get("/")).await.is_err());
    }
    assert_eq!(cluster.stats().retries, 2);
}

#[tokio::test]
async fn an_attempt_that_times_out_is_made_again_elsewhere() {
    let (slow, fast) =
        (RawOrigin::script(vec![Answer::Hang]).await, RawOrigin::script(vec![Answer::ok("ok")]).await);
    let options = ClusterOptions::default().with_response_timeout(30 * MS);
    let client = cluster(&[&slow, &fast], options.clone()).client();
    for _ in 0..4 {
        assert_eq!(text(client.send(get("/")).await.unwrap()).await, "ok");
    }
    assert!(slow.requests() > 0);
    let never = RetryOptions::default().with_on_timeout(false);
    let client = cluster(&[&slow, &fast], options.with_retry(never)).client();
    let mut timeouts = 0;
    for _ in 0..4 {
        timeouts += usize::from(client.send(get("/")).await.is_err_and(|error| error.is_timeout()));
    }
    assert_eq!(timeouts, 2);
}

#[tokio::test]
async fn a_slow_attempt_gets_another_beside_it() {
    let (slow, fast) =
        (RawOrigin::script(vec![Answer::Hang]).await, RawOrigin::script(vec![Answer::ok("ok")]).await);
    let options = ClusterOptions::default().with_hedge(Some(HedgeOptions::new(20 * MS)));
    let cluster = cluster(&[&slow, &fast], options);
    let client = cluster.client();
    for _ in 0..4 {
        let response = timeout(5000 * MS, client.send(get("/")))
            .await
            .expect("it does not wait for the slow one")
            .unwrap();
        assert_eq!(text(response).await, "ok");
    }
    let stats = cluster.stats();
    assert!(stats.hedges >= 1 && stats.hedges as usize == slow.requests(), "{stats:?}");
    // what lost the race is let go of
    assert_eq!(stats.endpoints.iter().map(|endpoint| endpoint.busy).sum::<usize>(), 0);
    assert_eq!(fast.requests(), 4);
}

#[tokio::test]
async fn a_request_has_so_much_time_in_all() {
    let drip = RawOrigin::with(|mut conn| async move {
        let mut request = Vec::new();
        let _ = conn.read_request(&mut request).await;
        let _ = conn.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n").await;
        while conn.write_all(b"x").await.is_ok() {
            sleep(2 * MS).await;
        }
    })
    .await;
    let silent = RawOrigin::script(vec![Answer::Hang]).await;
    let options = ClusterOptions::default().with_total_timeout(Some(60 * MS));
    let response = cluster(&[&drip], options.clone()).client().send(get("/")).await.unwrap();
    assert!(matches!(response.into_body().collect().await, Err(Error::TotalTimeout)));
    assert!(matches!(cluster(&[&silent], options).client().send(get("/")).await, Err(Error::TotalTimeout)));
}

#[tokio::test]
async fn a_connection_lives_for_so_many_requests_or_so_long() {
    let origin = RawOrigin::script(vec![Answer::ok("ok")]).await;
    let options = ClusterOptions::default().with_max_requests_per_connection(Some(2));
    let client = cluster(&[&origin], options).client();
    for _ in 0..5 {
        assert_eq!(text(client.send(get("/")).await.unwrap()).await, "ok");
    }
    assert_eq!(origin.connections(), 3);
    let origin = RawOrigin::script(vec![Answer::ok("ok")]).await;
    let client = cluster(&[&origin], ClusterOptions::default().with_max_age(Some(50 * MS))).client();
    for _ in 0..2 {
        assert_eq!(text(client.send(get("/")).await.unwrap()).await, "ok");
        sleep(60 * MS).await;
    }
    assert_eq!(origin.connections(), 2);
}

#[tokio::test]
async fn connections_are_kept_ready_and_closed_with_their_endpoint() {
    let origin = RawOrigin::script(vec![Answer::ok("ok")]).await;
    let cluster = cluster(&[&origin], ClusterOptions::default().with_min_idle(3));
    let client = cluster.client();
    let kept = client.clone();
    let maintained = tokio::spawn(async move { kept.maintain().await });
    timeout(5000 * MS, async {
        while client.idle_connections() < 3 {
            sleep(MS).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(text(client.send(get("/")).await.unwrap()).await, "ok");
    assert_eq!(origin.connections(), 3, "the request found one");
    cluster.replace_endpoints(Vec::new()).unwrap();
    timeout(5000 * MS, async {
        while client.idle_connections() > 0 {
            sleep(MS).await;
        }
    })
    .await
    .unwrap();
    assert!(matches!(client.send(get("/")).await, Err(Error::NoEndpoint)));
    maintained.abort();
}

#[tokio::test]
async fn rfc9110_10_1_1_a_body_waits_for_the_endpoints_word() {
    let expecting = |body: ScriptBody| {
        let body = body.map_err(std::io::Error::other).boxed_unsync();
        Request::post("/")
            .header("host", "t")
            .header("expect", "100-continue")
            .header("content-length", "4")
            .body(body)
            .unwrap()
    };
    // says 100 and then reads, says no and never reads, says nothing
    for (word, gets_body) in [("100 Continue", true), ("417 Expectation Failed", false), ("", true)] {
        let got = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&got);
        let origin = RawOrigin::with(move |mut conn| {
            let counted = Arc::clone(&counted);
            async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(conn.read_u8().await.unwrap());
                }
                // before its word there is no body
                let early = timeout(20 * MS, conn.read_u8()).await.is_ok();
                assert!(!early, "{word}");
                if word.starts_with("417") {
                    let _ = conn
                        .write_all(format!("HTTP/1.1 {word}\r\ncontent-length: 0\r\n\r\n").as_bytes())
                        .await;
                } else if !word.is_empty() {
                    let _ = conn.write_all(format!("HTTP/1.1 {word}\r\n\r\n").as_bytes()).await;
                }
                let mut body = [0; 4];
                if conn.read_exact(&mut body).await.is_ok() {
                    counted.fetch_add(1, Ordering::SeqCst);
                    let _ = conn.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                }
            }
        })
        .await;
        let client = cluster(&[&origin], ClusterOptions::default().with_continue_timeout(80 * MS)).client();
        let response = client.send(expecting(ScriptBody::new().data("abcd"))).await.unwrap();
        assert_eq!(response.status().is_success(), gets_body, "{word}");
        drop(response);
        assert_eq!(got.load(Ordering::SeqCst), usize::from(gets_body), "{word}");
    }
}

#[tokio::test]
async fn a_final_answer_right_behind_a_100_is_seen() {
    let origin = RawOrigin::with(|mut conn| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(conn.read_u8().await.unwrap());
        }
        let both = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n";
        conn.write_all(both.as_bytes()).await.unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    let client = cluster(&[&origin], ClusterOptions::default()).client();
    let body = ScriptBody::new().data("ab").hang().map_err(std::io::Error::other).boxed_unsync();
    let request =
        Request::post("/").header("host", "t").header("expect", "100-continue").header("content-length", "4");
    let answer =
        timeout(5000 * MS, client.send(request.body(body).unwrap())).await.expect("it is there").unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn an_idle_connection_of_another_client_makes_room() {
    let origin = RawOrigin::script(vec![Answer::ok("ok")]).await;
    let options = ClusterOptions::default().with_connection_per_client(true).with_max_connections(2);
    let cluster = cluster(&[&origin], options);
    let client = cluster.client();
    for port in 1..=6 {
        let mut request = get("/");
        if port != 3 {
            let local = ([127, 0, 0, 1], 80).into();
            request.extensions_mut().insert(ClientAddresses { peer: ([192, 0, 2, 1], port).into(), local });
        }
        assert_eq!(text(client.send(request).await.unwrap()).await, "ok");
    }
    // none was used by two, and one that is nobody's was not another's
    assert_eq!(origin.connections(), 6);
    assert!(cluster.stats().endpoints[0].open <= 2);
}

#[tokio::test]
async fn at_the_limit_an_idle_connection_of_another_client_is_closed_for_one_that_is_needed() {
    let origin = RawOrigin::script(vec![Answer::ok("ok")]).await;
    let options = ClusterOptions::default()
        .with_connection_per_client(true)
        .with_max_connections(2)
        .with_queue_timeout(500 * MS);
    let client = cluster(&[&origin], options).client();
    let request = |port| {
        let mut request = get("/");
        let local = ([127, 0, 0, 1], 80).into();
        request.extensions_mut().insert(ClientAddresses { peer: ([192, 0, 2, 1], port).into(), local });
        request
    };
    assert_eq!(text(client.send(request(1)).await.unwrap()).await, "ok");
    assert_eq!(client.idle_connections(), 1);
    // in use until its body is read
    let held = client.send(request(2)).await.unwrap();
    assert_eq!(text(client.send(request(3)).await.unwrap()).await, "ok");
    assert_eq!((text(held).await, origin.connections()), ("ok".to_owned(), 3));
}

#[tokio::test]
async fn those_who_wait_in_another_pool_get_the_places_that_come_free() {
    let origin = RawOrigin::script(vec![Answer::ok("ok")]).await;
    let options = ClusterOptions::default().with_max_connections(2).with_queue_timeout(2000 * MS);
    let cluster = cluster(&[&origin], options);
    let (here, there) = (cluster.client(), cluster.client());
    let held = [here.send(get("/")).await.unwrap(), here.send(get("/")).await.unwrap()];
    let waiting = tokio::spawn(async move {
        let (one, two) = tokio::join!(there.send(get("/")), there.send(get("/")));
        // neither gives its connection back before both have one
        (one.map(drop), two.map(drop))
    });
    while cluster.stats().pending < 2 {
        tokio::task::yield_now().await;
    }
    for response in held {
        text(response).await;
    }
    let (one, two) = waiting.await.unwrap();
    assert!(one.is_ok() && two.is_ok(), "{one:?} {two:?}");
}

#[tokio::test]
async fn a_connection_is_one_clients_where_it_must_be() {
    let origin = RawOrigin::script(vec![Answer::ok("ok")]).await;
    let cluster = cluster(&[&origin], ClusterOptions::default().with_connection_per_client(true));
    let told = Arc::new(std::sync::Mutex::new(Vec::new()));
    let client = cluster.client_with(tower::service_fn({
        let told = Arc::clone(&told);
        move |destination: Destination| {
            told.lock().unwrap().push(destination.client.map(|client| client.peer.port()));
            async move { Connector::default().connect(destination.address).await }
        }
    }));
    for port in [1, 2, 1, 2, 1] {
        let mut request = get("/");
        let local = ([127, 0, 0, 1], 80).into();
        request.extensions_mut().insert(ClientAddresses { peer: ([192, 0, 2, 1], port).into(), local });
        assert_eq!(text(client.send(request).await.unwrap()).await, "ok");
    }
    assert_eq!(*told.lock().unwrap(), [Some(1), Some(2)]);
    assert_eq!(origin.connections(), 2);
}

#[tokio::test]
async fn what_went_wrong_while_connecting_is_told_apart() {
    let origin = RawOrigin::script(vec![Answer::ok("ok")]).await;
    let cluster = cluster(&[&origin], ClusterOptions::default());
    type Kind = (fn() -> ConnectError, fn(&Error) -> bool);
    let kinds: [Kind; 5] = [
        (
            || ConnectError::Resolve(std::io::ErrorKind::NotFound.into()),
            |error| matches!(error, Error::Resolve { .. }),
        ),
        (
            || ConnectError::Io(std::io::ErrorKind::ConnectionRefused.into()),
            |error| matches!(error, Error::Connect { .. }),
        ),
        (|| ConnectError::Timeout, |error| matches!(error, Error::ConnectTimeout { .. })),
        (|| ConnectError::Tls("no".into()), |error| matches!(error, Error::Tls { .. })),
        (|| ConnectError::TlsTimeout, |error| matches!(error, Error::TlsTimeout { .. })),
    ];
    for (make, is) in kinds {
        let client = cluster.client_with(tower::service_fn(move |_: Destination| async move {
            Err::<tokio::net::TcpStream, _>(make())
        }));
        let error = client.send(get("/")).await.unwrap_err();
        assert!(is(&error) && error.is_connect(), "{error:?}");
    }
    assert_eq!(cluster.stats().endpoints[0].open, 0);
}

fn watched(path: &str) -> (Arc<Trip>, Request<Body>) {
    let trip = Arc::<Trip>::default();
    let mut request = get(path);
    request.extensions_mut().insert(Arc::clone(&trip));
    (trip, request)
}

#[tokio::test]
async fn a_trip_is_told_as_it_goes() {
    let gate = Arc::new(Semaphore::new(2));
    let origin = gated(Arc::clone(&gate)).await;
    let client = cluster(&[&origin], ClusterOptions::default()).client();
    let name = origin.addr().to_string();
    let known = |trip: &Trip| (trip.attempts(), trip.endpoint().as_deref() == Some(name.as_str()));

    let (first, request) = watched("/");
    assert_eq!((first.attempts(), first.endpoint(), first.first_byte()), (0, None, None));
    text(client.send(request).await.unwrap()).await;
    assert_eq!(known(&first), (1, true));
    assert!(first.connect().is_some() && first.first_byte().is_some());
    // on the connection that is there
    let (second, request) = watched("/");
    text(client.send(request).await.unwrap()).await;
    assert_eq!((known(&second), second.connect()), ((1, true), None));

    let client = cluster(&[&origin], ClusterOptions::default().with_max_connections(1)).client();
    // the third holds the only place until the gate opens, and the fourth waits for it
    let ((third, one), (fourth, other)) = (watched("/"), watched("/"));
    let send = async |request| text(client.send(request).await.unwrap()).await;
    let open = async {
        sleep(50 * MS).await;
        assert_eq!((known(&third), third.first_byte()), ((1, true), None));
        gate.add_permits(2);
    };
    tokio::join!(send(one), send(other), open);
    assert!(third.first_byte().unwrap() >= 40 * MS && third.queue() < 40 * MS);
    assert!(fourth.queue() >= 40 * MS && fourth.first_byte().is_some());

    // nobody waits for the answer any more
    let (fifth, request) = watched("/");
    assert!(timeout(20 * MS, client.send(request)).await.is_err());
    assert_eq!((known(&fifth), fifth.first_byte()), ((1, true), None));
}

#[tokio::test(start_paused = true)]
async fn a_trip_that_is_given_up_is_told_of_what_it_waited_for() {
    let endpoint = Endpoint::from(std::net::SocketAddr::from(([192, 0, 2, 1], 80)));
    let options = ClusterOptions::default().with_max_connections(1);
    let client = Cluster::new("test", vec![endpoint], options).unwrap().client_with(tower::service_fn(
        |_: Destination| std::future::pending::<Result<tokio::net::TcpStream, ConnectError>>(),
    ));
    let ((first, one), (second, other)) = (watched("/"), watched("/"));
    let (one, other) = tokio::join!(timeout(50 * MS, client.send(one)), timeout(40 * MS, client.send(other)));
    assert!(one.is_err() && other.is_err());
    let part =
        |time: Option<Duration>, of: u32| time.is_some_and(|time| time >= of * MS && time < (of + 5) * MS);
    // the first connects to one that never answers, and the second waits for the only place
    assert!(part(first.connect(), 50) && part(Some(first.queue()), 0), "{first:?}");
    assert!(part(Some(second.queue()), 40) && second.connect().is_none(), "{second:?}");
    assert_eq!((first.attempts(), second.attempts()), (1, 1));
}

#[tokio::test]
async fn a_trip_counts_attempts() {
    let gate = Arc::new(Semaphore::new(20));
    let origin = gated(gate).await;
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let endpoints = vec![Endpoint::from(dead), Endpoint::from(origin.addr())];
    let client = Cluster::new("test", endpoints, ClusterOptions::default()).unwrap().client();
    let mut attempts = Vec::new();
    for _ in 0..20 {
        let (trip, request) = watched("/");
        text(client.send(request).await.unwrap()).await;
        assert_eq!(trip.endpoint().as_deref(), Some(origin.addr().to_string().as_str()));
        attempts.push(trip.attempts());
    }
    assert!(attempts.contains(&2) && attempts.iter().all(|count| [1, 2].contains(count)), "{attempts:?}");
}
