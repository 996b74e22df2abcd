//! Rules against small servers, which read paths step by step and in full, with nothing of what they check.

use proptest::prelude::*;

use super::{
    rule_tests::{allowing, only, passes},
    *,
};
use crate::test_support::get;

#[derive(Clone, Copy, Debug)]
struct Server {
    /// Whether parameters are dropped before the first decoding, before the second, and after all.
    drops: [bool; 3],
    decodings: usize,
    keeps_encoded_slash: bool,
    takes_backslashes: bool,
}

fn servers() -> Vec<Server> {
    let (both, mut all) = ([false, true], Vec::new());
    for (decodings, keeps_encoded_slash) in [(0, false), (1, false), (1, true), (2, false)] {
        for first in &both[..=decodings.min(1)] {
            for second in &both[..=decodings.saturating_sub(1)] {
                for (last, takes_backslashes) in [(false, false), (false, true), (true, false), (true, true)]
                {
                    let drops = [*first, *second, last];
                    all.push(Server { drops, decodings, keeps_encoded_slash, takes_backslashes });
                }
            }
        }
    }
    all
}

fn without_parameters(path: &str) -> String {
    let segments: Vec<&str> =
        path.split('/').map(|segment| segment.split_once(';').map_or(segment, |(name, _)| name)).collect();
    segments.join("/")
}

fn decode(path: &str, keeps_encoded_slash: bool) -> String {
    let mut parts = path.split('%');
    let mut out = parts.next().unwrap().to_owned();
    for part in parts {
        let octet = part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match octet.map(char::from) {
            Some(octet) if octet != '/' || !keeps_encoded_slash => {
                out.push(octet);
                out.push_str(&part[2..]);
            }
            _ => {
                out.push('%');
                out.push_str(part);
            }
        }
    }
    out
}

impl Server {
    /// Where it takes the path to.
    fn resolve(self, path: &str) -> String {
        let mut path = path.to_owned();
        for drops in &self.drops[..self.decodings] {
            if *drops {
                path = without_parameters(&path);
            }
            path = decode(&path, self.keeps_encoded_slash);
        }
        if self.takes_backslashes {
            path = path.replace('\\', "/");
        }
        if self.drops[2] {
            path = without_parameters(&path);
        }
        let mut segments = Vec::new();
        for segment in path.split('/') {
            match segment {
                "" | "." => {}
                ".." => drop(segments.pop()),
                name => segments.push(name),
            }
        }
        format!("/{}", segments.join("/"))
    }
}

fn is_below(path: &str, prefix: &str) -> bool {
    path == prefix || path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
}

/// A path of segments that servers disagree about.
fn path() -> impl Strategy<Value = String> {
    let mark =
        prop_oneof![8 => Just("/"), 4 => Just("%2f"), 2 => Just("%252f"), 2 => Just("\\"), 1 => Just("%5c")];
    let name = prop_oneof![
        4 => Just(".."),
        4 => Just("a"),
        2 => Just("b"),
        2 => Just(""),
        1 => Just("%2e%2e"),
        1 => Just("%252e."),
        1 => Just("."),
        1 => Just("%61"),
    ];
    let parameters = prop_oneof![6 => Just(""), 4 => Just(";"), 1 => Just("%3b"), 1 => Just("%253b")];
    let segment =
        (mark, name, parameters).prop_map(|(mark, name, parameters)| format!("{mark}{name}{parameters}"));
    prop::collection::vec(segment, 0..7).prop_map(|segments| segments.concat())
}

fn prefix(prefix: &str) -> PathPattern {
    PathPattern::Prefix(prefix.to_owned())
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 8000, source_file: Some(file!()), ..ProptestConfig::default() }
}

#[test]
fn what_a_server_takes_below_a_denied_prefix_is_denied() {
    let deny = |path| only(Rule::deny(StatusCode::FORBIDDEN).with_path(path));
    let rules = [("/a", "/a/**"), ("/a/b", "/a/b/**")].map(|(denied, glob)| {
        let exact = PathPattern::Exact(denied.to_owned());
        let below = [FilterRules::deny_prefixes([denied]), deny(prefix(denied))];
        (denied, below, deny(exact), deny(PathPattern::Glob(glob.to_owned())))
    });
    let servers = servers();
    proptest!(config(), |(path in path())| {
        let request = get(&format!("http://h/{path}"));
        for server in &servers {
            let resolved = server.resolve(request.uri().path());
            for (denied, below, exact, glob) in &rules {
                if !is_below(&resolved, denied) {
                    continue;
                }
                let alone = if resolved == *denied { exact } else { glob };
                for rules in below.iter().chain([alone]) {
                    prop_assert!(!passes(rules, &request), "{} {:?} {:?}", path, server, rules);
                }
            }
        }
    });
}

#[test]
fn what_a_rule_allows_no_server_takes_elsewhere() {
    let rules = allowing(Rule::allow().with_path(prefix("/a")));
    let servers = servers();
    let passed = std::cell::Cell::new(0);
    proptest!(config(), |(path in path())| {
        let request = get(&format!("http://h/a{path}"));
        if passes(&rules, &request) {
            passed.set(passed.get() + 1);
            for server in &servers {
                let resolved = server.resolve(request.uri().path());
                prop_assert!(is_below(&resolved, "/a"), "{} {:?} {}", request.uri(), server, resolved);
            }
        }
    });
    // a rule that allows nothing would be as good
    assert!(passed.get() > config().cases / 100, "{} passed", passed.get());
}
