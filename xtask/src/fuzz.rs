//! `fuzz`: builds a fuzz target and runs it for a while.
//!
//! The instrumentation that libFuzzer needs is made by code generation options that the stable compiler has, so neither a
//! nightly one nor another tool is needed; only a C++ compiler, for libFuzzer itself.

use std::{
    ffi::OsString,
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use crate::{Result, sh};

const HELP: &str = "\
usage: cargo xtask fuzz [TARGET] [--seconds N]

Runs one fuzz target, or all of them, for N seconds each (60). What it finds to crash is left in fuzz/artifacts.
";

/// Coverage of edges and comparisons, as libFuzzer reads it.
const FLAGS: &[&str] = &[
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];

pub(crate) fn run(args: &[OsString]) -> Result<()> {
    let (mut wanted, mut seconds) = (None, 60_u32);
    let mut args = args.iter().map(|arg| arg.to_string_lossy());
    while let Some(arg) = args.next() {
        match &*arg {
            "-h" | "--help" => {
                print!("{HELP}");
                return Ok(());
            }
            "--seconds" => {
                let value = args.next().ok_or("--seconds takes a number")?;
                seconds = value.parse().map_err(|_| format!("--seconds takes a number, not `{value}`"))?;
            }
            name if !name.starts_with('-') && wanted.is_none() => wanted = Some(name.to_owned()),
            other => return Err(format!("`{other}` means nothing here\n\n{HELP}").into()),
        }
    }
    let root = sh::root();
    let names = targets(&root)?;
    if let Some(wanted) = &wanted
        && !names.contains(wanted)
    {
        return Err(format!("no target `{wanted}`; there are: {}", names.join(", ")).into());
    }
    for name in names.iter().filter(|name| wanted.as_ref().is_none_or(|wanted| wanted == *name)) {
        one(&root, name, seconds)?;
    }
    Ok(())
}

/// A file each.
fn targets(root: &std::path::Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root.join("fuzz/targets"))? {
        if let Some(name) = entry?.path().file_stem() {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn one(root: &std::path::Path, name: &str, seconds: u32) -> Result<()> {
    if !sh::is_installed("c++", "--version") {
        return Err("libFuzzer is C++: install a C++ compiler (`apt-get install g++`)".into());
    }
    let host = host()?;
    let target_directory = root.join("target/fuzz");
    let mut build = sh::cargo();
    build
        .current_dir(root.join("fuzz"))
        .args(["build", "--release", "--bin", name, "--target", &host])
        .env("CARGO_TARGET_DIR", &target_directory)
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"));
    sh::run(&mut build)?;

    // what it learns stays outside of the seeds that are kept
    let learned: PathBuf = target_directory.join("corpus").join(name);
    let artifacts = root.join("fuzz/artifacts").join(name);
    fs::create_dir_all(&learned)?;
    fs::create_dir_all(&artifacts)?;
    let program = target_directory.join(&host).join("release").join(name);
    let mut fuzz = Command::new(program);
    fuzz.args([&learned, &root.join("fuzz/corpus").join(name)])
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(format!("-max_total_time={seconds}"))
        .args(["-rss_limit_mb=1024", "-timeout=5", "-max_len=5000", "-print_final_stats=1", "-verbosity=0"]);
    // what it prints fills pages: of a run that found nothing, the figures are enough
    let output =
        fuzz.stdin(Stdio::null()).output().map_err(|error| format!("{name} did not start: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        eprintln!("{said}");
        let (status, artifacts) = (output.status, artifacts.display());
        return Err(format!("{name} found something: {status}; what it was given is in {artifacts}").into());
    }
    println!("{name}: {}", figures(&said));
    Ok(())
}

/// What a run says of itself at its end: lines of `stat::name: value`.
fn figures(said: &str) -> String {
    let stats = said.lines().filter_map(|line| line.strip_prefix("stat::"));
    stats.map(|stat| stat.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join(", ")
}

/// The target of this machine, by the compiler's own word.
fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output()?;
    let text = String::from_utf8(output.stdout)?;
    let line = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(line.ok_or("rustc does not say what it builds for")?.to_owned())
}
