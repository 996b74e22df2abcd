//! Mistakes in the cache, and in paths that are hidden.

use super::one_error_each;

const ROUTE: &str = "[[route]]\npath = \"/x\"\nrespond = \"\"\n[route.cache]\nmax_ttl = \"1h\"";

/// A mistake in `[cache]`, `[access_log]` or `[rate_limit_store]` is told by itself, and not again by everything that needs it.
#[test]
fn what_is_there_with_a_mistake_is_there() {
    let rate =
        "[[route]]\npath = \"/x\"\nrespond = \"\"\n[route.rate_limit]\nrequests = 1\nshared = \"open\"";
    let log = "[[route]]\npath = \"/x\"\nrespond = \"\"\n[route.access_log]\nsample = 2";
    let with = |mistake: &str, rest: &str| format!("{mistake}\n{rest}");
    one_error_each(&[
        (&with("cache = \"off\"", ROUTE), 1, 9, "`cache` wants one table", ""),
        (&with("cache = 3", ROUTE), 1, 9, "`cache` wants one table, found the integer 3", ""),
        (&with("[cache]\nmax_size = 3", ROUTE), 2, 12, "`max_size` wants a size", ""),
        (&with("access_log = 3", log), 1, 14, "`access_log` wants one table", ""),
        (&with("rate_limit_store = 3", rate), 1, 20, "`rate_limit_store` wants one table", ""),
        (&with("[rate_limit_store]", rate), 1, 1, "`url` is missing", ""),
        // the parser loses a part of the file, which may have been it
        (&with("threads = 1 2", ROUTE), 1, 11, "", ""),
    ]);
}

#[test]
fn one_mistake_is_one_error_in_the_cache() {
    one_error_each(&[
        ("[filter]\ndeny = [\".git\"]", 2, 9, "`deny[0]` wants a path", "\"/.git\""),
        ("[cache]\nmax_size = \"1MiB\"\nmax_object = \"2MiB\"", 3, 14, "larger than `max_size`", "is 1MiB"),
        (
            "[cache]\nmax_size = \"1MiB\"\n[[route]]\npath = \"/x\"\nrespond = \"\"\n[route.cache]\nmax_object = \"2MiB\"",
            7,
            14,
            "larger than `max_size`",
            "is 1MiB",
        ),
        ("[cache]\nmax_object = \"1GiB\"\nmax_size = \"1GiB\"", 2, 14, "larger than `max_fill`", "is 64MiB"),
        (
            "[cache]\nheuristic_max = \"1h\"",
            2,
            1,
            "bounds nothing without `heuristic`",
            "add `heuristic = 10`",
        ),
        (
            "[cache]\nquery = \"none\"\nquery_only = [\"a\"]",
            3,
            1,
            "`query_only` does not go with `query`",
            "one key says",
        ),
        (
            "[cache]\nquery_only = [\"a\"]\nquery_without = [\"b\"]",
            2,
            1,
            "`query_only` does not go with `query_without`",
            "one key says",
        ),
        ("[cache]\nttl = [{ status = \"4\", time = \"1m\" }]", 2, 19, "names no statuses", "\"5xx\""),
        ("[cache]\nttl = [{ status = \"404\" }]", 2, 8, "`time` is missing", "add `time = \"1m\"`"),
        (
            "[cache]\nkey_cookies = [\"a=b\"]",
            2,
            16,
            "`key_cookies[0]` wants the name of a cookie",
            "none of `=`",
        ),
        (
            "[cache]\nbypass_cookies = [\"a b\"]",
            2,
            19,
            "wants the name of a cookie, found \"a b\"",
            "none of `=`",
        ),
        ("[cache]\nquery_only = [\"a=b\"]", 2, 15, "`query_only[0]` is no name", "a `*` at the end"),
        (
            ROUTE,
            4,
            8,
            "`[route.cache]` has no cache to put anything into",
            "add a `[cache]` at the top level",
        ),
    ]);
}
