//! Whatever the text is, `parse` returns; what it returns can be shown, or is a plan that does not contradict itself.

use portcullis_config::parse;
use portcullis_edge::plan::Plan;
use proptest::{prelude::*, sample::Index};

const FULL: &str = include_str!("../examples/full.toml");

/// Whether there is such a tier is not the file's to know: a program without it says so.
fn without_disk(plan: &mut Plan) {
    if let Some(cache) = &mut plan.cache {
        cache.disk = None;
    }
}

fn survives(text: &str) {
    match parse("f.toml", text) {
        Ok(config) => {
            config.warnings().render(true);
            let mut plan = config.lower();
            without_disk(&mut plan);
            plan.check().expect("what was read without an error can be carried out");
        }
        Err(errors) => {
            assert!(errors.len() > 0);
            let lines = text.split('\n').count();
            let mut last = (0, 0);
            for error in errors.iter() {
                assert!((1..=lines).contains(&error.line), "{error:?}");
                assert!(error.column >= 1);
                assert!(text.get(error.span()).is_some(), "{error:?}");
                assert!((error.line, error.column) >= last, "in the order of the file");
                last = (error.line, error.column);
            }
            errors.render(false);
            errors.render(true);
        }
    }
}

/// Pieces that parsers trip over.
fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("[[".to_owned()),
        Just("]]".to_owned()),
        Just("[".to_owned()),
        Just("]".to_owned()),
        Just("{".to_owned()),
        Just("}".to_owned()),
        Just("=".to_owned()),
        Just("\"".to_owned()),
        Just("\"\"\"".to_owned()),
        Just("'".to_owned()),
        Just(".".to_owned()),
        Just(",".to_owned()),
        Just("\n".to_owned()),
        Just("\r\n".to_owned()),
        Just("\u{feff}".to_owned()),
        Just("\u{202e}\t\u{0}é".to_owned()),
        Just("listener = [1, {}]\n".to_owned()),
        Just("[route.path]\n".to_owned()),
        Just("[[limits.max_tunnels]]\n".to_owned()),
        Just("9999999999999999999999999999".to_owned()),
        Just("-0x1".to_owned()),
        Just("1979-05-27T07:32:00Z".to_owned()),
        Just("nan".to_owned()),
        proptest::sample::select(&VALUES[..]).prop_map(str::to_owned),
        "\\PC{0,8}",
        "[a-z_]{1,12} = .{0,10}\n",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn on_any_text(text in any::<String>()) {
        survives(&text);
    }

    #[test]
    fn on_pieces_of_toml(pieces in proptest::collection::vec(piece(), 0..40)) {
        survives(&pieces.concat());
    }

    #[test]
    fn on_a_sound_file_with_a_hole_and_a_piece(from in 0..FULL.len(), len in 0usize..60, piece in piece()) {
        // the example is ASCII, so that every index is a border
        let to = (from + len).min(FULL.len());
        survives(&format!("{}{piece}{}", &FULL[..from], &FULL[to..]));
    }

    #[test]
    fn on_shuffled_lines(lines in Just(FULL.lines().collect::<Vec<_>>()).prop_shuffle(), keep in 1usize..120) {
        survives(&lines[..keep.min(lines.len())].join("\n"));
    }

    #[test]
    fn on_a_sound_file_without_some_lines_and_tables(
        lines in proptest::collection::vec(any::<Index>(), 0..4),
        tables in proptest::collection::vec(any::<Index>(), 0..4),
    ) {
        let all: Vec<_> = FULL.split("\n[").collect();
        let gone: Vec<_> = tables.iter().map(|gone| gone.index(all.len())).collect();
        // what stands above the first header is no table
        let kept = all.iter().enumerate().filter(|(n, _)| *n == 0 || !gone.contains(n)).map(|(_, table)| *table);
        let text = kept.collect::<Vec<_>>().join("\n[");
        let all: Vec<_> = text.lines().collect();
        let gone: Vec<_> = lines.iter().map(|gone| gone.index(all.len())).collect();
        let kept: Vec<_> = all.iter().enumerate().filter(|(n, _)| !gone.contains(n)).map(|(_, line)| *line).collect();
        survives(&kept.join("\n"));
    }

    #[test]
    fn on_other_values(at in 0usize..200, piece in piece()) {
        let keys: Vec<_> = FULL.lines().enumerate().filter(|(_, line)| line.contains(" = ")).collect();
        let (line, text) = keys[at % keys.len()];
        let key = text.split(" = ").next().unwrap();
        let changed: Vec<_> = FULL
            .lines()
            .enumerate()
            .map(|(n, text)| if n == line { format!("{key} = {piece}") } else { text.to_owned() })
            .collect();
        survives(&changed.join("\n"));
    }
}

/// What a plan could refuse that `parse` let through: each value in the place of each, and every table gone.
const SMALL: &str = r#"[[listener]]
address = "[::]:80"
protocol = "http"

[rate_limit]
requests = 10
burst = 20
cost = 2
key = ["client", "cookie:a"]
shared = "open"

[rate_limit_store]
url = "redis://10.0.0.5:6379"

[[filter.rule]]
action = "deny"
regexes = ["a"]
countries = ["CH"]

[filter]
countries = "a.mmdb"

[jwt]
algorithms = ["HS256"]
secret = "a"
cookie = "a"

[cors]
origins = ["https://a.test"]
credentials = true

[[route]]
cluster = "unix"
upstream_host = "a.test"

[[route]]
path = "/app"
cluster = "app"
upstream_host = "endpoint"

[[cluster]]
name = "unix"
endpoints = ["unix:/run/app.sock"]

[[cluster]]
name = "app"
endpoints = ["app:80"]
sticky_cookie = "a"
"#;

const VALUES: [&str; 24] = [
    "\"\"",
    "\"off\"",
    "\"endpoint\"",
    "\"keep\"",
    "\"redis://\"",
    "\"redis://10.0.0.5:99999\"",
    "\"redis://10.0.0.5/a\"",
    "\"redis://:@[::1]:1/0\"",
    "\"redis://0.0.0.0\"",
    "\"unix://\"",
    "\"unix:///a?db=b\"",
    "\"unix:/a\"",
    "\"app\"",
    "\"a=b\"",
    "\"local\"",
    "0",
    "1",
    "1000000",
    "true",
    "[\"unix:/a\"]",
    "[\"app:80\", \"app:81\"]",
    "[\"*\"]",
    "[\"*\", \"https://a.test\"]",
    "[\"(\"]",
];

#[test]
fn on_a_small_file_with_every_value_in_every_place() {
    assert!(parse("f.toml", SMALL).is_ok_and(|config| config.plan().check().is_ok()));
    let lines: Vec<_> = SMALL.lines().collect();
    for (n, line) in lines.iter().enumerate() {
        let Some((key, _)) = line.split_once(" = ") else { continue };
        for value in VALUES {
            let line = format!("{key} = {value}");
            let (before, after) = (&lines[..n], &lines[n + 1..]);
            survives(&[before, &[&line], after].concat().join("\n"));
        }
    }
}

#[test]
fn on_a_sound_file_without_each_of_its_tables() {
    for text in [SMALL, FULL] {
        let tables: Vec<_> = text.split("\n[").collect();
        for gone in 1..tables.len() {
            survives(&[&tables[..gone], &tables[gone + 1..]].concat().join("\n["));
        }
    }
}

#[test]
fn deep_nesting_is_an_error() {
    for text in
        ["a = ".to_owned() + &"[".repeat(100_000), "[".repeat(100_000), "a.".repeat(100_000) + "b = 1"]
    {
        survives(&text);
    }
}
