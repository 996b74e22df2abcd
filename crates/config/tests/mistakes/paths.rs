//! Paths on disk: an empty one would be the directory of the configuration file, and what is in it would be served.

use super::one_error_each;

const EMPTY: &str = "is an empty path";
const NUL: &str = "is no path: it has a NUL character in it";

#[test]
fn an_empty_path_or_one_with_a_nul_is_one_error_everywhere() {
    let own = "own directory";
    one_error_each(&[
        ("[[route]]\npath = \"/a\"\nfiles = \"\"", 3, 9, EMPTY, own),
        ("[[route]]\npath = \"/a\"\nfiles = \"a\\u0000b\"", 3, 9, NUL, ""),
        ("[[route]]\npath = \"/a\"\nfiles = 1", 3, 9, "`files` wants a path, found the integer 1", ""),
        ("[maintenance]\nfile = \"\"", 2, 8, EMPTY, own),
        ("[maintenance]\nfile = \"\\u0000\"", 2, 8, NUL, ""),
        ("[cache.disk]\npath = \"\"", 2, 8, EMPTY, own),
        ("[cache.disk]\npath = \"a\\u0000\"", 2, 8, NUL, ""),
        ("[qlog]\ndirectory = \"\"\nclients = [\"::1\"]", 2, 13, EMPTY, own),
        ("[qlog]\ndirectory = \"\\u0000\"\nclients = [\"::1\"]", 2, 13, NUL, ""),
        ("[quic]\ntoken_keys = \"\"", 2, 14, EMPTY, own),
        ("[quic]\nserver_id = \"01\"\nid_key = \"\\u0000\"", 3, 10, NUL, ""),
        ("[[certificate]]\ndirectory = \"\"", 2, 13, EMPTY, own),
        ("[filter]\ncountries = \"\"", 2, 13, EMPTY, own),
        ("[[filter.rule]]\naction = \"deny\"\nclient_files = [\"\"]", 3, 17, EMPTY, own),
        ("[basic_auth]\nusers = \"\"", 2, 9, EMPTY, own),
        ("[access_log]\noutput = \"a/\\u0000\"", 2, 10, NUL, ""),
        ("[access_log]\noutput = \"syslog:/\\u0000\"", 2, 10, NUL, ""),
    ]);
}
