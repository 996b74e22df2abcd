//! `testssl`: what testssl.sh thinks of the default profile of TLS.

use std::{
    ffi::OsString,
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use crate::{Result, metadata, sh};

const HELP: &str = "\
usage: cargo xtask testssl [--write]

Runs testssl.sh (Debian: testssl.sh) against the binary with its default settings of TLS on a port that the system
chooses, and fails at any finding that is worse than `INFO`, but for four that are not the server's.

--write   writes the findings to docs/testssl.md
";

/// What testssl.sh minds and a server with a local certificate can't help, and why.
const NOT_OURS: [(&str, &str); 4] = [
    ("cert_revocation", "the certificate is of a local authority, which has no revocation service"),
    ("DNS_CAArecord", "`localhost` has no DNS zone to hold a CAA record"),
    (
        "sessionresumption_ticket",
        "testssl.sh 3.0 looks with an OpenSSL that has no TLS 1.3; resumption is shown by the tests",
    ),
    ("engine_problem", "the OpenSSL that testssl.sh runs has no GOST on some machines"),
];

/// Findings that say something of this one certificate or moment only.
const PASSING: [&str; 8] = [
    "cert",
    "cert_serialNumber",
    "cert_fingerprintSHA1",
    "cert_fingerprintSHA256",
    "cert_notBefore",
    "cert_notAfter",
    "HTTP_clock_skew",
    "scanTime",
];

const CONFIG: &str = "[security_headers]\n[[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"https\"\n\
                      [[certificate]]\ncert = \"certs/cert.pem\"\nkey = \"certs/key.pem\"\n[[route]]\nrespond = \"ok\"\n";

/// Whether it is installed, under Debian's name.
pub(crate) fn is_installed() -> bool {
    sh::is_installed("testssl", "--version")
}

pub(crate) fn run(args: &[OsString]) -> Result<()> {
    let write = match args {
        [] => false,
        [flag] if flag == "--write" => true,
        _ => return Err(HELP.into()),
    };
    if !is_installed() {
        return Err("testssl.sh is not installed: `apt-get install testssl.sh` has it on Debian".into());
    }
    sh::run(sh::cargo().args(["build", "--package", "portcullis"]))?;
    let target = metadata::load()?.target_directory;
    let (binary, work) = (target.join("debug/portcullis"), target.join("tmp/testssl"));
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work)?;
    sh::output(Command::new(&binary).current_dir(&work).args(["certs", "--out", "certs", "localhost"]))?;
    fs::write(work.join("edge.toml"), CONFIG)?;
    let edge = Edge::start(&binary, &work)?;

    let found = work.join("found.json");
    let mut testssl = Command::new("testssl");
    testssl.current_dir(&work).args(["--quiet", "--color", "0", "--warnings", "off"]);
    testssl.args(["--add-ca", "certs/ca.pem", "--jsonfile"]).arg(&found);
    // its status counts findings of every kind; they are judged below
    let status = testssl.arg(format!("localhost:{}", edge.port)).stdin(Stdio::null()).status()?;
    drop(edge);
    let findings: Vec<serde_json::Value> = serde_json::from_str(
        &fs::read_to_string(&found)
            .map_err(|error| format!("testssl ({status}) left no findings: {error}"))?,
    )?;
    let findings: Vec<Finding> = findings.iter().filter_map(Finding::read).collect();
    if write {
        fs::write(sh::root().join("docs/testssl.md"), report(&findings)?)?;
    }
    judge(&findings)
}

struct Finding {
    id: String,
    severity: String,
    text: String,
}

impl Finding {
    fn read(value: &serde_json::Value) -> Option<Self> {
        let field = |name: &str| value.get(name)?.as_str().map(str::to_owned);
        Some(Self { id: field("id")?, severity: field("severity")?, text: field("finding")? })
    }

    fn is_fine(&self) -> bool {
        matches!(self.severity.as_str(), "OK" | "INFO") || NOT_OURS.iter().any(|(id, _)| *id == self.id)
    }
}

fn judge(findings: &[Finding]) -> Result<()> {
    // a run that broke off finds nothing bad either
    for needed in ["TLS1_2", "TLS1_3", "heartbleed", "cert_chain_of_trust", "RC4"] {
        if !findings.iter().any(|finding| finding.id == needed) {
            return Err(format!("testssl did not get as far as `{needed}`").into());
        }
    }
    let bad: Vec<_> = findings
        .iter()
        .filter(|finding| !finding.is_fine())
        .map(|finding| format!("{} {}: {}", finding.severity, finding.id, finding.text))
        .collect();
    let count = |severity: &str| findings.iter().filter(|finding| finding.severity == severity).count();
    println!("testssl: {} OK, {} INFO, {} worse", count("OK"), count("INFO"), bad.len());
    if bad.is_empty() { Ok(()) } else { Err(bad.join("\n").into()) }
}

fn report(findings: &[Finding]) -> Result<String> {
    let mut text = "# testssl.sh on the default profile\n\nWhat testssl.sh (Debian's, version 3.0) finds in the binary with \
                    its default settings of TLS, a certificate of\n`portcullis certs` and `[security_headers]`. \
                    `cargo xtask testssl` repeats it and fails at anything worse than `INFO`;\n`--write` writes this page. \
                    This version gives no grade: `OK` and `INFO` are the best it has.\n\nThree findings are not the \
                    server's:\n\n"
        .to_owned();
    for (id, why) in NOT_OURS {
        writeln!(text, "- `{id}`: {why}.")?;
    }
    text += "\n| finding | severity | what |\n|---|---|---|\n";
    for finding in findings.iter().filter(|finding| !PASSING.contains(&finding.id.as_str())) {
        let what = finding.text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
        writeln!(text, "| `{}` | {} | {what} |", finding.id, finding.severity)?;
    }
    Ok(text)
}

/// The binary while it is looked at; ended when dropped.
struct Edge {
    child: Child,
    port: u16,
}

impl Edge {
    fn start(binary: &Path, work: &Path) -> Result<Self> {
        let mut command = Command::new(binary);
        command.current_dir(work).args(["run", "--config", "edge.toml"]).stdout(Stdio::piped());
        let mut child = command.stdin(Stdio::null()).spawn()?;
        let output = child.stdout.take();
        let mut edge = Self { child, port: 0 };
        let mut line = String::new();
        if let Some(output) = output {
            BufReader::new(output).read_line(&mut line)?;
        }
        let port = line.split_whitespace().find_map(|word| word.strip_prefix("https://127.0.0.1:"));
        edge.port = port.ok_or("the edge did not say where it listens")?.parse()?;
        Ok(edge)
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(id: &str, severity: &str) -> Finding {
        Finding { id: id.to_owned(), severity: severity.to_owned(), text: "a | b".to_owned() }
    }

    fn whole() -> Vec<Finding> {
        ["TLS1_2", "TLS1_3", "heartbleed", "cert_chain_of_trust", "RC4"].map(|id| finding(id, "OK")).into()
    }

    #[test]
    fn what_is_worse_is_told_and_a_run_that_broke_off_is_no_pass() {
        assert!(judge(&whole()).is_ok());
        assert!(judge(&whole()[1..]).is_err());
        for (id, severity, passes) in
            [("BEAST", "LOW", false), ("cert_revocation", "HIGH", true), ("HSTS", "INFO", true)]
        {
            let mut findings = whole();
            findings.push(finding(id, severity));
            assert_eq!(judge(&findings).is_ok(), passes, "{id}");
        }
    }

    #[test]
    fn the_report_leaves_out_what_passes() {
        let text = report(&[finding("cert_serialNumber", "INFO"), finding("BEAST", "OK")]).unwrap();
        assert!(text.contains("| `BEAST` | OK | a \\| b |") && !text.contains("serial"));
    }
}
