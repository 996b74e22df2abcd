//! `tidy`: the house rules that no compiler checks.
//!
//! The rules are functions over strings in the modules below; only this file reads the tree. Each finding names the
//! place and says what to do.

mod absent;
mod edges;
mod features;
mod names;
mod packages;
mod text;

use std::{collections::BTreeMap, ffi::OsString, fs, path::Path};

use crate::{Result, metadata, sh};

/// Checks everything and fails if there is a finding.
pub(crate) fn run(args: &[OsString]) -> Result<()> {
    let workspace = metadata::load()?;
    match args {
        [] => {}
        [flag] if flag == "--print-edges" => {
            print!("{}", edges::table(&workspace.packages));
            return Ok(());
        }
        _ => return Err("usage: cargo xtask tidy [--print-edges]".into()),
    }
    let root = sh::root();
    let files = tracked(&root)?;
    let mut findings = Vec::new();

    findings.extend(match files.get("ARCHITECTURE.md") {
        Some(architecture) => edges::check(architecture, &workspace.packages),
        None => vec!["ARCHITECTURE.md is missing: it holds the table of allowed edges".to_owned()],
    });
    findings.extend(match files.get("docs/features.md") {
        Some(list) => features::check(list),
        None => vec!["docs/features.md is missing: it says where each capability stands".to_owned()],
    });
    for package in &workspace.packages {
        findings.extend(packages::check(package));
        for path in &package.roots {
            let shown = path.strip_prefix(&root).unwrap_or(path).to_string_lossy().into_owned();
            let source = fs::read_to_string(path).map_err(|error| format!("{shown}: {error}"))?;
            findings.extend(packages::check_root(&shown, &source));
        }
        findings.extend(names::check_package(&package.name));
    }
    for (path, content) in &files {
        findings.extend(text::check(path, content));
        if path.ends_with(".rs") {
            findings.extend(names::check_file(path, content));
            findings.extend(absent::check(path, content));
        }
    }

    if findings.is_empty() {
        eprintln!("tidy: {} files, {} packages, nothing found", files.len(), workspace.packages.len());
        return Ok(());
    }
    for finding in &findings {
        eprintln!("tidy: {finding}");
    }
    Err(format!("tidy: {} findings", findings.len()).into())
}

/// The text files that git tracks or would track, by path.
fn tracked(root: &Path) -> Result<BTreeMap<String, String>> {
    let mut git = std::process::Command::new("git");
    git.current_dir(root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let mut files = BTreeMap::new();
    for path in sh::output(&mut git)?.split('\0').filter(|path| !path.is_empty()) {
        // listed but gone (deleted, not yet committed), or no text: nothing to check
        if let Ok(content) = fs::read_to_string(root.join(path)) {
            files.insert(path.to_owned(), content);
        }
    }
    if files.is_empty() {
        return Err("git lists no files here".into());
    }
    Ok(files)
}
