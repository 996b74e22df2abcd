//! `[quic]` and `[qlog]`: what all QUIC endpoints have in common; `[listener.quic]`.

use std::time::Duration;

use portcullis_edge::{
    h3::{Congestion, EndpointError, QuicOptions, Retry, RoutableIds},
    plan::{ListenerMode, ListenerPlan, Plan, QlogPlan, RoutableIdsPlan, hex},
};
use toml::de::DeValue;

use crate::{
    disk,
    errors::escape,
    net::network,
    reader::{Read, Table, Wrong},
    values::{boolean, choice, duration, integer, secs, size, word},
};

/// Keys that say more about `server_id`.
const ID_KEYS: [&str; 4] = ["rotation", "nonce_length", "id_key", "length_in_first_octet"];

pub(crate) fn read(root: &mut Table<'_, '_>, plan: &mut Plan) {
    if let Some(table) = root.table("qlog", "`[qlog]`") {
        plan.quic.qlog = qlog(table);
    }
    let Some(mut table) = root.table("quic", "`[quic]`") else { return };
    plan.quic.ids = ids(&mut table);
    table.set("token_keys", &mut plan.quic.keys, |value| disk::file(value).map(Some));
    table.finish();
}

fn qlog(mut table: Table<'_, '_>) -> Option<QlogPlan> {
    let directory = table.need("directory", "\"/var/log/portcullis/qlog\"", disk::path);
    let clients = table.need_list("clients", "\"192.0.2.7\"", network);
    if let Some(clients) = &clients {
        for network in clients.get_ref().iter().filter(|network| network.get_ref().prefix_len() == 0) {
            let wrong = Wrong::new(format!(
                "`{}` traces everybody: each packet is written to a file",
                network.get_ref()
            ))
            .hint("name the clients that are looked into");
            table.sink().warn(network.span(), wrong);
        }
    }
    let networks =
        clients.iter().flat_map(|clients| clients.get_ref().iter().map(|network| *network.get_ref()));
    let path = directory.as_ref().map(|directory| directory.get_ref().clone()).unwrap_or_default();
    let mut plan = QlogPlan::new(path, networks);
    table.set("max_files", &mut plan.max_files, integer(1..=100_000));
    table.set("max_file_size", &mut plan.max_file_size, size(64 << 10..=16 << 30));
    table.set("max_total_size", &mut plan.max_total_size, size(64 << 10..=1 << 40));
    table.finish();
    (directory.is_some() && clients.is_some()).then_some(plan)
}

/// `[listener.quic]`.
pub(crate) fn listener(table: &mut Table<'_, '_>, plan: &mut ListenerPlan) {
    let Some(mut quic) = table.table("quic", "`[listener.quic]`") else { return };
    if !matches!(plan.mode, ListenerMode::Https { http3: true, .. }) {
        let wrong = Wrong::new("`[listener.quic]` has no meaning without HTTP/3");
        quic.sink().error(quic.span(), wrong.hint("remove it, or do not turn `http3` off"));
    }
    let to = &mut plan.quic;
    streams(&mut quic, to);
    packets(&mut quic, to);
    handshakes(&mut quic, to);
    let max = |value: &DeValue<'_>| size::<u64>(256 << 10..=1 << 40)(value).map(Some);
    let ceiling = quic.key_span("max_connection_memory");
    quic.set("max_connection_memory", &mut to.max_connection_memory, max);
    if let Err(error) = to.check() {
        let at =
            ceiling.filter(|_| matches!(error, EndpointError::Memory { .. })).unwrap_or_else(|| quic.span());
        let hint = "each is explained in REFERENCE.md";
        quic.sink().error(at, Wrong::new(in_words_of_the_file(&error.to_string())).hint(hint));
    }
    quic.finish();
}

/// Options are called otherwise in the file where others stand beside them.
fn in_words_of_the_file(error: &str) -> String {
    let names = [
        ("max_bidi_streams", "max_streams"),
        ("max_udp_payload", "max_mtu"),
        ("max_incoming", "max_handshakes"),
        ("incoming_buffer_size", "incoming_buffer"),
        ("max_idle_timeout", "idle_timeout"),
    ];
    names.iter().fold(error.to_owned(), |error, (from, to)| error.replace(from, &format!("`{to}`")))
}

fn streams(quic: &mut Table<'_, '_>, to: &mut QuicOptions) {
    quic.set("max_uni_streams", &mut to.max_uni_streams, integer(3..=1000));
    quic.set("stream_window", &mut to.stream_window, size(1 << 10..=256 << 20));
    quic.set("connection_window", &mut to.connection_window, size(1 << 10..=1 << 30));
    quic.set("send_window", &mut to.send_window, size(4 << 10..=1 << 30));
    quic.set("idle_timeout", &mut to.max_idle_timeout, duration(secs(1)..=secs(86_400)));
    quic.set("keep_alive", &mut to.keep_alive, |value| duration(secs(1)..=secs(3600))(value).map(Some));
    quic.set("datagrams", &mut to.datagrams, boolean);
    quic.set("datagram_buffer", &mut to.datagram_buffer, size(1200..=16 << 20));
}

fn packets(quic: &mut Table<'_, '_>, to: &mut QuicOptions) {
    let controllers =
        [("cubic", Congestion::Cubic), ("newreno", Congestion::NewReno), ("bbr", Congestion::Bbr)];
    quic.set("congestion", &mut to.congestion, choice(&controllers));
    let window = |value: &DeValue<'_>| size(2400..=1 << 20)(value).map(Some);
    quic.set("initial_congestion_window", &mut to.initial_congestion_window, window);
    quic.set("min_mtu", &mut to.min_mtu, integer(1200..=65_527));
    quic.set("initial_mtu", &mut to.initial_mtu, integer(1200..=65_527));
    quic.set("max_mtu", &mut to.max_udp_payload, integer(1200..=65_527));
    quic.set("mtu_discovery", &mut to.mtu_discovery, boolean);
    quic.set("gso", &mut to.segmentation_offload, boolean);
    quic.set("migration", &mut to.migration, boolean);
}

fn handshakes(quic: &mut Table<'_, '_>, to: &mut QuicOptions) {
    let retries = [("never", Retry::Never), ("under-load", Retry::UnderLoad), ("always", Retry::Always)];
    quic.set("retry", &mut to.retry, choice(&retries));
    if let (Some(at), true) = (quic.key_span("retry_threshold"), to.retry != Retry::UnderLoad) {
        let wrong = Wrong::new("`retry_threshold` goes only with `retry = \"under-load\"`");
        quic.sink().error(at, wrong.hint("remove it, or ask for retries under load"));
    }
    quic.set("retry_threshold", &mut to.retry_threshold, |value| integer(1..=100_000)(value).map(Some));
    quic.set("max_handshakes", &mut to.max_incoming, integer(1..=100_000));
    quic.set("incoming_buffer", &mut to.incoming_buffer_size, size(4 << 10..=16 << 20));
    quic.set("incoming_buffer_total", &mut to.incoming_buffer_total, size(4 << 10..=1 << 30));
    quic.set("token_lifetime", &mut to.token_lifetime, duration(Duration::ZERO..=secs(14 * 86_400)));
}

fn ids(table: &mut Table<'_, '_>) -> Option<RoutableIdsPlan> {
    let at = table.key_span("server_id");
    if at.is_none() {
        for key in ID_KEYS {
            if let Some(at) = table.key_span(key) {
                let wrong = Wrong::new(format!("`{key}` goes only with `server_id`"));
                table.sink().error(at, wrong.hint("remove it, or give this instance an id"));
            }
        }
    }
    let server_id = table.get("server_id", server_id);
    // read even without one, for the errors in them
    let id = server_id.as_ref().map_or_else(|| vec![0], |id| id.get_ref().clone());
    let mut to = RoutableIdsPlan::new(RoutableIds::new(id));
    table.set("rotation", &mut to.ids.rotation, integer(0..=6));
    table.set("nonce_length", &mut to.ids.nonce_len, integer(4..=16));
    table.set("id_key", &mut to.key, |value| disk::file(value).map(Some));
    table.set("length_in_first_octet", &mut to.ids.length_in_first_octet, boolean);
    if let (Err(error), Some(at)) = (to.ids.check(), at) {
        let hint = "draw up shorter ids for all instances, or give them shorter nonces (`nonce_length`)";
        table.sink().error(at, Wrong::new(error.to_string()).hint(hint));
    }
    server_id.map(|_| to)
}

fn server_id(value: &DeValue<'_>) -> Read<Vec<u8>> {
    let digits = word(value, "hexadecimal digits", "0a01")?;
    hex(digits).filter(|id| (1..=13).contains(&id.len())).ok_or_else(|| {
        Wrong::new(format!("wants 1 to 13 bytes as hexadecimal digits, found \"{}\"", escape(digits)))
            .hint("two digits a byte, as many for every instance: \"0a01\"")
    })
}
