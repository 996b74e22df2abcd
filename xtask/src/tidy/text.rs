//! Rules for the text of any file: length, white space, and strings that have no place here.

const MAX_LINES: usize = 600;

/// Checks one file.
pub(crate) fn check(path: &str, content: &str) -> Vec<String> {
    let extension = path.rsplit_once('.').map_or("", |(_, extension)| extension);
    let mut findings = Vec::new();
    let lines = content.lines().count();
    if extension == "rs" && lines > MAX_LINES {
        findings.push(format!("{path} has {lines} lines: split it, {MAX_LINES} are the most"));
    }
    // the lock file is cargo's
    if extension == "lock" {
        return findings;
    }
    for (index, line) in content.lines().enumerate() {
        let mut find = |what: &str| findings.push(format!("{path}:{}: {what}", index + 1));
        if matches!(extension, "rs" | "md" | "toml") {
            if line.contains('\t') {
                find("a tab: use spaces");
            }
            if line.ends_with([' ', '\t']) {
                find("white space at the end of the line");
            }
        }
        if extension == "rs" && line.contains(&debug_macro()) {
            find("the debug macro: remove it");
        }
        if bare_todo(line) {
            find("an open task without an issue's number: write it with (#123) behind the word, or do it");
        }
        if let Some(host) = registries().iter().find(|host| line.contains(host.as_str())) {
            find(&format!(
                "`{host}` is a registry's host, which is where each machine says it is: leave it out"
            ));
        }
        if let Some(place) = local_paths().iter().find(|place| has_path(line, place)) {
            find(&format!("`{place}` is a path of one machine: leave it out"));
        }
    }
    findings
}

// The strings are put together here so that this file passes its own rules.

fn debug_macro() -> String {
    ["dbg", "!("].concat()
}

fn registries() -> [String; 6] {
    [
        ["://crates", ".io"].concat(),
        ["static.crates", ".io"].concat(),
        ["index.crates", ".io"].concat(),
        ["deb.debian", ".org"].concat(),
        ["registry.npmjs", ".org"].concat(),
        ["pypi", ".org"].concat(),
    ]
}

fn local_paths() -> [String; 2] {
    [["/wo", "rk/"].concat(), ["/tmp/bash", "_jobs"].concat()]
}

/// The path at the start of a word, and not the tail of a longer one.
fn has_path(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        !line[..at].ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | '*' | '}'))
    })
}

/// The word in capitals, without `(#NUMBER)` behind it.
fn bare_todo(line: &str) -> bool {
    let word = ["TO", "DO"].concat();
    line.match_indices(&word).any(|(at, _)| {
        let before = line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let rest = &line[at + word.len()..];
        let after = rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
        let number = rest.strip_prefix("(#").and_then(|rest| rest.split_once(')')).map(|(number, _)| number);
        let numbered =
            number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()));
        !before && !after && !numbered
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, content: &str) -> usize {
        check(path, content).len()
    }

    #[test]
    fn long_sources_are_found() {
        assert_eq!(found("a.rs", &"x\n".repeat(600)), 0);
        assert_eq!(found("a.rs", &"x\n".repeat(601)), 1);
        assert_eq!(found("a.md", &"x\n".repeat(601)), 0);
    }

    #[test]
    fn white_space() {
        for path in ["a.rs", "a.md", "a.toml"] {
            assert_eq!(found(path, "a\tb\n"), 1, "{path}");
            assert_eq!(found(path, "a \nb\n"), 1, "{path}");
        }
        assert_eq!(found("Makefile", "a\tb \n"), 0);
    }

    #[test]
    fn strings_that_have_no_place() {
        assert_eq!(found("a.rs", &format!("{}x)", debug_macro())), 1);
        for host in registries() {
            assert_eq!(found("a.sh", &format!("curl https{host}")), 1, "{host}");
            assert_eq!(found("Cargo.lock", &host), 0, "{host}");
        }
        assert_eq!(found("a.md", "on crates.io"), 0);
        for place in local_paths() {
            assert_eq!(found("a.md", &format!("see `{place}x`")), 1, "{place}");
        }
        assert_eq!(found("a.md", &format!("net{}x", local_paths()[0])), 0);
    }

    #[test]
    fn open_tasks_have_numbers() {
        let word = ["TO", "DO"].concat();
        for text in [word.clone(), format!("// {word}: later"), format!("{word}(me)"), format!("{word}(#)")] {
            assert_eq!(found("a.rs", &text), 1, "{text}");
        }
        for text in [format!("// {word}(#12): later"), format!("{word}S"), "todo".to_owned()] {
            assert_eq!(found("a.rs", &text), 0, "{text}");
        }
    }
}
