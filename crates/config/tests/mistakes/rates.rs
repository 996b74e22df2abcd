//! Mistakes in rate limits and their store.

use super::one_error_each;

#[test]
fn one_mistake_is_one_error_in_rate_limits() {
    one_error_each(&[
        ("[rate_limit]\nper = \"1s\"", 1, 1, "`requests` is missing", "add `requests = 100`"),
        ("[rate_limit]\nrequests = 0", 2, 12, "must be from 1 to 1000000, found 0", ""),
        ("[rate_limit]\nrequests = 5\nmax_held = 6", 3, 12, "`max_held` goes with `tarpit`", "add `tarpit"),
        (
            "[rate_limit]\nrequests = 5\nbody_type = \"a/b\"",
            3,
            1,
            "`body_type` goes with `body`",
            "add `body",
        ),
        ("[rate_limit]\nrequests = 5\nbody = \"\"\nbody_type = \"a/b\"", 4, 1, "goes with `body`", ""),
        ("[rate_limit]\nrequests = 5\nbody = 3\nbody_type = \"a/b\"", 3, 8, "`body` wants a string", ""),
        ("rate_limit = []", 1, 14, "`rate_limit` is an empty list", "write `[rate_limit]`"),
        (
            "[[rate_limit]]\nrequests = 5\n[[rate_limit]]\nrequests = 6",
            3,
            1,
            "two rules are called `default`",
            "a `name` of its own",
        ),
    ]);
}

#[test]
fn one_mistake_is_one_error_in_what_is_counted_by() {
    one_error_each(&[
        (
            "[rate_limit]\nrequests = 1\nkey = [\"field:\"]",
            3,
            8,
            "`key[0]` wants what to count by",
            "\"client\", \"host\"",
        ),
        ("[rate_limit]\nrequests = 1\nkey = [\"path:x\"]", 3, 8, "`key[0]` wants what to count by", ""),
        ("[rate_limit]\nrequests = 1\nkey = [\"path:0\"]", 3, 8, "`key[0]` wants what to count by", ""),
        (
            "[rate_limit]\nrequests = 1\nkey = [\"host\"]\nv4_prefix = 24",
            4,
            1,
            "`v4_prefix` goes with \"client\" in the key",
            "no address",
        ),
        (
            "[rate_limit]\nrequests = 1\nkey = [\"host\"]\nelse_key = [\"path\"]\nv6_prefix = 56",
            5,
            1,
            "`v6_prefix` goes with \"client\"",
            "",
        ),
        ("[rate_limit]\nrequests = 1\nkey = [\"clint\"]\nv4_prefix = 24", 3, 8, "found \"clint\"", ""),
        (
            "[rate_limit]\nrequests = 1\nkey = [\"cookie:a b\"]",
            3,
            8,
            "`key[0]` wants the name of a cookie, found \"a b\"",
            "none of `=`",
        ),
    ]);
}

#[test]
fn one_mistake_is_one_error_in_what_requests_take() {
    one_error_each(&[
        (
            "[rate_limit]\nrequests = 5\ncost = 6",
            3,
            8,
            "a request costs 6, and `burst` is 5",
            "it could never pass",
        ),
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
        ("[rate_limit]\nrequests = 5\nmethod_costs = [\"POST=6\"]", 3, 17, "costs 6, and `burst` is 5", ""),
        (
            "[rate_limit]\nrequests = 1\nper = \"30d\"\nburst = 122\ncost = 122",
            4,
            9,
            "`burst` is more than what refills in ten years, 121",
            "lower it",
        ),
        (
            "[rate_limit]\nrequests = 1\nper = \"30d\"\nburst = 121\ncost = 122",
            5,
            8,
            "a request costs 122, and `burst` is 121",
            "it could never pass",
        ),
        ("[rate_limit]\ncost = 5", 1, 1, "`requests` is missing", ""),
    ]);
}

#[test]
fn one_mistake_is_one_error_in_stores_and_what_is_shared() {
    one_error_each(&[
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
        ("[rate_limit_store]\nurl = \"rediss://a\"", 2, 7, "there is no TLS to the store", "a tunnel"),
        ("[rate_limit_store]\nurl = \"redis://\"", 2, 7, "is not the address of a store", "a host"),
        ("[rate_limit_store]\nurl = \"redis://10.0.0.5:99999\"", 2, 7, "is not the address", "and a port"),
        ("[rate_limit_store]\nurl = \"redis://10.0.0.5/x\"", 2, 7, "is not the address", ""),
        (
            "[rate_limit]\nrequests = 5\nshared = \"open\"",
            3,
            1,
            "`shared` has no store",
            "[rate_limit_store]",
        ),
        ("[rate_limit]\nrequests = 5\nshared = \"local\"", 3, 1, "`shared` has no store", ""),
        (
            "[[route]]\npath = \"/x\"\nrespond = \"\"\n[route.rate_limit]\nrequests = 5\nshared = \"closed\"",
            6,
            1,
            "`shared` has no store",
            "add a `[rate_limit_store]` at the top level",
        ),
        ("[rate_limit_store]\nurl = \"http://a\"", 2, 7, "is not the address of a store", "redis://"),
    ]);
}
