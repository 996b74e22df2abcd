//! `[quic]` and `[listener.quic]`.

use std::path::Path;

use portcullis_edge::h3::{Congestion, Retry};

use super::{FULL, LEAST, plan, secs, warnings};

#[test]
fn connection_ids_for_a_balancer() {
    assert_eq!(plan(LEAST).quic.ids, None);
    let ids = plan(FULL).quic.ids.unwrap();
    assert_eq!((ids.ids.server_id, ids.ids.rotation, ids.ids.nonce_len), (vec![0x0a, 0x0b], 1, 14));
    assert!(!ids.ids.length_in_first_octet);
    assert_eq!(ids.key.as_deref(), Some(Path::new("/etc/portcullis/quic-id.key")));
}

#[test]
fn every_key_of_a_listeners_quic() {
    let quic = plan(FULL).listeners[0].quic.clone();
    assert_eq!(
        (quic.max_uni_streams, quic.stream_window, quic.connection_window, quic.send_window),
        (16, 256 << 10, 2 << 20, 4 << 20)
    );
    assert_eq!((quic.max_idle_timeout, quic.keep_alive), (secs(90), Some(secs(15))));
    assert_eq!((quic.congestion, quic.initial_congestion_window), (Congestion::NewReno, Some(14_720)));
    assert_eq!((quic.min_mtu, quic.initial_mtu, quic.max_udp_payload), (1200, 1350, 1472));
    assert_eq!((quic.retry, quic.retry_threshold, quic.max_incoming), (Retry::UnderLoad, Some(100), 500));
    assert_eq!((quic.incoming_buffer_size, quic.incoming_buffer_total), (32 << 10, 2 << 20));
    assert_eq!((quic.token_lifetime, quic.datagram_buffer), (secs(12 * 3600), 128 << 10));
    assert_eq!(quic.max_connection_memory, Some(64 << 20));
    quic.check().unwrap();

    let least = "[[listener]]\naddress = \"[::]:443\"\nprotocol = \"https\"\n[listener.quic]\n";
    let rest = "[[certificate]]\nself_signed = [\"a\"]\n[[route]]\nrespond = \"ok\"\n";
    let other = |keys: &str| {
        plan(&format!("[timeouts]\nidle = \"20s\"\n{least}{keys}{rest}")).listeners[0].quic.clone()
    };
    let off = other(
        "congestion = \"bbr\"\nmtu_discovery = false\ngso = false\nmigration = false\nretry = \"always\"\ndatagrams = true\n",
    );
    assert!(!off.mtu_discovery && !off.segmentation_offload && !off.migration && off.datagrams);
    assert_eq!((off.congestion, off.retry), (Congestion::Bbr, Retry::Always));
    assert_eq!(
        (off.max_idle_timeout, other("idle_timeout = \"5m\"\n").max_idle_timeout),
        (secs(20), secs(300))
    );
}

#[test]
fn secrets_are_named_by_a_path() {
    assert_eq!(plan(FULL).quic.keys.as_deref(), Some(Path::new("/etc/portcullis/quic-token.keys")));
}

#[test]
fn every_key_of_qlog() {
    let qlog = plan(FULL).quic.qlog.unwrap();
    assert_eq!(qlog.directory, Path::new("/var/log/portcullis/qlog"));
    assert_eq!(qlog.clients, ["192.0.2.7/32", "2001:db8::/64"].map(|network| network.parse().unwrap()));
    assert_eq!((qlog.max_files, qlog.max_file_size, qlog.max_total_size), (20, 4 << 20, 64 << 20));
    assert_eq!(plan(LEAST).quic.qlog, None);
    let all = format!("{LEAST}[qlog]\ndirectory = \"/tmp\"\nclients = [\"::/0\"]\n");
    assert!(warnings(&all).iter().any(|warning| warning.contains("`::/0` traces everybody")));
}
