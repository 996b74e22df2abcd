//! `portcullis check`.

use std::net::TcpListener;

use crate::support::{Dir, edge::run_to_end};

const MISTAKES: &str = r#"drain_timeout = 10

[limits]
max_conections = 5000

[[listener]]
address = "127.0.0.1:PORT"
protocol = "htps"

[[route]]
host = "a.example.com"
cluster = "wep"

[[cluster]]
name = "web"
endpoints = ["127.0.0.1"]
"#;

#[test]
fn five_mistakes_are_five_messages() {
    let dir = Dir::new();
    // held here: whoever binds it after all says so
    let held = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = held.local_addr().unwrap().port().to_string();
    let file = dir.write("edge.toml", &MISTAKES.replace("PORT", &port));
    for command in ["check", "run"] {
        let (status, stdout, stderr) = run_to_end([command.as_ref(), "--config".as_ref(), file.as_os_str()]);
        assert!(!status.success(), "{stderr}");
        assert_eq!(stdout, "");
        assert_eq!(stderr.matches("error: ").count(), 5, "{stderr}");
        assert!(stderr.contains("edge.toml: 5 errors"), "{stderr}");
        for (place, message, hint) in [
            ("1:17", "`drain_timeout` wants a duration", "\"10s\""),
            ("4:1", "unknown key `max_conections`", "did you mean `max_connections`?"),
            ("8:12", "`protocol` must be", "did you mean \"https\"?"),
            ("12:11", "there is no cluster \"wep\"", "did you mean \"web\"?"),
            ("16:14", "`endpoints[0]` wants", "port"),
        ] {
            // every message is a block: what, where, the line, the hint
            let block = stderr.split("\nerror: ").find(|block| block.contains(message));
            let block = block.unwrap_or_else(|| panic!("no {message:?} in:\n{stderr}"));
            assert!(block.contains(&format!("edge.toml:{place}")), "{place} in:\n{block}");
            assert!(block.contains("help: ") && block.contains(hint), "{hint} in:\n{block}");
        }
        assert!(!stderr.contains("in use"), "{stderr}");
    }
}

#[test]
fn a_good_file_is_ok_and_nothing_is_bound() {
    let dir = Dir::new();
    let held = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let file = dir.write(
        "edge.toml",
        &format!(
            "[[listener]]\naddress = \"{}\"\nprotocol = \"http\"\n\
             [[route]]\nrespond = \"hi\"\n",
            held.local_addr().unwrap()
        ),
    );
    let args = |command: &'static str| [command.into(), "--config".into(), file.clone().into_os_string()];
    let (status, stdout, stderr) = run_to_end::<[std::ffi::OsString; 3]>(args("check"));
    assert!(status.success(), "{stderr}");
    assert!(stdout.contains("edge.toml: ok (1 listeners, 1 routes, 0 clusters)"), "{stdout}");
    // what shows that it would have been noticed
    let (status, _, stderr) = run_to_end::<[std::ffi::OsString; 3]>(args("run"));
    assert!(!status.success());
    assert!(stderr.contains("in use") && stderr.contains(&std::process::id().to_string()), "{stderr}");
}
