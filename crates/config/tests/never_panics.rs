//! Whatever the text is, `parse` returns; what it returns can be shown, or is a plan that does not contradict itself.

use portcullis_config::parse;
use proptest::prelude::*;

const FULL: &str = include_str!("../examples/full.toml");

fn survives(text: &str) {
    match parse("f.toml", text) {
        Ok(config) => {
            config.warnings().render(true);
            config.plan().check().expect("what was read without an error can be carried out");
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
    fn on_a_sound_file_without_some_lines(gone in proptest::collection::vec(0..FULL.lines().count(), 0..4)) {
        let kept: Vec<_> = FULL.lines().enumerate().filter(|(n, _)| !gone.contains(n)).map(|(_, line)| line).collect();
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

#[test]
fn deep_nesting_is_an_error() {
    for text in
        ["a = ".to_owned() + &"[".repeat(100_000), "[".repeat(100_000), "a.".repeat(100_000) + "b = 1"]
    {
        survives(&text);
    }
}
