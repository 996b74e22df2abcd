//! The tables, and whether it is good enough.

use std::fmt::Write as _;

use comfy_table::{Table, presets};

use super::{
    proxy::CHOICES,
    suite::{Judged, Outcome},
};
use crate::Result;

const KINDS: [&str; 3] = ["required", "optimal", "check"];

/// Required tests that don't pass by intent, and why.
const BY_INTENT: [(&str, &str); 1] = [(
    "headers-store-Transfer-Encoding",
    "the suite's server sends a transfer coding that does not exist. Such a message has no length that anyone could know, so it is \
     answered 502, as by every other proxy in the suite's results but one",
)];

/// How many tests of each kind passed, and how many there are.
fn counts(judged: &Judged, outcomes: &[Outcome]) -> [String; 3] {
    KINDS.map(|kind| {
        let of = judged.tests.iter().zip(outcomes).filter(|(test, _)| test.kind == kind);
        let (passed, all) = of.fold((0, 0), |(passed, all), (_, outcome)| {
            (passed + usize::from(*outcome == Outcome::Pass), all + 1)
        });
        format!("{passed} of {all}")
    })
}

fn ran(judged: &Judged, at: usize) -> Vec<Outcome> {
    judged.tests.iter().map(|test| test.outcomes[at].0).collect()
}

/// A line for each proxy: those that ran, then those whose results come with the suite.
fn lines(judged: &Judged) -> Vec<[String; 4]> {
    let here =
        judged.names.iter().enumerate().map(|(at, name)| (name.clone(), counts(judged, &ran(judged, at))));
    let published = judged.published.iter();
    let published = published
        .map(|(name, version, outcomes)| (format!("{name} {version} (published)"), counts(judged, outcomes)));
    here.chain(published).map(|(name, [required, optimal, check])| [name, required, optimal, check]).collect()
}

pub(crate) fn table(judged: &Judged) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header(["proxy", "required", "optimal", "check"]);
    for line in lines(judged) {
        table.add_row(line);
    }
    table
}

/// What does not pass with us, by kind, with the suite's own names; checks have no right answer.
pub(crate) fn failures(judged: &Judged) -> String {
    let mut text = String::new();
    for kind in ["required", "optimal"] {
        for test in judged.tests.iter().filter(|test| test.kind == kind) {
            let (outcome, why) = &test.outcomes[0];
            if *outcome != Outcome::Pass {
                let (word, name) = (outcome.word(), &test.name);
                let _ = writeln!(text, "{kind} {word}: {} ({}): {name} {why}", test.id, test.group);
            }
        }
    }
    text
}

/// An error where a required test does not pass that should.
pub(crate) fn verdict(judged: &Judged) -> Result<()> {
    let required: Vec<_> = judged.tests.iter().filter(|test| test.kind == "required").collect();
    // a run that broke off fails nothing either
    if required.is_empty() {
        return Err("the suite has no required tests".into());
    }
    let bad = required.iter().filter(|test| {
        test.outcomes[0].0 != Outcome::Pass && BY_INTENT.iter().all(|(id, _)| *id != test.id.as_str())
    });
    let bad: Vec<_> = bad.map(|test| test.id.as_str()).collect();
    if bad.is_empty() {
        Ok(())
    } else {
        Err(format!("{} required tests don't pass: {}", bad.len(), bad.join(", ")).into())
    }
}

/// docs/cache-tests.md.
pub(crate) fn page(judged: &Judged) -> Result<String> {
    let choices = CHOICES.trim().replace('\n', "`, `");
    let mut text = format!(
        "# The public cache tests\n\nWhat the suite of github.com/http-tests/cache-tests finds in the binary. It is no part of this repository and is \
         not run by\n`cargo xtask ci`, since it has to be fetched; the cache's own tests cover the same ground there. To \
         repeat:\n\n```sh\ngit clone https://github.com/http-tests/cache-tests ../cache-tests\n(cd ../cache-tests && npm \
         install)\ncargo xtask cachetests --suite ../cache-tests --beside nginx,varnish   # --write writes this \
         page\n```\n\nIt fails where a required test does, but for those named below. The others say what a cache could do better (optimal), or only how it \
         behaves (check: neither\nanswer is wrong). `[cache]` has `{choices}`: the suite asks for what is off by default, since it takes \
         an origin\nthat means it. Results called published come with the suite; the rest ran in the same run on the same \
         machine.\n\n| proxy | required | optimal | check: yes |\n|---|---|---|---|\n"
    );
    for line in lines(judged) {
        writeln!(text, "| {} |", line.join(" | "))?;
    }
    text += "\n## What does not pass\n\nOf the required tests, by intent:\n\n";
    for (id, why) in BY_INTENT {
        writeln!(text, "- `{id}`: {why}.")?;
    }
    for (kind, title) in [("required", "Required"), ("optimal", "Optimal")] {
        let failed = judged.tests.iter().filter(|test| {
            test.kind == kind
                && test.outcomes[0].0 != Outcome::Pass
                && BY_INTENT.iter().all(|(id, _)| *id != test.id.as_str())
        });
        let failed: Vec<_> = failed.collect();
        if failed.is_empty() {
            continue;
        }
        write!(text, "\n{title}:\n\n| test | what it asks | what was seen |\n|---|---|---|\n")?;
        for test in failed {
            let clean = |text: &str| text.trim().replace('|', "\\|");
            let (outcome, why) = &test.outcomes[0];
            let seen = if *outcome == Outcome::Dependency { "a test that it builds upon fails" } else { why };
            writeln!(text, "| `{}` | {} | {} |", test.id, clean(&test.name), clean(seen))?;
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::{super::suite::Test, *};

    fn test(id: &str, kind: &str, outcome: Outcome) -> Test {
        let text = |text: &str| text.to_owned();
        let outcomes = vec![(outcome, text("Response | 2"))];
        Test { id: text(id), kind: text(kind), group: text("Group"), name: text("A cache must"), outcomes }
    }

    fn judged(tests: Vec<Test>) -> Judged {
        let published = vec![("nginx".to_owned(), "1".to_owned(), vec![Outcome::Fail; tests.len()])];
        Judged { names: vec!["ours".to_owned()], tests, published }
    }

    #[test]
    fn a_required_test_that_does_not_pass_is_told_unless_it_is_so_by_intent() {
        for (id, kind, outcome, good) in [
            ("a", "required", Outcome::Pass, true),
            ("a", "required", Outcome::Fail, false),
            ("a", "required", Outcome::Dependency, false),
            ("a", "required", Outcome::Setup, false),
            (BY_INTENT[0].0, "required", Outcome::Setup, true),
            ("a", "optimal", Outcome::Fail, true),
        ] {
            let tests = vec![test("first", "required", Outcome::Pass), test(id, kind, outcome)];
            assert_eq!(verdict(&judged(tests)).is_ok(), good, "{id} {kind}");
        }
        assert!(verdict(&judged(vec![])).is_err());
    }

    #[test]
    fn the_page_has_counts_and_failures() {
        let tests = vec![
            test("a", "required", Outcome::Pass),
            test("b", "required", Outcome::Fail),
            test("c", "optimal", Outcome::Dependency),
            test("d", "check", Outcome::Pass),
        ];
        let page = page(&judged(tests)).unwrap();
        for line in [
            "| ours | 1 of 2 | 0 of 1 | 1 of 1 |",
            "| nginx 1 (published) | 0 of 2 | 0 of 1 | 0 of 1 |",
            "| `b` | A cache must | Response \\| 2 |",
            "| `c` | A cache must | a test that it builds upon fails |",
        ] {
            assert!(page.contains(line), "{line} in {page}");
        }
        assert!(!page.contains("| `a`") && !page.contains("| `d`"));
    }
}
