//! Which member of the workspace may depend on which: the table in ARCHITECTURE.md is the rule.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use crate::metadata::{Kind, Package};

const BEGIN: &str = "<!-- edges:begin -->";
const END: &str = "<!-- edges:end -->";

/// What one row allows.
#[derive(Debug, Default, PartialEq, Eq)]
struct Row {
    uses: BTreeSet<String>,
    in_tests: BTreeSet<String>,
}

/// The name a member has in the table: its package's, without the common prefix.
fn short(name: &str) -> &str {
    name.strip_prefix("portcullis-").unwrap_or(name)
}

/// Compares the table with the workspace. The two kinds are told apart: what tests may use, the crate may not.
pub(crate) fn check(architecture: &str, packages: &[Package]) -> Vec<String> {
    let rows = match parse(architecture) {
        Ok(rows) => rows,
        Err(finding) => return vec![finding],
    };
    let members: BTreeSet<&str> = packages.iter().map(|package| short(&package.name)).collect();
    let mut findings = Vec::new();
    for package in packages {
        let name = short(&package.name);
        let Some(row) = rows.get(name) else {
            findings.push(format!(
                "ARCHITECTURE.md: no row for `{name}` in the table of edges: decide what it may use and add the row"
            ));
            continue;
        };
        for edge in &package.edges {
            let to = short(&edge.to);
            let (allowed, how, column) = match edge.kind {
                Kind::Normal => (&row.uses, "depends on", "may use"),
                Kind::Build => (&row.uses, "is built with", "may use"),
                Kind::Dev => (&row.in_tests, "in its tests depends on", "in tests"),
            };
            if !allowed.contains(to) {
                findings.push(format!(
                    "edge {name} -> {to}: `{name}` {how} `{to}`, which its row in ARCHITECTURE.md does not allow: \
                     let them meet through http, tower or portcullis-conn instead, or, if the design has changed, \
                     add `{to}` to the column `{column}`"
                ));
            }
        }
    }
    for (name, row) in &rows {
        for named in std::iter::once(name).chain(&row.uses).chain(&row.in_tests) {
            if !members.contains(named.as_str()) {
                findings.push(format!(
                    "ARCHITECTURE.md: the row of `{name}` names `{named}`, which is no member: correct or remove it"
                ));
            }
        }
    }
    findings
}

/// The table as the workspace stands.
pub(crate) fn table(packages: &[Package]) -> String {
    let mut out = format!("{BEGIN}\n| crate | may use | in tests |\n|---|---|---|\n");
    let mut packages: Vec<&Package> = packages.iter().collect();
    packages.sort_by_key(|package| short(&package.name));
    for package in packages {
        let cell = |wanted: fn(Kind) -> bool| {
            let edges = package.edges.iter().filter(|edge| wanted(edge.kind));
            let names: BTreeSet<String> = edges.map(|edge| format!("`{}`", short(&edge.to))).collect();
            names.into_iter().collect::<Vec<_>>().join(" ")
        };
        let (uses, in_tests) = (cell(|kind| kind != Kind::Dev), cell(|kind| kind == Kind::Dev));
        let _ = writeln!(out, "| `{}` | {uses} | {in_tests} |", short(&package.name));
    }
    out.push_str(END);
    out.push('\n');
    out
}

fn parse(architecture: &str) -> Result<BTreeMap<String, Row>, String> {
    let table = architecture
        .split_once(BEGIN)
        .and_then(|(_, rest)| rest.split_once(END))
        .ok_or_else(|| format!("ARCHITECTURE.md: no table between `{BEGIN}` and `{END}`"))?
        .0;
    let names = |cell: &str| {
        // a dash alone is an empty cell, one inside of a word belongs to a name
        cell.split(|c: char| c.is_whitespace() || matches!(c, ',' | '`' | '—'))
            .map(|name| name.trim_matches('-'))
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect::<BTreeSet<_>>()
    };
    let mut rows = BTreeMap::new();
    for line in table.lines().map(str::trim).filter(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, uses, in_tests] = cells[..] else {
            return Err(format!("ARCHITECTURE.md: a row of edges has three cells, not this: {line}"));
        };
        if name == "crate" || name.chars().all(|c| matches!(c, '-' | ':')) {
            continue;
        }
        let row = Row { uses: names(uses), in_tests: names(in_tests) };
        let name = name.trim_matches('`').to_owned();
        if rows.insert(name.clone(), row).is_some() {
            return Err(format!("ARCHITECTURE.md: two rows for `{name}`"));
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Edge;

    fn package(name: &str, edges: &[(&str, Kind)]) -> Package {
        let edges = edges.iter().map(|(to, kind)| Edge { to: (*to).to_owned(), kind: *kind }).collect();
        Package { name: name.to_owned(), edges, ..Package::default() }
    }

    fn workspace(h3: &[(&str, Kind)]) -> Vec<Package> {
        vec![
            package("portcullis-conn", &[]),
            package("portcullis-testkit", &[]),
            package("portcullis-h3", h3),
        ]
    }

    const TABLE: &str = "text\n<!-- edges:begin -->\n| crate | may use | in tests |\n|---|:--|---|\n\
                         | conn | | |\n| `testkit` | - | |\n| h3 | `conn` | `testkit`, conn |\n\
                         <!-- edges:end -->\nmore";

    #[test]
    fn what_the_table_allows_passes() {
        let edges = [("portcullis-conn", Kind::Normal), ("portcullis-testkit", Kind::Dev)];
        assert_eq!(check(TABLE, &workspace(&edges)), Vec::<String>::new());
    }

    #[test]
    fn an_extra_edge_fails_and_is_named() {
        let mut packages = workspace(&[("portcullis-conn", Kind::Normal)]);
        packages[0].edges.push(Edge { to: "portcullis-h3".to_owned(), kind: Kind::Normal });
        let findings = check(TABLE, &packages);
        assert_eq!(findings.len(), 1);
        assert!(findings[0].starts_with("edge conn -> h3: "), "{}", findings[0]);
    }

    #[test]
    fn what_tests_may_use_the_crate_may_not() {
        for kind in [Kind::Normal, Kind::Build] {
            let findings = check(TABLE, &workspace(&[("portcullis-testkit", kind)]));
            assert_eq!(findings.len(), 1, "{kind:?}");
            assert!(findings[0].contains("`may use`"), "{}", findings[0]);
        }
        let mut packages = workspace(&[]);
        packages[0].edges.push(Edge { to: "portcullis-testkit".to_owned(), kind: Kind::Dev });
        assert!(check(TABLE, &packages)[0].contains("`in tests`"));
    }

    #[test]
    fn rows_and_members_must_match() {
        let mut packages = workspace(&[]);
        packages.push(package("portcullis-acme", &[]));
        assert!(check(TABLE, &packages)[0].contains("no row for `acme`"));
        packages.clear();
        packages.push(package("portcullis-conn", &[]));
        assert!(check(TABLE, &packages).iter().any(|finding| finding.contains("no member")));
        assert!(check("nothing", &packages)[0].contains("no table"));
        let cells = "<!-- edges:begin -->\n| a | b |\n<!-- edges:end -->";
        assert!(check(cells, &packages)[0].contains("three cells"));
    }

    #[test]
    fn the_printed_table_passes() {
        let packages = workspace(&[("portcullis-conn", Kind::Normal), ("portcullis-testkit", Kind::Dev)]);
        let printed = table(&packages);
        assert!(printed.contains("| `h3` | `conn` | `testkit` |\n"), "{printed}");
        assert_eq!(check(&printed, &packages), Vec::<String>::new());
    }
}
