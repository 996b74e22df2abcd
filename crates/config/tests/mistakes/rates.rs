//! Mistakes in rate limits and their store.

use super::one_error_each;

#[test]
fn one_mistake_is_one_error_in_rate_limits() {
    one_error_each(&[
        ("[rate_limit]\nper = \"1s\"", 1, 1, "`requests` is missing", "add `requests = 100`"),
        ("[rate_limit]\nrequests = 0", 2, 12, "must be from 1 to 1000000, found 0", ""),
        (
            "[rate_limit]\nrequests = 1\nkey = [\"field:\"]",
            3,
            8,
            "`key[0]` wants what to count by",
            "\"client\", \"host\"",
        ),
        ("[rate_limit]\nrequests = 1\nkey = [\"path:x\"]", 3, 8, "`key[0]` wants what to count by", ""),
        (
            "[rate_limit]\nrequests = 5\ncost = 6",
            3,
            8,
            "a request costs 6, and `burst` is 5",
            "it could never pass",
        ),
        ("[rate_limit]\nrequests = 5\nmax_held = 6", 3, 12, "`max_held` goes with `tarpit`", "add `tarpit"),
        ("[rate_limit]\nrequests = 5\nmethod_costs = [\"POST\"]", 3, 17, "wants a method and its cost", ""),
        (
            "[rate_limit]\nrequests = 5\nmethod_costs = [\"post=5\"]",
            3,
            17,
            "wants a method, found \"post\"",
            "in capital letters",
        ),
        (
            "[rate_limit]\nrequests = 5\nmethod_costs = [\"POST=5\", \"PUT=2\", \"POST=1\"]",
            3,
            36,
            "`POST` has two costs",
            "leave one out",
        ),
        (
            "[rate_limit_store]\nurl = \"unix:///a\"\n[rate_limit]\nrequests = 1000\nshared = \"open\"\n\
             [[route]]\npath = \"/login\"\ncluster = \"app\"\n[route.rate_limit]\nrequests = 5\nshared = \"open\"",
            6,
            1,
            "the shared rule `default` has the buckets of that of the top level, by another key or rate",
            "a `name` of its own",
        ),
        (
            "[rate_limit_store]\nurl = \"unix:///a\"\n\
             [[route]]\npath = \"/a\"\ncluster = \"app\"\n[route.rate_limit]\nrequests = 5\nshared = \"open\"\n\
             [[route]]\npath = \"/b\"\ncluster = \"app\"\n[route.rate_limit]\nrequests = 5\nkey = [\"host\"]\nshared = \"open\"",
            9,
            1,
            "of that of the route on line 3",
            "",
        ),
        ("rate_limit = []", 1, 14, "`rate_limit` is an empty list", "write `[rate_limit]`"),
        (
            "[[rate_limit]]\nrequests = 5\n[[rate_limit]]\nrequests = 6",
            3,
            1,
            "two rules are called `default`",
            "a `name` of its own",
        ),
        ("[rate_limit_store]\nurl = \"rediss://a\"", 2, 7, "there is no TLS to the store", "a tunnel"),
        ("[rate_limit_store]\nurl = \"http://a\"", 2, 7, "is not the address of a store", "redis://"),
    ]);
}
