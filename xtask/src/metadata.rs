//! What `cargo metadata --no-deps` says about the workspace.

use std::path::PathBuf;

use serde_json::Value;

use crate::{Result, sh};

/// The workspace.
pub(crate) struct Workspace {
    pub(crate) packages: Vec<Package>,
    pub(crate) target_directory: PathBuf,
}

/// One member.
#[derive(Clone, Debug, Default)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    pub(crate) license: Option<String>,
    pub(crate) published: bool,
    /// The files of its library or binaries.
    pub(crate) roots: Vec<PathBuf>,
    pub(crate) edges: Vec<Edge>,
}

/// A dependency on another member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Edge {
    pub(crate) to: String,
    pub(crate) kind: Kind,
}

/// When a dependency is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Normal,
    Build,
    Dev,
}

/// Asks cargo.
pub(crate) fn load() -> Result<Workspace> {
    parse(&sh::output(sh::cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?)
}

/// Reads the JSON.
pub(crate) fn parse(json: &str) -> Result<Workspace> {
    let json: Value = serde_json::from_str(json)?;
    let packages = json["packages"].as_array().ok_or("cargo metadata lists no packages")?;
    let names: Vec<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    let packages = packages.iter().map(|package| read(package, &names)).collect();
    let target = json["target_directory"].as_str().ok_or("cargo metadata names no target directory")?;
    Ok(Workspace { packages, target_directory: target.into() })
}

fn read(package: &Value, members: &[&str]) -> Package {
    let text = |field: &str| package[field].as_str().map(str::to_owned);
    let list = |field: &str| package[field].as_array().cloned().unwrap_or_default();
    let own_name = text("name").unwrap_or_default();
    let edges = list("dependencies")
        .iter()
        // a crate's tests may turn on its own features
        .filter(|dependency| dependency["name"] != own_name.as_str())
        // a path dependency has no source
        .filter(|dependency| dependency["source"].is_null())
        .filter_map(|dependency| {
            let to = dependency["name"].as_str().filter(|name| members.contains(name))?.to_owned();
            let kind = match dependency["kind"].as_str() {
                Some("dev") => Kind::Dev,
                Some("build") => Kind::Build,
                _ => Kind::Normal,
            };
            Some(Edge { to, kind })
        })
        .collect();
    let roots = list("targets")
        .iter()
        .filter(|target| {
            let kinds = target["kind"].as_array().cloned().unwrap_or_default();
            kinds.iter().any(|kind| matches!(kind.as_str(), Some("lib" | "bin" | "proc-macro")))
        })
        .filter_map(|target| target["src_path"].as_str().map(PathBuf::from))
        .collect();
    Package {
        name: own_name,
        description: text("description"),
        license: text("license"),
        // `publish = false` is an empty list of registries
        published: package["publish"].as_array().is_none_or(|registries| !registries.is_empty()),
        roots,
        edges,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_have_kinds_and_strangers_are_no_edges() {
        let workspace = parse(
            r#"{"target_directory": "/t", "packages": [
                {"name": "a", "publish": [], "targets": [{"kind": ["lib"], "src_path": "a/src/lib.rs"},
                                                        {"kind": ["test"], "src_path": "a/tests/t.rs"}],
                 "dependencies": [
                    {"name": "b", "kind": null, "source": null},
                    {"name": "b", "kind": "dev", "source": null},
                    {"name": "b", "kind": "build", "source": null},
                    {"name": "a", "kind": "dev", "source": null},
                    {"name": "c", "kind": null, "source": "registry+x"}]},
                {"name": "b", "publish": null, "dependencies": [], "targets": []}]}"#,
        )
        .unwrap();
        let edge = |kind| Edge { to: "b".to_owned(), kind };
        assert_eq!(workspace.packages[0].edges, [edge(Kind::Normal), edge(Kind::Dev), edge(Kind::Build)]);
        assert_eq!(workspace.packages[0].roots, [PathBuf::from("a/src/lib.rs")]);
        assert!(!workspace.packages[0].published);
        assert!(workspace.packages[1].published);
    }
}
