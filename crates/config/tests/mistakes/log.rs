//! `[access_log]`.

use super::one_error_each;

#[test]
fn of_the_access_log() {
    one_error_each(&[
        ("[access_log]\noutput = \"stdot\"", 2, 10, "found \"stdot\"", "slash"),
        ("[access_log]\noutput = \"syslog:x\"", 2, 10, "found \"syslog:x\"", "slash"),
        (
            "[access_log]\ntemplate = '$client \"$metod $target\"'",
            2,
            22,
            "there is no field \"metod\"",
            "did you mean \"method\"?",
        ),
        ("[access_log]\ntemplate = \"$duraton_ms\"", 2, 13, "no field", "did you mean \"duration_ms\"?"),
        (
            "[access_log]\ntemplate = \"\\\"$x\\\"\"",
            2,
            12,
            "at character 2: there is no field",
            "docs/access-log.md",
        ),
        ("[access_log]\ntemplate = \"a ${b\"", 2, 15, "`${` without `}`", ""),
        ("[access_log]\ntemplate = \"${header:authorization}\"", 2, 13, "never logged", "cookie:NAME"),
        (
            "[access_log]\ntemplate = \"$status\"\nformat = \"json\"",
            3,
            1,
            "`format` does not go with",
            "remove one",
        ),
        ("[access_log]\nfields = [\"time\"]", 2, 1, "`fields` goes only with", "add `format = \"json\"`"),
        ("[access_log]\nformat = \"json\"\nfields = [\"tim\"]", 3, 11, "no field \"tim\"", "mean \"time\"?"),
        ("[access_log]\nformat = \"json\"\nfields = [\"conn\", \"conn\"]", 3, 19, "this name twice", ""),
        ("[access_log]\nredact = [1]", 2, 11, "the name of a parameter", "\"off\""),
        ("[access_log]\nsample = 0", 2, 10, "must be from 1", ""),
        (
            "[[route]]\npath = \"/x\"\nrespond = \"\"\n[route.access_log]\nsample = 2",
            4,
            8,
            "samples a log that is not there",
            "`[access_log]` at the top level",
        ),
        ("[access_log]\nmax_wait = \"1s\"", 2, 1, "goes only with `overflow", "nobody waits"),
    ]);
}
