//! Mistakes in `[acme]` and below it.

use super::*;

#[test]
fn one_mistake_is_one_error_of_acme() {
    one_error_each(&[
        (
            "[[certificate]]\nacme = [\"localhost\"]",
            2,
            8,
            "no certificate can be issued for \"localhost\"",
            "",
        ),
        ("[[certificate]]\nacme = [\"*.example.com\"]", 2, 8, "proved by dns-01 alone", ""),
        (
            "[[certificate]]\nacme = [\"a.example.com\"]\n[[certificate]]\nacme = [\"b.example.com\", \"a.example.com\"]",
            4,
            8,
            "a.example.com is issued twice",
            "leave it in one",
        ),
        (
            "[[certificate]]\nacme = [\"a.example.com\"]\ncert = \"c.pem\"\nkey = \"k.pem\"",
            2,
            1,
            "`acme` does not go with `cert`",
            "of its own",
        ),
        (
            "[acme]\ndirectory = \"http://ca.test/\"\n[acme.on_demand]\nask = \"http://a.test/\"",
            2,
            13,
            "wants an ACME directory",
            "letsencrypt",
        ),
        (
            "[acme]\ncontacts = [\"me\"]\n[acme.on_demand]\nask = \"http://a.test/\"",
            2,
            13,
            "wants a mail address",
            "",
        ),
        (
            "[acme]\neab_key_id = \"k\"\n[acme.on_demand]\nask = \"http://a.test/\"",
            1,
            1,
            "`eab_hmac_key` is missing",
            "",
        ),
        (
            "[acme]\ndns_timeout = \"5s\"\n[acme.on_demand]\nask = \"http://a.test/\"",
            2,
            1,
            "`dns_timeout` goes only with",
            "challenge",
        ),
        (
            "[acme]\nchallenge = \"dns-01\"\n[[certificate]]\nacme = [\"*.example.com\"]",
            1,
            1,
            "`dns_hook` is missing",
            "add `dns_hook",
        ),
        (
            "[acme]\nretry_min = \"2h\"\nretry_max = \"1h\"\n[acme.on_demand]\nask = \"http://a.test/\"",
            3,
            1,
            "less than `retry_min`",
            "",
        ),
        ("[acme.on_demand]\nwait = \"5s\"", 1, 1, "`ask` is missing", "add `ask"),
        ("[acme.on_demand]\nask = \"ftp://a.test/\"", 2, 7, "wants an http or https URL", "200 means yes"),
        (
            "[acme]\nchallenge = \"dns-01\"\ndns_hook = [\"x\"]\n[acme.on_demand]\nask = \"http://a.test/\"",
            4,
            1,
            "does not go with `challenge = \"dns-01\"`",
            "record",
        ),
    ]);
}
