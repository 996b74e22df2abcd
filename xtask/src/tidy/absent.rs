//! What the libraries must not do: read the environment, or files, except where that is what they are for.

/// Crate, module of std, and why.
const ALLOWED: [(&str, &str); 7] = [
    ("acme", "fs"),      // stores certificates, keys and accounts in a directory
    ("config", "fs"),    // reads the configuration file
    ("edge", "fs"),      // reads QUIC's keys, files of chains, pages of maintenance; writes traces
    ("tls", "fs"),       // reads certificates and watches them
    ("listener", "fs"),  // reads /proc to say who holds a port
    ("listener", "env"), // names the running program in the hint about privileged ports
    ("telemetry", "fs"), // writes the access log
];
/// Single files, likewise.
const ALLOWED_FILES: [(&str, &str); 4] = [
    ("crates/middleware/src/files/mod.rs", "fs"),    // serves files
    ("crates/middleware/src/files/open.rs", "fs"),   // the same
    ("crates/cache/src/disk/mod.rs", "fs"),          // the second tier's directory
    ("crates/upstream/src/discovery/file.rs", "fs"), // endpoints that a file names
];
const WATCHED: [&str; 2] = ["env", "fs"];

/// Checks a library's source; tests and the test kit may do as they like.
pub(crate) fn check(path: &str, source: &str) -> Vec<String> {
    let Some((name, inside)) = path.strip_prefix("crates/").and_then(|rest| rest.split_once('/')) else {
        return Vec::new();
    };
    let is_test = inside.split('/').any(|part| matches!(part, "tests" | "tests.rs" | "test_support.rs"));
    if name == "testkit" || is_test || !inside.starts_with("src/") {
        return Vec::new();
    }
    let code = code(source);
    WATCHED
        .into_iter()
        .filter(|module| !ALLOWED.contains(&(name, *module)) && !ALLOWED_FILES.contains(&(path, *module)))
        .filter(|module| ["std", "tokio"].iter().any(|root| uses(&code, root, module)))
        .map(|module| {
            format!(
                "{path} uses `{module}`: a library takes typed options, and only a binary reads the environment or \
                 files; if that is this crate's purpose, say so in xtask/src/tidy/absent.rs"
            )
        })
        .collect()
}

/// The source without line comments, without what is for tests only, and without the module of tests at its end.
fn code(source: &str) -> String {
    let mut code = String::new();
    let mut lines = source.lines();
    while let Some(line) = lines.next() {
        if line.trim() == "#[cfg(test)]" {
            let item = lines.next().unwrap_or_default().trim();
            if item.starts_with("mod ") && item.ends_with('{') {
                break;
            }
            continue;
        }
        let line = line.split_once("//").map_or(line, |(before, _)| before);
        code.push_str(line);
        code.push('\n');
    }
    code
}

/// Whether `root::module` is named, directly or in a braced `use`.
fn uses(code: &str, root: &str, module: &str) -> bool {
    let prefix = format!("{root}::");
    code.match_indices(&prefix).any(|(at, _)| {
        let whole_word = !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let rest = &code[at + prefix.len()..];
        whole_word
            && match rest.strip_prefix('{') {
                Some(group) => top_level(group).iter().any(|item| starts_with_word(item, module)),
                None => starts_with_word(rest, module),
            }
    })
}

fn starts_with_word(text: &str, word: &str) -> bool {
    text.strip_prefix(word).is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
}

/// The items of a braced group, up to its closing brace.
fn top_level(group: &str) -> Vec<&str> {
    let (mut items, mut depth, mut begin) = (Vec::new(), 0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                items.push(group[begin..at].trim());
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                items.push(group[begin..at].trim());
                begin = at + 1;
            }
            _ => {}
        }
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_name_them_is_found() {
        for source in [
            "use std::fs;",
            "use std::{net::{IpAddr, SocketAddr}, fs::File};",
            "fn f() { std::env::var(\"X\"); }",
            "use ::std::env as e;",
            "use tokio::{net, fs};",
            "#[cfg(test)]\nmod tests;\nuse std::fs;",
        ] {
            assert_eq!(check("crates/proxy/src/lib.rs", source).len(), 1, "{source}");
        }
    }

    #[test]
    fn other_things_are_not() {
        for source in [
            "use std::{ffi::OsString, fmt};",
            "use std::{a::{fs}, b};",
            "// std::fs",
            "mystd::fs();",
            "use std::envelope;",
            "fn f() {}\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}",
            "#[cfg(test)]\nuse std::fs;\nfn f() {}",
        ] {
            assert_eq!(check("crates/proxy/src/lib.rs", source), Vec::<String>::new(), "{source}");
        }
        assert!(check("crates/tls/src/store.rs", "use std::fs;").is_empty());
        assert_eq!(check("crates/tls/src/store.rs", "use std::env;").len(), 1);
        assert!(check("crates/upstream/src/discovery/file.rs", "use std::fs;").is_empty());
        assert_eq!(check("crates/upstream/src/discovery/mod.rs", "use std::fs;").len(), 1);
        assert!(check("crates/testkit/src/lib.rs", "use std::fs;").is_empty());
        for path in ["crates/proxy/tests/t.rs", "crates/proxy/src/a/tests.rs", "crates/proxy/src/tests/a.rs"]
        {
            assert!(check(path, "use std::fs;").is_empty(), "{path}");
        }
        assert!(check("bins/portcullis/src/main.rs", "use std::fs;").is_empty());
    }
}
