//! Names that say nothing about what is inside.

const BANNED: [&str; 9] =
    ["core", "common", "utils", "util", "types", "helpers", "manager", "globals", "prelude"];

const ADVICE: &str = "says nothing about what is inside: name it after that";

/// A package's name.
pub(crate) fn check_package(name: &str) -> Option<String> {
    let short = name.strip_prefix("portcullis-").unwrap_or(name);
    BANNED.contains(&short).then(|| format!("package `{name}`: the name {ADVICE}"))
}

/// A source file's path, and the modules written inside it.
pub(crate) fn check_file(path: &str, source: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let parts: Vec<&str> = path.split('/').collect();
    // a crate's own folder is its package's name, and what stands beside src is no module of the crate
    let below = parts.iter().position(|part| *part == "src").map_or(parts.len(), |src| src + 1);
    for part in &parts[below..] {
        let name = part.strip_suffix(".rs").unwrap_or(part);
        if BANNED.contains(&name) {
            findings.push(format!("{path}: the module name `{name}` {ADVICE}"));
        }
    }
    for (index, line) in source.lines().enumerate() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let Some(at) = words.iter().position(|word| *word == "mod") else { continue };
        let only_visibility = words[..at].iter().all(|word| word.starts_with("pub") || word.ends_with(')'));
        // `mod name;` is found by its file
        if let [name, "{", ..] = words[at + 1..]
            && only_visibility
            && BANNED.contains(&name)
        {
            findings.push(format!("{path}:{}: the module name `{name}` {ADVICE}", index + 1));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn banned_names_are_found_wherever_a_module_can_be() {
        assert!(check_package("portcullis-core").is_some());
        assert!(check_package("portcullis-conn").is_none());
        for path in ["crates/a/src/utils.rs", "crates/a/src/helpers/x.rs", "tests/src/common.rs"] {
            assert_eq!(check_file(path, "").len(), 1, "{path}");
        }
        let inline = "/// x\npub(crate) mod types {\n}\n    mod util { }\n";
        assert_eq!(check_file("crates/a/src/lib.rs", inline).len(), 2);
    }

    #[test]
    fn other_uses_of_the_words_are_fine() {
        for path in ["crates/a/src/core_pinning.rs", "core/a/src/lib.rs", "crates/a/tests/common/mod.rs"] {
            assert_eq!(check_file(path, "// the mod core {\nuse std::mem;").len(), 0, "{path}");
        }
    }
}
