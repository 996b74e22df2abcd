//! `interop`: the binary beside HTTP/3 clients that others wrote.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Result, metadata, sh, test};

/// Debian's packages that the suite takes, with a program of each and a flag that it answers to.
pub(crate) const PACKAGES: [(&str, &str, &str); 3] = [
    ("ngtcp2-client", "gtlsclient", "--help"),
    ("chromium", "chromium", "--version"),
    ("openssl", "openssl", "version"),
];
const AIOQUIC: &str = "1.7.2";
/// Where the tests look for a Python that has aioquic.
const PYTHON_VARIABLE: &str = "PORTCULLIS_INTEROP_PYTHON";
const FULL_VARIABLE: &str = "PORTCULLIS_INTEROP_FULL";

/// Whether all parts are there that are not made here.
pub(crate) fn is_installed() -> bool {
    PACKAGES.iter().all(|(_, program, flag)| sh::is_installed(program, flag))
}

/// Builds the binary, makes the Python environment, and runs the suite; `--full` makes its bodies long, the rest of `args` goes to
/// the tests.
pub(crate) fn run(args: &[OsString]) -> Result<()> {
    let missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|(_, program, flag)| !sh::is_installed(program, flag))
        .map(|(package, ..)| *package)
        .collect();
    if !missing.is_empty() {
        return Err(format!("install Debian's {}", missing.join(" and ")).into());
    }
    let target = metadata::load()?.target_directory;
    let python = python(&target)?;
    sh::run(sh::cargo().args(["build", "--package", "portcullis"]))?;
    let (full, rest): (Vec<&OsString>, Vec<&OsString>) = args.iter().partition(|arg| *arg == "--full");
    let mut tests = test::suite("interop");
    tests.args(["--ignored", "--test-threads=2"]).args(rest).env(PYTHON_VARIABLE, python);
    if sh::env(test::BINARY_VARIABLE).is_none() {
        tests.env(test::BINARY_VARIABLE, target.join("debug/portcullis"));
    }
    if !full.is_empty() {
        tests.env(FULL_VARIABLE, "1");
    }
    sh::run(&mut tests)
}

/// A Python of our own under `target`, with aioquic from its registry, made when it is not there yet.
fn python(target: &Path) -> Result<PathBuf> {
    let dir = target.join("interop-python");
    let python = dir.join("bin/python");
    let version = ["-c", "import aioquic; print(aioquic.__version__)"];
    if sh::output(Command::new(&python).args(version)).is_ok_and(|found| found.trim() == AIOQUIC) {
        return Ok(python);
    }
    sh::run(Command::new("python3").args(["-m", "venv"]).arg(&dir))?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    sh::run(pip.arg(format!("aioquic=={AIOQUIC}")))?;
    Ok(python)
}
