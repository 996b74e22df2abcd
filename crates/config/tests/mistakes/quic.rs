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
            "id.key",
        ),
        ("[quic]\nserver = \"01\"", 2, 1, "unknown key `server`", "did you mean `server_id`?"),
    ]);
}
