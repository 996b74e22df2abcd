//! What every member's manifest and first file must have.

use crate::metadata::Package;

/// Members that nobody takes by themselves.
const UNPUBLISHED: [&str; 8] = [
    "portcullis-testkit",
    "portcullis-tests",
    "portcullis-benches",
    "portcullis-examples",
    "portcullis-origin",
    "portcullis-loadgen",
    "portcullis-naive",
    "xtask",
];

/// The manifest.
pub(crate) fn check(package: &Package) -> Vec<String> {
    let mut findings = Vec::new();
    let name = &package.name;
    let empty = |field: &Option<String>| field.as_ref().is_none_or(|text| text.trim().is_empty());
    if empty(&package.description) {
        findings.push(format!("package `{name}` has no description"));
    }
    if empty(&package.license) {
        findings.push(format!("package `{name}` has no license: write `license.workspace = true`"));
    }
    match (package.published, UNPUBLISHED.contains(&name.as_str())) {
        (true, true) => findings.push(format!("package `{name}` needs `publish = false`: it is for this tree only")),
        (false, false) => findings.push(format!(
            "package `{name}` has `publish = false`: every crate here is for others to take; remove it, or name the \
             crate in xtask/src/tidy/packages.rs"
        )),
        _ => {}
    }
    findings
}

/// The first file of a library or binary.
pub(crate) fn check_root(path: &str, source: &str) -> Option<String> {
    let first = source.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with("#!"))?;
    let doc = first.strip_prefix("//!").map(str::trim);
    match doc {
        Some(text) if !text.is_empty() && text != "placeholder" => None,
        _ => Some(format!("{path} does not begin with a `//!` that says what the crate is for")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, published: bool) -> Package {
        Package {
            name: name.to_owned(),
            description: Some("x".to_owned()),
            license: Some("MIT".to_owned()),
            published,
            ..Package::default()
        }
    }

    #[test]
    fn manifests_are_complete() {
        assert!(check(&package("portcullis-conn", true)).is_empty());
        assert!(check(&package("xtask", false)).is_empty());
        let bare =
            Package { description: None, license: Some(" ".to_owned()), ..package("portcullis-conn", true) };
        assert_eq!(check(&bare).len(), 2);
    }

    #[test]
    fn what_is_published_is_decided() {
        assert!(check(&package("portcullis-conn", false))[0].contains("`publish = false`"));
        assert!(check(&package("portcullis-origin", true))[0].contains("`publish = false`"));
    }

    #[test]
    fn roots_begin_with_their_purpose() {
        assert!(check_root("lib.rs", "//! Does this.\n").is_none());
        assert!(check_root("lib.rs", "#![allow(x)]\n//! Does this.\n").is_none());
        for source in ["//! placeholder\n", "use std::fs;\n//! late\n", "//!\n", "// no doc\n"] {
            assert!(check_root("lib.rs", source).is_some(), "{source}");
        }
    }
}
