//! The suite's own programs: its server, its client, and what it thinks of results.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::Value;

use super::proxy::Proxy;
use crate::{
    Result,
    loadtest::child::{Running, free_port},
    sh,
};

const START: Duration = Duration::from_secs(15);
/// Tests pause for seconds each and run by the dozen: a minute is usual.
const PATIENCE: Duration = Duration::from_secs(300);

/// Asks the suite, in its own words, what it has and how results are to be read. Its arguments: the suite's directory, then files of
/// results. It prints `{ tests: [{ id, kind, group, name, outcomes: [[word, why]] }], published: [[name, version, [word]]] }`.
const JUDGE: &str = r#"
const [suite, ...files] = process.argv.slice(1)
const { readFileSync } = await import('node:fs')
const { default: groups } = await import(`${suite}/tests/index.mjs`)
const { default: known } = await import(`${suite}/results/index.mjs`)
const { determineTestResult, resultTypes } = await import(`${suite}/test-engine/lib/results.mjs`)
const read = file => JSON.parse(readFileSync(file, 'utf8'))
const word = (id, results) => {
  const type = determineTestResult(groups, id, results)
  return Object.keys(resultTypes).find(name => resultTypes[name] === type)
}
const mine = files.map(read)
const tests = groups.flatMap(group => group.tests.filter(test => !test.browser_only).map(test => ({
  id: test.id,
  kind: test.kind ?? 'required',
  group: group.name,
  name: test.name,
  outcomes: mine.map(results => [word(test.id, results), results[test.id]?.[1] ?? ''])
})))
const published = known.filter(entry => entry.type === 'rev-proxy').map(entry => {
  const results = read(`${suite}/results/${entry.file}`)
  return [entry.name, entry.version, tests.map(test => word(test.id, results))]
})
console.log(JSON.stringify({ tests, published }))
"#;

/// The suite with its server running.
pub(crate) struct Suite {
    dir: PathBuf,
    scratch: PathBuf,
    _server: Running,
    origin: u16,
}

impl Suite {
    pub(crate) fn start(dir: &Path, scratch: &Path) -> Result<Self> {
        if !dir.join("test-engine/cli.mjs").is_file() || !dir.join("node_modules").is_dir() {
            let dir = dir.display();
            return Err(
                format!("{dir} is no checkout of http-tests/cache-tests with `npm install` done").into()
            );
        }
        let mut command = node(dir);
        command.arg("test-engine/server/server.mjs");
        // as `npm run` would set them, but npm stands between us and the process; port 0 is any
        command.env("npm_config_protocol", "http").env("npm_config_port", "0");
        command.env("npm_config_pidfile", scratch.join("server.pid"));
        let mut server = Running::start("the suite's server", command, &scratch.join("server.log"), true)?;
        let line = server.line(START)?.unwrap_or_default();
        let port = line.trim_end_matches('/').rsplit(':').next().and_then(|port| port.parse().ok());
        let origin = port.ok_or_else(|| server.failed("did not say where it listens"))?;
        Ok(Self { dir: dir.to_owned(), scratch: scratch.to_owned(), _server: server, origin })
    }

    /// Runs all tests through the proxy; the results as the suite prints them.
    pub(crate) fn run(&mut self, proxy: &Proxy, place: &Path) -> Result<String> {
        fs::create_dir(place)?;
        let port = free_port()?;
        let command = proxy.command(place, port, self.origin)?;
        let mut running = Running::start("the proxy", command, &place.join("proxy.log"), false)?;
        running.wait_for(SocketAddr::from(([127, 0, 0, 1], port)), START)?;

        let mut command = node(&self.dir);
        command.args(["--no-warnings", "test-engine/cli.mjs"]);
        // an empty id asks for all
        command.env("npm_config_base", format!("http://127.0.0.1:{port}")).env("npm_package_config_id", "");
        let mut client =
            Running::start("the suite's client", command, &self.scratch.join("client.log"), true)?;
        let mut text = String::new();
        while let Some(line) = client.line(PATIENCE)? {
            text += &line;
            text.push('\n');
        }
        if client.wait(START)?.success() { Ok(text) } else { Err(client.failed("ended early")) }
    }

    /// How the suite reads these results, and those that come with it.
    pub(crate) fn judge(&self, results: &[(String, PathBuf)]) -> Result<Judged> {
        let mut command = node(&self.dir);
        command.args(["--input-type=module", "--eval", JUDGE]).arg(&self.dir);
        command.args(results.iter().map(|(_, file)| file));
        let names = results.iter().map(|(name, _)| name.clone()).collect();
        Judged::read(names, &serde_json::from_str(&sh::output(&mut command)?)?)
            .ok_or_else(|| "the suite is not as expected: its tests could not be read".into())
    }
}

fn node(dir: &Path) -> Command {
    let mut command = Command::new("node");
    command.current_dir(dir);
    command
}

/// What became of a test, in the suite's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Pass,
    Fail,
    /// A test failed that this one builds upon.
    Dependency,
    /// It did not get as far as the question.
    Setup,
}

impl Outcome {
    fn read(word: &str) -> Self {
        match word {
            "pass" | "yes" => Self::Pass,
            "dependency_fail" => Self::Dependency,
            "fail" | "optional_fail" | "no" => Self::Fail,
            _ => Self::Setup,
        }
    }

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Dependency => "dependency",
            Self::Setup => "setup",
        }
    }
}

/// A test, and what became of it with each proxy that ran.
#[derive(Clone, Debug)]
pub(crate) struct Test {
    pub(crate) id: String,
    /// `required`, `optimal` or `check`.
    pub(crate) kind: String,
    pub(crate) group: String,
    pub(crate) name: String,
    /// The outcome and why, by proxy.
    pub(crate) outcomes: Vec<(Outcome, String)>,
}

/// All tests with all proxies, ours first.
pub(crate) struct Judged {
    pub(crate) names: Vec<String>,
    pub(crate) tests: Vec<Test>,
    /// Those that come with the suite: name, version, and an outcome for each test.
    pub(crate) published: Vec<(String, String, Vec<Outcome>)>,
}

impl Judged {
    fn read(names: Vec<String>, value: &Value) -> Option<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let test = |value: &Value| {
            let outcomes = value["outcomes"].as_array()?.iter();
            let outcomes: Option<Vec<_>> =
                outcomes.map(|pair| Some((Outcome::read(pair[0].as_str()?), text(&pair[1])?))).collect();
            Some(Test {
                id: text(&value["id"])?,
                kind: text(&value["kind"])?,
                group: text(&value["group"])?,
                name: text(&value["name"])?,
                outcomes: outcomes.filter(|outcomes| outcomes.len() == names.len())?,
            })
        };
        let published = |value: &Value| {
            let words = value[2].as_array()?.iter();
            let outcomes: Option<_> = words.map(|word| word.as_str().map(Outcome::read)).collect();
            Some((text(&value[0])?, text(&value[1])?, outcomes?))
        };
        let tests: Option<Vec<_>> = value["tests"].as_array()?.iter().map(test).collect();
        let published: Option<_> = value["published"].as_array()?.iter().map(published).collect();
        Some(Self { names, tests: tests?, published: published? })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_suite_says_is_read_or_refused() {
        let one = |outcomes: Value| {
            json!({
                "tests": [{"id": "a", "kind": "check", "group": "g", "name": "n", "outcomes": outcomes}],
                "published": [["nginx", "1", ["no"]]],
            })
        };
        let names = || vec!["ours".to_owned()];
        let judged = Judged::read(names(), &one(json!([["yes", ""]]))).unwrap();
        assert_eq!(judged.tests[0].outcomes, [(Outcome::Pass, String::new())]);
        assert_eq!(judged.published[0].2, [Outcome::Fail]);
        // an outcome for each proxy, no less
        assert!(Judged::read(names(), &one(json!([]))).is_none());
        assert!(Judged::read(names(), &json!({"tests": []})).is_none());
    }

    #[test]
    fn an_unknown_word_is_no_pass() {
        for (word, outcome) in [
            ("pass", Outcome::Pass),
            ("retry", Outcome::Setup),
            ("harness_fail", Outcome::Setup),
            ("untested", Outcome::Setup),
            ("dependency_fail", Outcome::Dependency),
            ("optional_fail", Outcome::Fail),
        ] {
            assert_eq!(Outcome::read(word), outcome, "{word}");
        }
    }
}
