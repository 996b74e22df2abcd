//! docs/features.md: every capability once, in order, each with its state, and what is done has a test.

const COUNT: usize = 163;

/// Checks the rows of all tables whose first column is a number. A table's header says which column is `state` and
/// which is `test`.
pub(crate) fn check(list: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let mut columns: Option<(usize, usize)> = None;
    let mut next = 1;
    for (index, line) in list.lines().enumerate() {
        let place = format!("docs/features.md:{}", index + 1);
        let Some(cells) = cells(line) else { continue };
        if let Some(found) = header(&cells) {
            columns = Some(found);
            continue;
        }
        let Ok(number) = cells[0].parse::<usize>() else { continue };
        if number != next {
            findings.push(format!("{place}: row {number} stands where row {next} is expected"));
        }
        next = number + 1;
        let Some((state, test)) = columns else {
            findings.push(format!("{place}: row {number} is under no header with `state` and `test`"));
            continue;
        };
        let (Some(state), Some(test)) = (cells.get(state), cells.get(test)) else {
            findings.push(format!("{place}: row {number} has fewer cells than its header"));
            continue;
        };
        if !is_state(state) {
            findings.push(format!(
                "{place}: row {number}: `{state}` is no state: write `done`, `partly (what is missing)` or `not yet`"
            ));
        }
        if *state == "done" && test.trim_matches(['-', '—', '–', ' ']).is_empty() {
            findings
                .push(format!("{place}: row {number} is done and names no test: name it, or it is not done"));
        }
    }
    if next != COUNT + 1 {
        findings.push(format!("docs/features.md: the last row is {}, not {COUNT}", next - 1));
    }
    findings
}

fn cells(line: &str) -> Option<Vec<&str>> {
    let inner = line.trim().strip_prefix('|')?;
    let inner = inner.strip_suffix('|').unwrap_or(inner);
    Some(inner.split('|').map(str::trim).collect())
}

fn header(cells: &[&str]) -> Option<(usize, usize)> {
    let column = |name: &str| {
        cells.iter().position(|cell| {
            let cell = cell.to_ascii_lowercase();
            cell == name || cell == format!("{name}s")
        })
    };
    Some((column("state")?, column("test")?))
}

fn is_state(state: &str) -> bool {
    let partly = state.strip_prefix("partly (").and_then(|rest| rest.strip_suffix(')'));
    state == "done" || state == "not yet" || partly.is_some_and(|missing| !missing.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(change: impl Fn(usize) -> Option<String>) -> String {
        let mut out =
            "# Features\n\n| # | capability | state | where | test |\n|---|---|---|---|---|\n".to_owned();
        for number in 1..=163 {
            match change(number) {
                Some(row) => out.push_str(&row),
                None => out.push_str(&format!("| {number} | x | done | y | z |\n")),
            }
        }
        out
    }

    #[test]
    fn a_full_list_passes() {
        assert_eq!(check(&list(|_| None)), Vec::<String>::new());
        let states = |number| match number {
            7 => Some("| 7 | x | partly (no IPv6) | y | |\n".to_owned()),
            8 => Some("| 8 | x | not yet | | |\n".to_owned()),
            _ => None,
        };
        assert_eq!(check(&list(states)), Vec::<String>::new());
    }

    #[test]
    fn missing_doubled_and_swapped_rows_are_found() {
        assert_eq!(check(&list(|number| (number == 5).then(String::new))).len(), 1);
        assert!(!check(&list(|number| (number == 163).then(String::new))).is_empty());
        let doubled = list(|number| (number == 9).then(|| "| 8 | x | done | y | z |\n".to_owned()));
        assert!(!check(&doubled).is_empty());
        assert!(!check("").is_empty());
    }

    #[test]
    fn states_and_tests_are_checked() {
        for row in [
            "| 5 | x | finished | y | z |\n",
            "| 5 | x | partly | y | z |\n",
            "| 5 | x | partly () | y | z |\n",
        ] {
            let findings = check(&list(|number| (number == 5).then(|| row.to_owned())));
            assert_eq!(findings.len(), 1, "{row}");
            assert!(findings[0].contains("is no state"));
        }
        for row in ["| 5 | x | done | y | |\n", "| 5 | x | done | y | - |\n"] {
            let findings = check(&list(|number| (number == 5).then(|| row.to_owned())));
            assert!(findings[0].contains("names no test"), "{row}");
        }
    }
}
