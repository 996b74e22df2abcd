//! Mistakes in `[[cluster]]` and below it.

use super::one_error_each;

#[test]
fn one_mistake_of_where_endpoints_come_from_is_one_error() {
    one_error_each(&[
        (
            "[[cluster]]\nname = \"b\"\n[cluster.file]\ninterval = \"1s\"",
            3,
            1,
            "`path` is missing",
            "app.endpoints",
        ),
        (
            "[[cluster]]\nname = \"b\"\nendpoints = [\"b:1\"]\n[cluster.file]\npath = \"/a\"",
            4,
            10,
            "from one place alone",
            "keep",
        ),
        (
            "[[cluster]]\nname = \"b\"\n[cluster.dns]\nname = \"a\"\nport = 1\n[cluster.file]\npath = \"/a\"",
            3,
            10,
            "from one place alone",
            "keep",
        ),
        ("[[cluster]]\nname = \"b\"\n[cluster.dns]\nname = \"a.test\"", 3, 1, "`port` is missing", "3000"),
        ("[[cluster]]\nname = \"b\"\n[cluster.dns]\nport = 80", 3, 1, "`name` is missing", "app.internal"),
        (
            "[[cluster]]\nname = \"b\"\n[cluster.dns]\nport = 80\nname = \"10.0.0.1\"",
            5,
            8,
            "wants a name in DNS",
            "`endpoints`",
        ),
        (
            "[[cluster]]\nname = \"b\"\n[cluster.dns]\nport = 80\nname = \"a..b\"",
            5,
            8,
            "wants a name in DNS",
            "labels of 1 to 63",
        ),
        (
            "[[cluster]]\nname = \"b\"\n[cluster.dns]\nrecords = \"srv\"\nname = \"a.test\"",
            5,
            8,
            "wants a name in DNS",
            "_http._tcp",
        ),
        (
            "[[cluster]]\nname = \"b\"\n[cluster.dns]\nrecords = \"srv\"\nname = \"_a._tcp.test\"\nport = 80",
            6,
            1,
            "`port` does not go with",
            "SRV records",
        ),
        (
            "[[cluster]]\nname = \"b\"\n[cluster.dns]\nname = \"a\"\nport = 80\nmin_ttl = \"5m\"",
            6,
            1,
            "`min_ttl` is more than `max_ttl`",
            "raise",
        ),
        (
            "[[cluster]]\nname = \"b\"\n[cluster.dns]\nname = \"a\"\nport = 80\nservers = [\"dns.test\"]",
            6,
            12,
            "wants an address and a port",
            "",
        ),
    ]);
}

#[test]
fn one_mistake_of_a_cluster_is_one_error() {
    one_error_each(&[
        (
            "[[cluster]]\nname = \"b\"\nendpoints = [\"b:1 weight=0\"]",
            3,
            14,
            "nothing that an endpoint has",
            "weight=1",
        ),
        (
            "[[cluster]]\nname = \"b\"\nendpoints = [\"unix:app.sock\"]",
            3,
            14,
            "wants an endpoint",
            "absolute",
        ),
        (
            "[[cluster]]\nname = \"b\"\nendpoints = [\"b:1\"]\nprotocol = \"auto\"",
            4,
            1,
            "decided in the TLS handshake",
            "tls = true",
        ),
        (
            "[[cluster]]\nname = \"b\"\nendpoints = [\"b:1\"]\ntls_ca = \"x\"",
            4,
            1,
            "goes only with `tls = true`",
            "",
        ),
        (
            "[[cluster]]\nname = \"b\"\nendpoints = [\"b:1\"]\ntls = true\ntls_ca = \"x\"\ntls_verify = false",
            5,
            1,
            "does not go with `tls_verify",
            "remove one",
        ),
        (
            "[[cluster]]\nname = \"b\"\nendpoints = [\"b:1\"]\ntls = true\ntls_key = \"x\"",
            5,
            1,
            "go together",
            "",
        ),
    ]);
}

#[test]
fn one_mistake_of_balancing_retrying_or_checking_is_one_error() {
    one_error_each(&[
        (
            "[[cluster]]\nname = \"b\"\nendpoints = [\"b:1\"]\nbalance = \"maglev\"",
            4,
            1,
            "nothing is hashed",
            "client-ip",
        ),
        (
            "[[cluster]]\nname = \"b\"\nendpoints = [\"b:1\"]\nbalance = \"roundrobin\"",
            4,
            11,
            "must be one of",
            "round-robin",
        ),
        (
            "[[cluster]]\nname = \"b\"\nendpoints = [\"b:1\"]\nhash_on = [\"path\"]",
            4,
            1,
            "goes only with `balance",
            "",
        ),
        (
            "[[cluster]]\nname = \"b\"\nendpoints = [\"b:1\"]\nbalance = \"maglev\"\nhash_on = [\"ip\"]",
            5,
            12,
            "nothing that can be hashed",
            "client-ip",
        ),
        (
            "[[cluster]]\nname = \"b\"\nendpoints = [\"b:1\"]\nbalance = \"maglev\"\nhash_on = [\"cookie:a b\"]",
            5,
            12,
            "wants the name of a cookie",
            "none of `=`",
        ),
        (
            "[[cluster]]\nname = \"b\"\nendpoints = [\"b:1\"]\nsticky_cookie = \"a=b\"",
            4,
            17,
            "wants the name of a cookie",
            "1 to 64 characters of a token",
        ),
        (
            "[[cluster]]\nname = \"b\"\nendpoints = [\"b:1\"]\nsticky_secure = true",
            4,
            1,
            "goes only with `sticky_cookie`",
            "",
        ),
        (
            "[[cluster]]\nname = \"b\"\nendpoints = [\"b:1\"]\nsticky_cookie = \"a\"\nsticky_key = \"12\"",
            5,
            14,
            "64 hexadecimal digits",
            "openssl rand",
        ),
        (
            "[[cluster]]\nname = \"b\"\nendpoints = [\"b:1\"]\nretry_statuses = [\"504-500\"]",
            4,
            19,
            "wants a status or a range",
            "503",
        ),
        (
            "[[cluster]]\nname = \"b\"\nendpoints = [\"b:1\"]\n[cluster.health]\nservice = \"x\"",
            5,
            1,
            "goes only with `check = \"grpc\"`",
            "",
        ),
        (
            "[[cluster]]\nname = \"b\"\nendpoints = [\"b:1\"]\n[cluster.health]\nmethod = \"HEAD\"\ncontains = \"x\"",
            4,
            1,
            "HEAD has no body",
            "",
        ),
    ]);
}
