//! `[quic]` and `[listener.quic]`.

use std::path::Path;

use super::{FULL, LEAST, plan};

#[test]
fn connection_ids_for_a_balancer() {
    assert_eq!(plan(LEAST).quic.ids, None);
    let ids = plan(FULL).quic.ids.unwrap();
    assert_eq!((ids.ids.server_id, ids.ids.rotation, ids.ids.nonce_len), (vec![0x0a, 0x0b], 1, 14));
    assert!(!ids.ids.length_in_first_octet);
    assert_eq!(ids.key.as_deref(), Some(Path::new("/etc/portcullis/quic-id.key")));
}
