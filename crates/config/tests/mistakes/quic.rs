//! Mistakes in `[quic]` and `[listener.quic]`.

use super::one_error_each;

#[test]
fn one_mistake_of_quic_is_one_error() {
    let bytes = |count: usize| "0a".repeat(count);
    let long = format!("[quic]\nserver_id = \"{}\"\nnonce_length = 8", bytes(10));
    let longer = format!("[quic]\nserver_id = \"{}\"\nnonce_length = 4", bytes(14));
    one_error_each(&[
        ("[quic]\nrotation = 1", 2, 1, "`rotation` goes only with `server_id`", "give this instance an id"),
        ("[quic]\nid_key = \"a\"", 2, 1, "`id_key` goes only with `server_id`", ""),
        ("[quic]\nserver_id = 7", 2, 13, "wants hexadecimal digits, found the integer 7", "\"0a01\""),
        (
            "[quic]\nserver_id = \"0a0\"",
            2,
            13,
            "wants 1 to 13 bytes as hexadecimal digits",
            "two digits a byte",
        ),
        ("[quic]\nserver_id = \"\"", 2, 13, "wants 1 to 13 bytes as hexadecimal digits", "two digits a byte"),
        (&longer, 2, 13, "wants 1 to 13 bytes as hexadecimal digits", ""),
        (
            &long,
            2,
            1,
            "server id (10 bytes) and nonce (8) must have at most 17 bytes together",
            "shorter nonces",
        ),
        ("[quic]\nserver_id = \"01\"\nrotation = 7", 3, 12, "must be from 0 to 6, found 7", ""),
        ("[quic]\nserver_id = \"01\"\nnonce_length = 3", 3, 16, "must be from 4 to 16, found 3", ""),
        (
            "[quic]\nserver_id = \"01\"\nid_key = \"keys/\"",
            3,
            10,
            "`id_key` wants the path of a file",
            "leave it out",
        ),
        ("[quic]\nserver = \"01\"", 2, 1, "unknown key `server`", "did you mean `server_id`?"),
    ]);
}

#[test]
fn one_mistake_of_qlog_is_one_error() {
    let with = |line: &str| format!("[qlog]\ndirectory = \"/tmp\"\n{line}");
    one_error_each(&[
        (
            "[qlog]\nclients = [\"::1\"]",
            1,
            1,
            "`directory` is missing in `[qlog]`",
            "/var/log/portcullis/qlog",
        ),
        (&with(""), 1, 1, "`clients` is missing in `[qlog]`", "192.0.2.7"),
        (&with("clients = []"), 3, 11, "`clients` is an empty list", ""),
        (&with("clients = [\"me\"]"), 3, 12, "`clients[0]` wants a network", ""),
        (&with("clients = [\"::1\"]\nmax_files = 0"), 4, 13, "must be from 1 to 100000, found 0", ""),
    ]);
}

#[test]
fn one_mistake_of_a_listeners_quic_is_one_error() {
    let https = "[[certificate]]\nself_signed = [\"a\"]\n[[listener]]\naddress = \"[::]:443\"\nprotocol = \"https\"\n";
    let with = |more: &str, line: &str| format!("{https}{more}[listener.quic]\n{line}");
    for (more, line, at, message, hint) in [
        ("", "max_uni_streams = 2", (7, 19), "must be from 3 to 1000, found 2", ""),
        ("", "congestion = \"reno\"", (7, 14), "must be \"cubic\" or \"newreno\" or \"bbr\"", ""),
        ("", "token_lifetime = \"15d\"", (7, 18), "must be from \"0s\" to \"14d\"", ""),
        (
            "",
            "min_mtu = 1300",
            (6, 1),
            "option initial_mtu is out of bounds: at least min_mtu",
            "REFERENCE.md",
        ),
        ("", "initial_mtu = 1453", (6, 1), "initial_mtu is out of bounds: at most `max_mtu`", ""),
        (
            "",
            "stream_window = \"2MiB\"",
            (6, 1),
            "connection_window is out of bounds: at least stream_window",
            "",
        ),
        (
            "",
            "retry_threshold = 1025",
            (6, 1),
            "retry_threshold is out of bounds: from 1 to `max_handshakes`",
            "",
        ),
        (
            "",
            "retry = \"always\"\nretry_threshold = 5",
            (8, 1),
            "`retry_threshold` goes only with `retry",
            "",
        ),
        (
            "",
            "max_connection_memory = \"4MiB\"",
            (7, 1),
            "more than the 4194304 that it may: lower `max_streams` first",
            "",
        ),
        (
            "",
            "send_window = \"32MiB\"\nmax_connection_memory = \"16MiB\"",
            (8, 1),
            "lower send_window first",
            "",
        ),
        ("http3 = false\n", "", (7, 1), "`[listener.quic]` has no meaning without HTTP/3", "`http3`"),
    ] {
        one_error_each(&[(&with(more, line), at.0, at.1, message, hint)]);
    }
}
