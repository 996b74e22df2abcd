use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

fn hex(text: &str) -> Vec<u8> {
    let pair = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(pair).collect()
}

fn generator(worker: u8, ids: ConnectionIds) -> WorkerIds {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    WorkerIds::new(WorkerId::new(worker), ids, Arc::new(provider))
}

fn key(text: &str) -> CidKey {
    CidKey::new(hex(text).try_into().unwrap())
}

#[test]
fn byte_three_is_the_worker_byte_four_the_generation_and_the_rest_is_random() {
    let mut ids = generator(200, ConnectionIds::default().with_generation(9));
    let (a, b) = (ids.generate_cid(), ids.generate_cid());
    for id in [&a, &b] {
        assert_eq!((id.len(), id[3], id[4]), (LEN, 200, 9));
    }
    assert_ne!(a, b);
    let decoded = ConnectionIds::default().decode(&a).unwrap();
    assert_eq!((decoded.worker.get(), decoded.generation, decoded.server_id), (200, 9, None));
}

#[test]
fn only_own_ids_are_recognised() {
    let routable = || ConnectionIds::routable(RoutableIds::new([1, 2])).unwrap();
    for ids in [ConnectionIds::default(), routable()] {
        let mut one = generator(1, ids.clone());
        let (two, newer) = (generator(2, ids.clone()), generator(1, ids.with_generation(1)));
        let id = one.generate_cid();
        assert!(one.validate(&id).is_ok());
        assert!(two.validate(&id).is_err());
        assert!(newer.validate(&id).is_err());
        assert!(one.validate(&ConnectionId::new(&id[..4])).is_err());
    }
}

/// Appendix B of draft-ietf-quic-load-balancers-21, and the example of its section 5.4.2: server id, nonce and what they become.
#[test]
fn the_vectors_of_the_draft() {
    const KEY: &str = "8f95f09245765f80256934e50c66207f";
    for (key_text, server, nonce, wanted) in [
        ("fdf726a9893ec05c0632d3956680baf0", "31441a", "9c69c275", "67947d29be054a"),
        (KEY, "ed793a", "ee080dbf", "20b1d07b359d3c"),
        (KEY, "ed793a51d49b8f5fab65", "ee080dbf48", "cc381bc74cb4fbad2823a3d1f8fed2"),
        (KEY, "ed793a51d49b8f5f", "ee080dbf48c0d1e5", "4dd2d05a7b0de9b2b9907afb5ecf8cc3"),
        (KEY, "ed793a51d49b8f5fab", "ee080dbf48c0d1e55d", "5779c9cc86beb3a3a4a3ca96fce4bfe0cdbc"),
    ] {
        let cipher = Cipher::new(&key(key_text).0).unwrap();
        let plain = hex(&format!("{server}{nonce}"));
        let mut text = plain.clone();
        cipher.seal(&mut text);
        assert_eq!(text, hex(wanted), "{server}");
        cipher.open(&mut text);
        assert_eq!(text, plain, "{server}");
    }
}

/// The unencrypted vector: rotation 0, and the length of the whole id, ours being two bytes longer.
#[test]
fn a_plain_id_is_laid_out_as_balancers_read_it() {
    let lb = RoutableIds::new(hex("c4605e")).with_nonce_len(4);
    let ids = ConnectionIds::routable(lb).unwrap().with_generation(3);
    let id = ids.make(WorkerId::new(5), |bytes| bytes[4..8].copy_from_slice(&hex("4504cc4f")));
    assert_eq!(id[..], hex("09c4605e4504cc4f0503"));
    assert_eq!((ids.len(), ids.worker_byte()), (10, 8));
}

#[test]
fn ids_come_back_and_nonces_never_do() {
    for (server, nonce) in [(1, 4), (3, 4), (8, 8), (2, 8), (13, 4), (1, 16)] {
        for key in [None, Some(key("8f95f09245765f80256934e50c66207f"))] {
            let lb =
                RoutableIds::new(vec![0xab; server]).with_rotation(5).with_nonce_len(nonce).with_key(key);
            let ids = ConnectionIds::routable(lb.clone().with_length_in_first_octet(nonce != 8)).unwrap();
            // two workers of one process, and what they share
            let (mut one, mut two) = (generator(1, ids.clone()), generator(2, ids.clone()));
            let mut nonces = HashSet::new();
            for round in 0..50 {
                let (id, worker) =
                    if round % 2 == 0 { (one.generate_cid(), 1) } else { (two.generate_cid(), 2) };
                let decoded = ids.decode(&id).unwrap();
                assert_eq!(decoded.server_id.as_deref(), Some(&lb.server_id[..]));
                assert_eq!((decoded.rotation, decoded.worker.get()), (Some(5), worker));
                assert!(nonces.insert(decoded.nonce), "a nonce came twice");
            }
        }
    }
}

#[test]
fn ids_are_unroutable_once_all_nonces_were_used() {
    let lb = RoutableIds::new([7]).with_nonce_len(4).with_key(Some(CidKey::new([1; 16])));
    let ids = ConnectionIds::routable(lb).unwrap();
    let mut issued = generator(3, ids.clone());
    let routable = ids.routable.as_ref().unwrap();
    routable.used.store(u64::from(u32::MAX), Ordering::Relaxed);
    let (last, over) = (issued.generate_cid(), issued.generate_cid());
    assert_eq!(ids.decode(&last).unwrap().server_id, Some(vec![7]));
    let over = ids.decode(&over).unwrap();
    assert_eq!((over.rotation, over.server_id, over.worker.get()), (Some(7), None, 3));
}

#[test]
fn what_is_none_of_ours_is_told() {
    let lb = RoutableIds::new([7, 8]).with_rotation(1);
    let ids = ConnectionIds::routable(lb).unwrap();
    let id = generator(0, ids.clone()).generate_cid();
    assert!(ids.decode(&id).is_some());
    assert!(ids.decode(&id[1..]).is_none());
    // another rotation; another length
    for first in [id[0] ^ 0x40, id[0] ^ 1] {
        let mut other = id.to_vec();
        other[0] = first;
        assert!(ids.decode(&other).is_none(), "{first:x}");
    }
}

#[test]
fn what_can_not_be_is_refused() {
    let lb = RoutableIds::new([1]);
    for (lb, wanted) in [
        (lb.clone().with_rotation(7), CidError::Rotation(7)),
        (RoutableIds::new([]), CidError::NoServerId),
        (lb.clone().with_nonce_len(3), CidError::ShortNonce(3)),
        (lb.with_nonce_len(17), CidError::TooLong { server: 1, nonce: 17 }),
    ] {
        assert_eq!(ConnectionIds::routable(lb).unwrap_err(), wanted);
    }
}

#[test]
fn no_key_is_shown() {
    let lb = RoutableIds::new([1]).with_key(Some(CidKey::new([0xee; 16])));
    let shown = format!("{:?}", ConnectionIds::routable(lb).unwrap());
    assert!(shown.contains("CidKey(..)") && !shown.contains("238"), "{shown}");
}

proptest! {
    #[test]
    fn what_is_sealed_opens(text in proptest::collection::vec(any::<u8>(), 5..20), key: [u8; 16]) {
        let cipher = Cipher::new(&key).unwrap();
        let mut sealed = text.clone();
        cipher.seal(&mut sealed);
        prop_assert_ne!(&sealed, &text);
        cipher.open(&mut sealed);
        prop_assert_eq!(sealed, text);
    }
}
