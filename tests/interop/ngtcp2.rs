//! ngtcp2's client as Debian has it: `gtlsclient`, of the package `ngtcp2-client`.

use std::{fs::File, io::Read, io::Write as _, path::Path, process::Command};

use crate::{
    Setup, down,
    origin::{Check, Pattern},
    printed, run, up,
};

/// The paths, with these options before them.
async fn fetch(setup: &Setup, options: &[&str], paths: &[&str]) -> String {
    let mut command = Command::new("gtlsclient");
    command.args(["--exit-on-all-streams-close", "--no-quic-dump", "--timeout=20s", "--sni=localhost"]);
    command.args(options).args(["127.0.0.1", &setup.port()]);
    command.args(paths.iter().map(|path| format!("https://localhost:{}{path}", setup.port())));
    let (out, err) = printed(command).await;
    out + &err
}

/// Whether the file is the first so many bytes of the pattern.
fn assert_pattern(path: &Path, length: u64) {
    let mut file = File::open(path).unwrap();
    let (mut check, mut buffer) = (Check::new(), vec![0; 1 << 20]);
    loop {
        let read = file.read(&mut buffer).unwrap();
        if read == 0 {
            break;
        }
        check.take(&buffer[..read]);
    }
    assert_eq!((check.length, check.good), (length, true));
}

#[test]
#[ignore = "takes ngtcp2-client: cargo xtask interop"]
fn ngtcp2_fetches_pages() {
    run(async {
        let setup = Setup::new().await;
        let dir = format!("--download={}", setup.edge.dir().path().display());
        let said = fetch(&setup, &[&dir], &["/text", "/bytes/70000", "/none"]).await;
        assert_eq!(std::fs::read_to_string(setup.file("text")).unwrap(), "a page");
        assert_pattern(&setup.file("70000"), 70_000);
        assert!(said.contains("[:status: 404]"), "{said}");
    });
}

#[test]
#[ignore = "takes ngtcp2-client: cargo xtask interop"]
fn ngtcp2_uploads() {
    run(async {
        let setup = Setup::new().await;
        let path = setup.file("upload");
        let mut file = File::create(&path).unwrap();
        Pattern::new(up()).for_each(|piece| file.write_all(&piece).unwrap());
        let (data, dir) = (
            format!("--data={}", path.display()),
            format!("--download={}", setup.edge.dir().path().display()),
        );
        fetch(&setup, &["--quiet", "--http-method=POST", &data, &dir], &["/sink"]).await;
        assert_eq!(std::fs::read_to_string(setup.file("sink")).unwrap(), format!("{} good", up()));
    });
}

#[test]
#[ignore = "takes ngtcp2-client: cargo xtask interop"]
fn ngtcp2_downloads() {
    run(async {
        let setup = Setup::new().await;
        let dir = format!("--download={}", setup.edge.dir().path().display());
        let length = down().to_string();
        fetch(&setup, &["--quiet", &dir], &[&format!("/bytes/{length}")]).await;
        assert_pattern(&setup.file(&length), down());
    });
}

/// RFC 9000 section 9: to another port and another connection id. (As behind a NAT this client gets stuck: it repeats a frame
/// that does not count as a move by section 9.1. Its own update of keys fails where the server's came first.)
#[test]
#[ignore = "takes ngtcp2-client: cargo xtask interop"]
fn ngtcp2_moves_during_a_download() {
    run(async {
        let setup = Setup::new().await;
        let dir = format!("--download={}", setup.edge.dir().path().display());
        let length = 24 << 20;
        let said = fetch(
            &setup,
            &["--no-http-dump", "--change-local-addr=30ms", &dir],
            &[&format!("/bytes/{length}")],
        )
        .await;
        assert_pattern(&setup.file(&length.to_string()), length);
        assert!(said.contains("Local address is now") && said.contains("PATH_RESPONSE"), "it did not move");
    });
}

#[test]
#[ignore = "takes ngtcp2-client: cargo xtask interop"]
fn ngtcp2_resumes_with_0rtt() {
    run(async {
        let setup = Setup::new().await;
        let (session, parameters) = (setup.file("session"), setup.file("parameters"));
        let options = [
            format!("--session-file={}", session.display()),
            format!("--tp-file={}", parameters.display()),
            format!("--download={}", setup.edge.dir().path().display()),
        ];
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let mut told = Vec::new();
        for turn in 0..2 {
            let said = fetch(&setup, &options, &["/early"]).await;
            told.push(std::fs::read_to_string(setup.file("early")).unwrap());
            assert_eq!(said.contains("0RTT STREAM"), turn > 0, "it sends early when it has a session");
            assert!(!said.contains("Early data was rejected"), "{said}");
        }
        // Debian's version can't read back the token that it wrote, so its address is only claimed and the request waits
        assert_eq!(told, ["no", "no"]);
    });
}
