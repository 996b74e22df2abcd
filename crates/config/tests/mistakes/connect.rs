//! Mistakes in `[connect]`.

use super::{errors, one_error_each, told};

#[test]
fn one_mistake_of_connect_is_one_error() {
    const CLIENTS: &str = "clients = [\"::1\"]";
    let allow = |entry: &str| format!("[connect]\n{CLIENTS}\nallow = [\"a:1\", \"{entry}\"]");
    for (entry, hint) in [
        ("*", "every host is an open proxy"),
        ("*:443", "every host is an open proxy"),
        ("0.0.0.0/0:443", "every host is an open proxy"),
        ("[::/0]:443", "every host is an open proxy"),
        ("64.0.0.0/2:443", "the network is too large"),
        ("*.com:443", "\"*.example.com\""),
        ("db.internal", "\"db.internal:443\""),
        ("db.internal:*", "name the ports"),
        ("db.internal:0", "from 1 to 65535"),
        ("db.internal:9-1", "a range goes up"),
        ("10.0.0.1/8:22", "\"10.0.0.0/8\""),
        ("fd00::/8:22", "IPv6 stands in brackets"),
        ("[::ffff:10.0.0.1]:22", "write an IPv4 address as one"),
        ("https://db.internal:443", "without scheme"),
        ("127.1:443", "the host is a name"),
    ] {
        one_error_each(&[(&allow(entry), 3, 17, "`allow[1]` wants a host and its ports", hint)]);
    }
    let more = |line: &str| format!("[connect]\n{CLIENTS}\nallow = [\"a:1\"]\n{line}");
    for (line, column, message, hint) in [
        ("connect_timeout = \"1ms\"", 19, "must be from \"10ms\" to \"5m\"", ""),
        ("idle_timeout = \"31d\"", 16, "must be from \"1s\" to \"30d\"", ""),
        ("max_tunnels = 0", 15, "must be from 1 to 1000000", ""),
        ("deny = []", 1, "unknown key `deny`", "known keys: `allow`, `clients`"),
    ] {
        one_error_each(&[(&more(line), 4, column, message, hint)]);
    }
    let list = vec!["\"a:1\""; 257].join(", ");
    let many = format!("[connect]\n{CLIENTS}\nallow = [{list}]");
    one_error_each(&[
        ("[connect]\nclients = [\"::1\"]", 1, 1, "`allow` is missing in `[connect]`", "db.internal:5432"),
        ("[connect]\nallow = [\"a:1\"]", 1, 1, "`clients` is missing in `[connect]`", "127.0.0.1"),
        ("[connect]\nallow = [\"a:1\"]\nclients = []", 3, 11, "`clients` is an empty list", ""),
        ("[connect]\nallow = []\nclients = [\"::1\"]", 2, 9, "`allow` is an empty list", ""),
        ("[connect]\nallow = [\"a:1\"]\nclients = [\"me\"]", 3, 12, "`clients[0]` wants a network", ""),
        (&many, 3, 9, "`allow` has more than 256 entries", "a domain or a network"),
    ]);
}

/// What stands in the file stands in the message without its control characters.
#[test]
fn what_is_found_in_connect_is_escaped() {
    let told = told(&errors("[connect]\nallow = [\"\\u001b[1m\"]\nclients = [\"::1\"]")).join("\n");
    assert!(told.contains("\\u{1b}") && !told.contains('\u{1b}'), "{told}");
}
