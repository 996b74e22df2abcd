//! Mistakes in the cache, and in paths that are hidden.

use super::one_error_each;

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
        ("[cache]\nquery = \"none\"\nquery_only = [\"a\"]", 1, 1, "exclude one another", "keep one"),
        ("[cache]\nttl = [{ status = \"4\", time = \"1m\" }]", 2, 19, "names no statuses", "\"5xx\""),
        ("[cache]\nttl = [{ status = \"404\" }]", 2, 8, "`time` is missing", "add `time = \"1m\"`"),
        ("[cache]\nkey_cookies = [\"a=b\"]", 2, 16, "`key_cookies[0]` is no name", "a `*` at the end"),
    ]);
}
