//! `test`: the end-to-end tests run the real binary, so it is built before them.

use std::{ffi::OsString, process::Command};

use crate::{Result, metadata, sh};

/// Where the end-to-end tests look for the binary's path.
pub(crate) const BINARY_VARIABLE: &str = "PORTCULLIS_BIN";

/// Tells the end-to-end tests to run those that take nginx, and to fail where it is missing.
pub(crate) const NGINX_VARIABLE: &str = "PORTCULLIS_E2E_NGINX";

/// The same for those that take Pebble.
pub(crate) const PEBBLE_VARIABLE: &str = "PORTCULLIS_E2E_PEBBLE";

/// Builds and tests; `args` go to `cargo test`.
pub(crate) fn run(args: &[OsString]) -> Result<()> {
    run_with(args, &[])
}

/// The same with more in the tests' environment.
pub(crate) fn run_with(args: &[OsString], envs: &[(&str, &str)]) -> Result<()> {
    let mut build = sh::cargo();
    if selects_packages(args) {
        build.args(["build", "--package", "portcullis"]);
    } else {
        // One build for the binary and the tests: the same features, so every dependency is compiled once.
        build.args(["build", "--workspace", "--all-features", "--bins", "--tests"]);
    }
    sh::run(&mut build)?;
    let binary = metadata::load()?.target_directory.join("debug/portcullis");
    if !binary.exists() {
        return Err(format!("{} was not built", binary.display()).into());
    }
    let mut test = sh::cargo();
    test.arg("test");
    if !selects_packages(args) {
        // one run tells of all that fails
        test.args(["--workspace", "--all-features", "--no-fail-fast"]);
    }
    sh::run(test.args(args).env(BINARY_VARIABLE, binary).envs(envs.iter().copied()))
}

/// `cargo test` of one test target; what is added goes to the tests. Of the whole workspace, though the target is in one
/// package: so its features are those of [`run`], and nothing is compiled a second time after that.
pub(crate) fn suite(target: &str) -> Command {
    let mut test = sh::cargo();
    test.args(["test", "--workspace", "--all-features", "--test", target, "--"]);
    test
}

/// The suite that takes Pebble; `args` go to the tests.
pub(crate) fn pebble(args: &[OsString]) -> Result<()> {
    let mut test = suite("pebble");
    sh::run(test.args(["--ignored", "--test-threads=4"]).args(args))
}

/// The suite that takes a redis-server; `args` go to the tests. One after another: they count by the clock.
pub(crate) fn redis(args: &[OsString]) -> Result<()> {
    let mut test = suite("redis");
    sh::run(test.args(["--ignored", "--test-threads=1"]).args(args))
}

/// Whether the caller says which packages to test.
fn selects_packages(args: &[OsString]) -> bool {
    args.iter()
        .take_while(|arg| *arg != "--")
        .filter_map(|arg| arg.to_str())
        .any(|arg| arg.starts_with("-p") || arg.starts_with("--package") || arg == "--workspace")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_choice_is_seen_before_the_dashes_only() {
        let selects = |args: &[&str]| selects_packages(&args.iter().map(Into::into).collect::<Vec<_>>());
        assert!(selects(&["-p", "portcullis-tests"]));
        assert!(selects(&["--package=portcullis-tests"]));
        assert!(!selects(&["name_of_a_test"]));
        assert!(!selects(&["--", "-p"]));
    }
}
