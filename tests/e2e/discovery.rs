//! Endpoints that are found while the edge runs.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use crate::support::{
    Dir, SOON,
    client::{Client, Protocol},
    edge::Edge,
    origin::Origin,
    run, within,
};

/// Puts a list in the place of the one before, all at once.
fn list(dir: &Dir, endpoints: &[SocketAddr]) {
    let text: String = endpoints.iter().map(|addr| format!("{addr} weight=2 # one\n")).collect();
    let new = dir.write("new", &text);
    std::fs::rename(new, dir.path().join("endpoints")).unwrap();
}

fn config(dir: &Dir) -> String {
    format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"https\"\n\
         [[certificate]]\nself_signed = [\"localhost\"]\n[[route]]\ncluster = \"app\"\n\
         [[cluster]]\nname = \"app\"\n[cluster.file]\npath = \"{}\"\ninterval = \"100ms\"\n",
        dir.path().join("endpoints").display()
    )
}

#[test]
fn endpoints_change_by_file_and_no_request_fails() {
    run(async {
        let origins = [Origin::text("0").await, Origin::text("1").await, Origin::text("2").await];
        let [a, b, c] = [0, 1, 2].map(|at: usize| origins[at].addr());
        let dir = Dir::new();
        list(&dir, &[a]);
        let edge = Edge::run(&config(&dir)).await;
        let (done, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let mut askers = tokio::task::JoinSet::new();
        for protocol in Protocol::ALL {
            // the first request of all finds an endpoint: the file is read before the edge listens
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            let (done, answers) = (Arc::clone(&done), Arc::clone(&answers));
            askers.spawn(async move {
                while !done.load(Ordering::SeqCst) {
                    let reply = client.get("/").await;
                    assert_eq!(reply.status, 200, "{protocol:?} {reply:?}");
                    answers.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
        }
        origins[0].wait_for_requests(20).await;
        assert_eq!(origins[1].requests() + origins[2].requests(), 0);
        for (endpoints, at) in [(&[a, b][..], 1), (&[c], 2), (&[b], 1), (&[c, a], 0)] {
            let before = origins[at].requests();
            list(&dir, endpoints);
            origins[at].wait_for_requests(before + 20).await;
        }
        // a file that says nothing changes nothing
        std::fs::write(dir.path().join("endpoints"), "nonsense\n").unwrap();
        let (before, b_before) = (answers.load(Ordering::SeqCst), origins[1].requests());
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(answers.load(Ordering::SeqCst) > before);
        assert_eq!(origins[1].requests(), b_before);
        done.store(true, Ordering::SeqCst);
        while let Some(result) = askers.join_next().await {
            result.unwrap();
        }
    });
}

#[test]
fn without_a_file_it_is_503_until_there_is_one() {
    run(async {
        let origin = Origin::text("here").await;
        let dir = Dir::new();
        let edge = Edge::run(&config(&dir)).await;
        let mut client = Client::connect(Protocol::ALL[0], edge.https(), "localhost").await;
        assert_eq!(client.get("/").await.status, 503);
        list(&dir, &[origin.addr()]);
        within(SOON, "an answer", async {
            while client.get("/").await.status != 200 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    });
}
