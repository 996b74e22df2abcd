//! Clients whose address changes: in the middle of a download, and behind a balancer with several instances.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use bytes::Bytes;
use http::{Method, Response};
use http_body_util::BodyExt;
use portcullis_h3::{CidKey, ConnectionIds, RoutableIds};
use tokio::{net::UdpSocket, task::JoinSet};

use crate::{
    config::secure,
    quic::{ID_LEN, Nat},
    support::{
        Dir, SOON,
        client::{Client, Protocol, empty, full},
        edge::Edge,
        origin::Origin,
        run, within,
    },
};

/// With the lengths of ids that [`Nat`] reads, and four workers: by its address alone a packet comes to another worker three times of
/// four.
fn config(server_id: &str, key: Option<&[u8; 16]>, origin: SocketAddr) -> String {
    let key = key.map_or_else(String::new, |_| "id_key = \"id.key\"\n".to_owned());
    format!(
        "threads = 4\n[admin]\naddress = \"127.0.0.1:0\"\n\
         [quic]\nserver_id = \"{server_id}\"\nnonce_length = 14\nrotation = 2\n{key}{}",
        secure(origin)
    )
}

#[test]
fn a_download_goes_on_while_its_client_moves() {
    const LENGTH: usize = 8 << 20;
    run(async {
        let block: Bytes = (0..=250_u8).cycle().take(LENGTH).collect::<Vec<_>>().into();
        let body = block.clone();
        let origin = Origin::start(move |_| {
            let body = body.clone();
            async move { Response::new(full(body)) }
        })
        .await;
        let edge = Edge::run(&config("0a0b", None, origin.addr())).await;
        let nat = Nat::before(edge.https()).await;
        let mut client = Client::connect(Protocol::H3, nat.address, "localhost").await;
        let request = client.request(Method::GET, "/").body(empty()).unwrap();
        let mut body = within(SOON, "a head", client.send(request)).await.unwrap().into_body();
        let (mut got, mut moves) = (0, 0);
        while let Some(frame) = within(SOON, "more of it", body.frame()).await {
            let data = frame.unwrap().into_data().unwrap();
            assert_eq!(data, block.slice(got..got + data.len()));
            got += data.len();
            // twice, each time with most of it still to come
            if got > (moves + 1) * LENGTH / 4 && moves < 2 {
                nat.rebind().await;
                moves += 1;
            }
        }
        assert_eq!((got, moves), (LENGTH, 2));
        let ids = nat.ids.lock().unwrap().clone();
        let decoder = ConnectionIds::routable(ids_of(&[0x0a, 0x0b], None)).unwrap();
        let worker = |id: &Vec<u8>| decoder.owner(id).expect("an id of ours").0;
        assert!(ids.iter().all(|id| worker(id) == worker(&ids[0])), "all packets name one worker");
        assert_eq!(edge.metric("portcullis_quic_connections_total{result=\"accepted\"}").await, 1.0);
    });
}

fn ids_of(server_id: &[u8], key: Option<[u8; 16]>) -> RoutableIds {
    RoutableIds::new(server_id).with_nonce_len(14).with_rotation(2).with_key(key.map(CidKey::new))
}

/// A balancer that keeps nothing of connections: an id that names an instance decides, and what names none goes by turns.
struct Balancer {
    address: SocketAddr,
    by_id: Arc<AtomicU32>,
}

impl Balancer {
    async fn before(instances: Vec<(Vec<u8>, SocketAddr)>, key: Option<[u8; 16]>) -> Self {
        let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let address = front.local_addr().unwrap();
        let decoder = ConnectionIds::routable(ids_of(&instances[0].0, key)).unwrap();
        let by_id = Arc::new(AtomicU32::new(0));
        let routed = by_id.clone();
        tokio::spawn(async move {
            // the way back, and the turn that an address got; a real one has a hash for that
            let mut ways: HashMap<SocketAddr, (Arc<UdpSocket>, SocketAddr)> = HashMap::new();
            let mut tasks = JoinSet::new();
            let mut packet = [0; 2048];
            while let Ok((length, client)) = front.recv_from(&mut packet).await {
                if !ways.contains_key(&client) {
                    let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                    // each client has four addresses, one after the other
                    let turn = instances[(ways.len() + ways.len() / 4) % instances.len()].1;
                    tasks.spawn(bring_back(back.clone(), front.clone(), client));
                    ways.insert(client, (back, turn));
                }
                let (back, turn) = &ways[&client];
                // a short header has the id behind its first byte, a long one behind version and length (RFC 8999 section 5)
                let id = if packet[0] & 0x80 == 0 { &packet[1..=ID_LEN] } else { &packet[6..6 + ID_LEN] };
                let of_right_length = packet[0] & 0x80 == 0 || usize::from(packet[5]) == ID_LEN;
                let decoded = decoder.decode(id).filter(|_| of_right_length).and_then(|said| said.server_id);
                let named = instances.iter().find(|(server, _)| Some(server) == decoded.as_ref());
                if named.is_some_and(|(_, to)| to != turn) {
                    routed.fetch_add(1, Ordering::Relaxed);
                }
                let to = named.map_or(*turn, |(_, to)| *to);
                let _ = back.send_to(&packet[..length], to).await;
            }
        });
        Self { address, by_id }
    }
}

async fn bring_back(back: Arc<UdpSocket>, front: Arc<UdpSocket>, client: SocketAddr) {
    let mut packet = [0; 2048];
    while let Ok((length, _)) = back.recv_from(&mut packet).await {
        let _ = front.send_to(&packet[..length], client).await;
    }
}

async fn instances_keep_their_connections(key: Option<[u8; 16]>) {
    let mut seen = [0; 2];
    let origins = [Origin::text("one").await, Origin::text("two").await];
    let mut edges = Vec::new();
    let mut instances = Vec::new();
    for (at, origin) in origins.iter().enumerate() {
        let dir = Dir::new();
        let digits = |key: [u8; 16]| key.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        if let Some(key) = key {
            dir.write("id.key", &digits(key));
        }
        let text = config(["c0de", "beef"][at], key.as_ref(), origin.addr());
        let edge = Edge::run_in(dir, &text).await;
        instances.push(([vec![0xc0, 0xde], vec![0xbe, 0xef]][at].clone(), edge.https()));
        edges.push(edge);
    }
    let balancer = Balancer::before(instances, key).await;
    for _ in 0..6 {
        let nat = Nat::before(balancer.address).await;
        let mut client = Client::connect(Protocol::H3, nat.address, "localhost").await;
        let first = within(SOON, "an answer", client.get("/")).await;
        for _ in 0..3 {
            nat.rebind().await;
            let again = within(SOON, "an answer at another address", client.get("/")).await;
            assert_eq!((again.status, &again.body), (first.status, &first.body), "another instance");
        }
        seen[usize::from(first.body == "two")] += 1;
    }
    assert!(seen[0] > 0 && seen[1] > 0, "both had connections: {seen:?}");
    // half of the new addresses would have had the other's turn
    assert!(balancer.by_id.load(Ordering::Relaxed) > 6, "the ids decided");
    let mut accepted = 0.0;
    for edge in &edges {
        accepted += edge.metric("portcullis_quic_connections_total{result=\"accepted\"}").await;
    }
    assert_eq!(accepted, 6.0, "and no client had to come again");
}

#[test]
fn a_balancer_routes_by_plain_ids() {
    run(instances_keep_their_connections(None));
}

#[test]
fn a_balancer_routes_by_encrypted_ids() {
    run(instances_keep_their_connections(Some(*b"0123456789abcdef")));
}
