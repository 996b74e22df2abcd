//! Mistakes in who may pass.

use super::one_error_each;

#[test]
fn one_mistake_is_one_error_in_who_may_pass() {
    one_error_each(&[
        ("[filter]\ndefault = \"alow\"", 2, 11, "found \"alow\"", "did you mean \"allow\"?"),
        ("[[filter.rule]]\npaths = [\"/x\"]", 1, 1, "`action` is missing in `[[filter.rule]]`", "deny"),
        ("[basic_auth]\nrealm = \"x\"", 1, 1, "`users` is missing in `[basic_auth]`", "users.txt"),
        ("[jwt]\nalgorithms = [\"RS256\"]", 1, 1, "tokens need a key", "`public_keys`"),
        ("[jwt]\nalgorithms = [\"none\"]\nsecret = \"s\"", 2, 15, "no algorithm that tokens", "\"EdDSA\""),
        (
            "[jwt]\nalgorithms = [\"RS256\", \"HS256\"]\nkey_set = \"s\"",
            2,
            24,
            "no key here can be for \"HS256\"",
            "public",
        ),
        (
            "[jwt]\nalgorithms = [\"RS256\"]\nsecret = \"s\"",
            2,
            15,
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
            "[forward_auth]\npath = \"/\"\ncluster = \"app\"\nhost = \"\"",
            4,
            8,
            "`host` wants a host",
            "app.internal:8080",
        ),
        (
            "[forward_auth]\npath = \"/\"\ncluster = \"app\"\nhost = \"a b\"",
            4,
            8,
            "`host` wants a host",
            "app.internal:8080",
        ),
    ]);
}

#[test]
fn one_mistake_is_one_error_in_rules_of_filters() {
    let rule = |line: &str| format!("[[filter.rule]]\naction = \"deny\"\n{line}");
    let long = "a".repeat(4097);
    let (agent, field) = (
        rule(&format!("user_agent = \"{long}\"")),
        rule(&format!("headers = {{ a = {{ regex = \"{long}\" }} }}")),
    );
    one_error_each(&[
        (&rule("regexes = [\"a\", \"(\"]"), 3, 17, "`(` is wrong or too large", ""),
        (&rule("globs = [\"[\"]"), 3, 10, "the glob `[` is wrong", ""),
        (&rule("query = \"(\""), 3, 9, "`(` is wrong or too large", ""),
        (&rule("user_agent = \"(\""), 3, 14, "`(` is wrong or too large", ""),
        (&rule("headers = { a = { regex = \"(\" } }"), 3, 11, "`(` is wrong or too large", ""),
        (&agent, 3, 14, "longer than 4096 bytes", ""),
        (&field, 3, 11, "longer than 4096 bytes", ""),
        (&rule("countries = [\"CH\"]"), 3, 13, "countries need a database", "to the filter"),
        ("[[filter.rule]]\naction = \"allow\"\nstatus = 404", 3, 10, "goes with `action = \"deny\"`", ""),
        ("[[filter.rule]]\naction = \"hide\"\nstatus = 403", 3, 10, "goes with `action = \"deny\"`", ""),
        ("[[filter.rule]]\naction = \"close\"\nstatus = 403", 3, 10, "goes with `action = \"deny\"`", ""),
    ]);
    let told = super::told(&super::errors(&rule("regexes = [\"(\", \"a\", \")\"]")));
    assert_eq!(told.iter().filter(|told| told.contains("is wrong or too large")).count(), 2, "{told:#?}");
}

#[test]
fn one_mistake_is_one_error_in_keys_of_tokens_and_fields_that_say_who_it_is() {
    one_error_each(&[
        ("[basic_auth]\nusers = \"u\"\nuser_header = \"te\"", 3, 15, "not a route's to change", "frame"),
        (
            "[jwt]\nalgorithms = [\"RS256\"]\nkey_set = \"s\"\nclaims = { sub = \"transfer-encoding\" }",
            4,
            10,
            "not a route's to change",
            "frame",
        ),
        (
            "[forward_auth]\npath = \"/\"\ncluster = \"app\"\nrequest_headers = [\"content-length\"]",
            4,
            20,
            "not a route's to change",
            "frame",
        ),
        (
            "[forward_auth]\npath = \"/\"\ncluster = \"app\"\nresponse_headers = [\"content-length\"]",
            4,
            21,
            "not a route's to change",
            "frame",
        ),
        (
            "[jwt]\nalgorithms = [\"HS256\"]\nsecret = \"s\"\nkey_set_every = \"1m\"",
            4,
            1,
            "`key_set_every` goes only with `key_set_path`",
            "not asked for",
        ),
        (
            "[jwt]\nalgorithms = [\"RS256\"]\npublic_keys = \"s\"\nkey_set_cluster = \"app\"",
            4,
            1,
            "`key_set_cluster` goes only with `key_set_path`",
            "not asked for",
        ),
        (
            "[jwt]\nalgorithms = [\"RS256\"]\nkey_set = \"s\"\nkey_set_host = \"a.test\"",
            4,
            1,
            "`key_set_host` goes only with `key_set_path`",
            "not asked for",
        ),
        (
            "[jwt]\nalgorithms = [\"RS256\"]\nkey_set_path = \"/\"\nkey_set_cluster = \"app\"\nkey_set_host = \"a b\"",
            5,
            16,
            "wants a host",
            "app.internal:8080",
        ),
        (
            "[jwt]\nalgorithms = [\"HS256\"]\nsecret = \"s\"\ncookie = \"a=b\"",
            4,
            10,
            "`cookie` wants the name of a cookie, found \"a=b\"",
            "none of `=`",
        ),
        (
            "[jwt]\nalgorithms = [\"HS256\"]\nsecret = \"s\"\ncookie = \"\"",
            4,
            10,
            "wants the name of a cookie",
            "none of `=`",
        ),
    ]);
}

#[test]
fn one_mistake_is_one_error_in_what_pages_of_other_origins_may() {
    one_error_each(&[
        (
            "[cors]\norigins = [\"*\"]\ncredentials = true",
            3,
            15,
            "does not go with `origins",
            "name the origins",
        ),
        (
            "[cors]\norigins = [\"https://a.test\"]\nmethods = [\"PUT\", \"*\"]\ncredentials = true",
            3,
            19,
            "`methods[1]` wants a method",
            "in capital letters",
        ),
        (
            "[cors]\norigins = [\"https://a.test\"]\nheaders = [\"*\"]\ncredentials = true",
            3,
            12,
            "`headers` has \"*\"",
            "name them",
        ),
        (
            "[cors]\norigins = [\"https://a.test\"]\nexpose = [\"*\"]\ncredentials = true",
            3,
            11,
            "`expose` has \"*\"",
            "name them",
        ),
        (
            "[cors]\norigins = [\"https://a.test\"]\nmethods = [\"OPTIONS\"]",
            3,
            12,
            "is OPTIONS",
            "leave it out",
        ),
        (
            "[cors]\norigins = [\"https://a.test\", \"*\"]",
            2,
            30,
            "`origins` has \"*\" and others",
            "leave it out",
        ),
        ("[cors]\norigins = [\"app.test\"]", 2, 12, "wants an origin", "https://"),
        ("[csrf]\ntrusted = [\"https://a.test:443\"]", 2, 12, "wants an origin", "leave the port"),
    ]);
}
