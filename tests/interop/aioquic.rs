//! aioquic, by `h3.py` beside this.

use std::{
    env,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Command, Stdio},
};

use portcullis_testkit::process::ChildGuard;
use serde_json::{Value, json};

use crate::{Setup, down, printed, run, up};

/// `PORTCULLIS_INTEROP_PYTHON`, which has aioquic.
fn python(setup: &Setup, arguments: &[&str]) -> Command {
    let python = env::var_os("PORTCULLIS_INTEROP_PYTHON")
        .expect("PORTCULLIS_INTEROP_PYTHON is a Python with aioquic; `cargo xtask interop` makes one");
    let mut command = Command::new(python);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/h3.py"));
    command.arg(arguments[0]).arg(setup.port()).arg(setup.file("ca.pem")).args(&arguments[1..]);
    command
}

async fn saw(setup: &Setup, arguments: &[&str]) -> Value {
    let (out, _) = printed(python(setup, arguments)).await;
    serde_json::from_str(out.lines().last().unwrap_or_default()).expect("JSON")
}

#[test]
#[ignore = "takes aioquic: cargo xtask interop"]
fn aioquic_requests_answers_and_trailers() {
    run(async {
        let setup = Setup::new().await;
        let saw = saw(&setup, &["basics"]).await;
        let alt_svc = format!("h3=\":{}\"", setup.port());
        assert_eq!(saw["page"][0], 200);
        assert_eq!(saw["page"][1], "a page");
        assert!(saw["page"][2].as_str().unwrap().contains(&alt_svc) || saw["page"][2] == "", "{saw}");
        assert_eq!(saw["head"], json!([200, 0, "1000"]));
        assert_eq!(saw["none"], 404);
        assert_eq!(saw["echo"], json!([200, "some bytes", {"x-sum": "10"}]));
    });
}

#[test]
#[ignore = "takes aioquic: cargo xtask interop"]
fn aioquic_uploads() {
    run(async {
        let setup = Setup::new().await;
        let saw = saw(&setup, &["upload", &up().to_string()]).await;
        assert_eq!(saw, json!({"status": 200, "said": format!("{} good", up())}));
    });
}

#[test]
#[ignore = "takes aioquic: cargo xtask interop"]
fn aioquic_downloads() {
    run(async {
        let setup = Setup::new().await;
        let saw = saw(&setup, &["download", &down().to_string(), "stay"]).await;
        assert_eq!(
            (&saw["status"], &saw["length"], &saw["good"]),
            (&json!(200), &json!(down()), &json!(true))
        );
    });
}

/// RFC 9000 section 9: with the same connection id, as behind a NAT, and with another.
#[test]
#[ignore = "takes aioquic: cargo xtask interop"]
fn aioquic_changes_its_port_during_a_download() {
    run(async {
        let setup = Setup::new().await;
        for how in ["rebind", "migrate"] {
            let saw = saw(&setup, &["download", &(8 << 20).to_string(), how]).await;
            assert_eq!((&saw["length"], &saw["good"]), (&json!(8 << 20), &json!(true)), "{how} {saw}");
            assert_ne!(saw["ports"][0], saw["ports"][1], "{how} {saw}");
        }
    });
}

#[test]
#[ignore = "takes aioquic: cargo xtask interop"]
fn aioquic_resumes_with_0rtt() {
    run(async {
        let setup = Setup::new().await;
        let saw = saw(&setup, &["resume"]).await;
        assert_eq!(saw[0], json!([200, "no", false, false]));
        assert_eq!(
            saw[1],
            json!([200, "no", true, true]),
            "an address that is only claimed is not served early"
        );
        assert_eq!(saw[2], json!([200, "1", true, true]), "the origin is told of early data");
    });
}

#[test]
#[ignore = "takes aioquic: cargo xtask interop"]
fn aioquic_sees_goaway_and_a_whole_answer_at_a_drain() {
    run(async {
        let setup = Setup::new().await;
        let mut command = python(&setup, &["drain", "/late"]);
        let mut child = ChildGuard::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped())).unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let (asked, out) = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            out.read_line(&mut line).unwrap();
            (line, out)
        })
        .await
        .unwrap();
        assert_eq!(asked, "asked\n");
        setup.edge.terminate();
        let rest = tokio::task::spawn_blocking(move || {
            let mut rest = String::new();
            let mut out = out;
            out.read_to_string(&mut rest).unwrap();
            rest
        });
        let saw: Value = serde_json::from_str(&rest.await.unwrap()).unwrap();
        assert_eq!((&saw["status"], &saw["said"]), (&json!(200), &json!("late")), "{saw}");
        // RFC 9114 section 5.2: ids never grow, and the request under way is below them
        let ids: Vec<u64> =
            saw["goaways"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
        assert!(!ids.is_empty() && ids.is_sorted_by(|a, b| a >= b), "{saw}");
        assert!(ids.iter().all(|id| *id > saw["stream"].as_u64().unwrap()), "{saw}");
        assert_eq!(saw["code"], 0x100, "H3_NO_ERROR");
        drop(child);
    });
}

/// RFC 9220.
#[test]
#[ignore = "takes aioquic: cargo xtask interop"]
fn aioquic_websocket_over_http3() {
    run(async {
        let setup = Setup::new().await;
        let saw = saw(&setup, &["websocket"]).await;
        let expected = json!({"setting": 1, "status": 200, "echoed": true, "closed": true, "reset": null});
        assert_eq!(saw, expected);
    });
}
