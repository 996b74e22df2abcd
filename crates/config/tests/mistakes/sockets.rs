//! Mistakes in listeners' sockets.

use super::{errors, told};

#[test]
fn what_is_wrong_with_a_listeners_sockets() {
    let rest = "[[cluster]]\nname = \"app\"\nendpoints = [\"app:80\"]\n[[route]]\ncluster = \"app\"\n";
    for (listener, expected) in [
        ("address = \"/run/a.sock\"", "for a unix socket write \"unix:/run/a.sock\""),
        ("address = \"unix:\"", "unix:/run/portcullis/http.sock"),
        ("address = \"systemd:a:b\"", "FileDescriptorName="),
        ("address = \"unix:/a\"\nonly_v6 = true", "`only_v6` has no meaning for unix:/a"),
        ("address = \"0.0.0.0:80\"\nv4_fallback = true", "`v4_fallback` has no meaning for 0.0.0.0:80"),
        (
            "address = \"unix:/a\"\n[listener.tcp]\nnodelay = true",
            "`[listener.tcp]` has no meaning for unix:/a",
        ),
        ("address = \"[::]:80\"\n[listener.unix]\nmode = \"0660\"", "`[listener.unix]` has no meaning"),
        ("address = \"unix:/a\"\n[listener.unix]\nmode = \"0999\"", "three octal digits"),
        ("address = \"unix:/a\"\n[listener.unix]\nuser = \"a:b\"", "/etc/passwd"),
        ("address = \"[::]:80\"\n[listener.tcp]\nkeepalive_retries = 3", "goes only with `keepalive`"),
        ("address = \"[::]:80\"\n[listener.tcp]\ncongestion = \"b b\"", "tcp_available_congestion_control"),
        ("address = \"[::]:80\"\n[listener.tcp]\ndscp = 64", "must be from 0 to 63"),
        ("address = \"[::]:80\"\n[listener.proxy_protocol]\ntimeout = \"1s\"", "`trusted` is missing"),
    ] {
        let (address, tables) = listener.split_once("\n[").map_or((listener, ""), |(a, b)| (a, b));
        let tables = if tables.is_empty() { String::new() } else { format!("[{tables}\n") };
        let text = format!("[[listener]]\n{address}\nprotocol = \"http\"\n{tables}{rest}");
        let told = told(&errors(&text));
        assert_eq!(told.len(), 1, "{told:#?}");
        assert!(told[0].contains(expected), "{expected} is missing in {}", told[0]);
    }
    let twice = |address: &str| {
        format!("[[listener]]\naddress = \"{address}\"\nprotocol = \"http\"\n").repeat(2) + rest
    };
    for (address, expected) in [
        ("unix:/run/a.sock", "the address unix:/run/a.sock is listened on twice"),
        ("systemd:web", "the sockets called \"web\" are listened on twice"),
    ] {
        let told = told(&errors(&twice(address)));
        assert!(told.len() == 1 && told[0].contains(expected), "{told:#?}");
    }
    let limits = format!(
        "[limits]\nclient_delay = \"1s\"\n[[listener]]\naddress = \"[::]:80\"\nprotocol = \"http\"\n{rest}"
    );
    let told = told(&errors(&limits));
    assert!(
        told.iter().any(|told| told.contains("goes only with `max_connections_per_client`")),
        "{told:#?}"
    );
}
