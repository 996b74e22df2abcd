//! `ci`: everything a change must pass, in one go.

use std::{
    ffi::OsString,
    process::Command,
    time::{Duration, Instant},
};

use comfy_table::{Table, presets};

use crate::{Result, fuzz, interop, metadata, sh, test, testssl, tidy};

/// Installed where `CI=true` and it is missing. Compiling it takes some minutes on two cores, so elsewhere that is
/// left to the person.
const DENY: &str = "cargo-deny@0.20.2";

enum Outcome {
    Passed,
    Failed(String),
    /// Not run, and why.
    Skipped(String),
}

struct Step {
    name: &'static str,
    run: fn() -> Result<Outcome>,
}

const STEPS: [Step; 19] = [
    Step { name: "fmt", run: || cargo(&["fmt", "--all", "--", "--check"], &[]) },
    Step { name: "tidy", run: || tidy::run(&[]).map(|()| Outcome::Passed) },
    Step {
        name: "clippy",
        run: || {
            let args = ["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"];
            cargo(&args, &[])
        },
    },
    Step { name: "nginx install", run: || install("nginx-light", has_nginx()) },
    Step { name: "pebble install", run: || install("pebble", has_pebble()) },
    Step { name: "test", run: tests },
    Step { name: "pebble", run: pebble },
    Step { name: "redis install", run: || install("redis-server", has_redis()) },
    Step { name: "redis", run: redis },
    Step { name: "interop install", run: interop_install },
    Step { name: "interop", run: interop },
    Step { name: "testssl install", run: || install("testssl.sh", testssl::is_installed()) },
    Step { name: "testssl", run: look_at_tls },
    Step { name: "fuzz", run: || fuzz::run(&["--seconds".into(), "20".into()]).map(|()| Outcome::Passed) },
    Step {
        name: "doc",
        run: || {
            let args = ["doc", "--workspace", "--all-features", "--no-deps"];
            cargo(&args, &[("RUSTDOCFLAGS", "-D warnings")])
        },
    },
    Step { name: "deny install", run: deny_install },
    Step { name: "deny", run: || deny(&["bans", "licenses", "sources"]) },
    Step { name: "deny advisories", run: advisories },
    Step { name: "package", run: package },
];

/// Runs all steps, then fails if one did.
pub(crate) fn run(args: &[OsString]) -> Result<()> {
    if !args.is_empty() {
        return Err("usage: cargo xtask ci".into());
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header(["step", "result", "time"]);
    let mut failed = Vec::new();
    for step in STEPS {
        eprintln!("\n== {}", step.name);
        let begin = Instant::now();
        let outcome = (step.run)().unwrap_or_else(|error| Outcome::Failed(error.to_string()));
        let result = match &outcome {
            Outcome::Passed => "ok".to_owned(),
            Outcome::Failed(why) => {
                // once more below, where whoever reads only the end of a long log finds it
                eprintln!("{}: {why}", step.name);
                failed.push(format!("{}: {why}", step.name));
                "FAILED".to_owned()
            }
            Outcome::Skipped(why) => {
                eprintln!("{}: not run: {why}", step.name);
                format!("not run: {why}")
            }
        };
        table.add_row([step.name.to_owned(), result, shown(begin.elapsed())]);
    }
    println!("\n{table}");
    if failed.is_empty() { Ok(()) } else { Err(format!("failed:\n{}", failed.join("\n")).into()) }
}

fn shown(time: Duration) -> String {
    format!("{}:{:02}", time.as_secs() / 60, time.as_secs() % 60)
}

fn cargo(args: &[&str], envs: &[(&str, &str)]) -> Result<Outcome> {
    sh::run(sh::cargo().args(args).envs(envs.iter().copied()))?;
    Ok(Outcome::Passed)
}

fn in_ci() -> bool {
    sh::env("CI").is_some_and(|value| value == "true")
}

fn has_nginx() -> bool {
    sh::is_installed("nginx", "-v")
}

/// An ACME authority for tests. Its help is all that it says without a configuration, and that with a status of its own.
fn has_pebble() -> bool {
    Command::new("pebble").arg("-help").output().is_ok()
}

fn pebble() -> Result<Outcome> {
    if has_pebble() || in_ci() {
        return test::pebble(&[]).map(|()| Outcome::Passed);
    }
    Ok(Outcome::Skipped("pebble is not installed".to_owned()))
}

/// A store that instances share their rates in.
fn has_redis() -> bool {
    sh::is_installed("redis-server", "--version")
}

fn redis() -> Result<Outcome> {
    if has_redis() || in_ci() {
        return test::redis(&[]).map(|()| Outcome::Passed);
    }
    Ok(Outcome::Skipped("redis-server is not installed".to_owned()))
}

fn interop_install() -> Result<Outcome> {
    let python = [("python3-venv", "python3", "-cimport ensurepip")];
    for (package, program, flag) in python.into_iter().chain(interop::PACKAGES) {
        if let skipped @ Outcome::Skipped(_) = install(package, sh::is_installed(program, flag))? {
            return Ok(skipped);
        }
    }
    Ok(Outcome::Passed)
}

fn interop() -> Result<Outcome> {
    if interop::is_installed() || in_ci() {
        return interop::run(&[]).map(|()| Outcome::Passed);
    }
    Ok(Outcome::Skipped("its clients are not installed".to_owned()))
}

fn look_at_tls() -> Result<Outcome> {
    if testssl::is_installed() || in_ci() {
        return testssl::run(&[]).map(|()| Outcome::Passed);
    }
    Ok(Outcome::Skipped("testssl.sh is not installed".to_owned()))
}

/// A package of Debian's, unless it is there; elsewhere than in CI that is left to the person.
fn install(package: &str, is_there: bool) -> Result<Outcome> {
    if is_there {
        return Ok(Outcome::Passed);
    }
    if !in_ci() {
        return Ok(Outcome::Skipped(format!(
            "install {package}, or CI=true does it; what needs it is left out"
        )));
    }
    sh::run(Command::new("apt-get").args(["update", "--quiet"]))?;
    let mut install = Command::new("apt-get");
    install.args(["install", "--yes", "--quiet", "--no-install-recommends", package]);
    sh::run(install.env("DEBIAN_FRONTEND", "noninteractive"))?;
    Ok(Outcome::Passed)
}

/// With nginx and Pebble where they are there; in CI their absence is a failure and not a skip.
fn tests() -> Result<Outcome> {
    let parts = [(test::NGINX_VARIABLE, has_nginx()), (test::PEBBLE_VARIABLE, has_pebble())];
    let wanted = parts.iter().filter(|(_, is_there)| *is_there || in_ci());
    let envs: Vec<_> = wanted.map(|(variable, _)| (*variable, "1")).collect();
    test::run_with(&[], &envs)?;
    Ok(Outcome::Passed)
}

fn has_deny() -> bool {
    sh::is_installed("cargo-deny", "--version")
}

fn deny_install() -> Result<Outcome> {
    if has_deny() {
        return Ok(Outcome::Passed);
    }
    if in_ci() {
        // not optimised: it takes seconds more to run and minutes less to compile
        return cargo(&["install", "--debug", "--locked", DENY], &[("CARGO_PROFILE_DEV_DEBUG", "0")]);
    }
    Ok(Outcome::Skipped(format!("it takes minutes; `cargo install --locked {DENY}` or CI=true does it")))
}

fn deny(checks: &[&str]) -> Result<Outcome> {
    if !has_deny() {
        return Ok(Outcome::Skipped("cargo-deny is not installed".to_owned()));
    }
    let mut command = Command::new("cargo-deny");
    sh::run(command.current_dir(sh::root()).args(["--all-features", "check"]).args(checks))?;
    Ok(Outcome::Passed)
}

/// Only where the advisory database can be had: a machine without it must still be able to pass.
fn advisories() -> Result<Outcome> {
    if !has_deny() {
        return Ok(Outcome::Skipped("cargo-deny is not installed".to_owned()));
    }
    let fetched = sh::output(Command::new("cargo-deny").current_dir(sh::root()).args(["fetch", "db"]));
    if fetched.is_err() {
        return Ok(Outcome::Skipped("the advisory database can't be reached".to_owned()));
    }
    deny(&["advisories"])
}

/// That each published crate makes a package: every path dependency has a version, every field is there.
fn package() -> Result<Outcome> {
    let mut command = sh::cargo();
    command.args(["package", "--workspace", "--no-verify", "--allow-dirty", "--quiet"]);
    for package in metadata::load()?.packages {
        if !package.published {
            command.args(["--exclude", &package.name]);
        }
    }
    sh::run(&mut command)?;
    Ok(Outcome::Passed)
}
