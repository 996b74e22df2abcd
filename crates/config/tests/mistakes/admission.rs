//! Mistakes in who may pass.

use super::one_error_each;

#[test]
fn one_mistake_is_one_error_in_who_may_pass() {
    one_error_each(&[
        ("[filter]\ndefault = \"alow\"", 2, 11, "found \"alow\"", "did you mean \"allow\"?"),
        ("[[filter.rule]]\npaths = [\"/x\"]", 1, 1, "`action` is missing in `[[filter.rule]]`", "deny"),
        ("[[filter.rule]]\naction = \"hide\"\nregexes = [\"(\"]", 1, 1, "`(` is wrong or too large", ""),
        ("[[filter.rule]]\naction = \"hide\"\nglobs = [\"[\"]", 1, 1, "the glob `[` is wrong", ""),
        ("[[filter.rule]]\naction = \"hide\"\ncountries = [\"CH\"]", 1, 1, "countries need a database", ""),
        ("[[filter.rule]]\naction = \"allow\"\nstatus = 404", 3, 10, "goes with `action = \"deny\"`", ""),
        ("[basic_auth]\nrealm = \"x\"", 1, 1, "`users` is missing in `[basic_auth]`", "users.txt"),
        ("[jwt]\nalgorithms = [\"RS256\"]", 1, 1, "tokens need a key", "`public_keys`"),
        ("[jwt]\nalgorithms = [\"none\"]\nsecret = \"s\"", 2, 15, "no algorithm that tokens", "\"EdDSA\""),
        (
            "[jwt]\nalgorithms = [\"HS256\"]\nkey_set = \"s\"",
            1,
            1,
            "no key here can be for \"HS256\"",
            "public",
        ),
        (
            "[jwt]\nalgorithms = [\"RS256\"]\nsecret = \"s\"",
            1,
            1,
            "no key here can be for \"RS256\"",
            "secret",
        ),
        (
            "[jwt]\nsecret = \"s\"\nkey_set = \"s\"\nalgorithms = [\"HS256\"]",
            3,
            1,
            "does not go with",
            "one place",
        ),
        (
            "[forward_auth]\npath = \"/\"\ncluster = \"ap\"",
            3,
            11,
            "no cluster \"ap\"",
            "did you mean \"app\"?",
        ),
        ("[forward_auth]\npath = \"x\"\ncluster = \"app\"", 2, 8, "wants a path", "\"/verify\""),
        (
            "[cors]\norigins = [\"*\"]\ncredentials = true",
            3,
            15,
            "does not go with `origins",
            "name the origins",
        ),
        ("[cors]\norigins = [\"app.test\"]", 2, 12, "wants an origin", "https://"),
        ("[csrf]\ntrusted = [\"https://a.test:443\"]", 2, 12, "wants an origin", "leave the port"),
    ]);
}
