//! `loadtest`: what the proxy costs, alone, beside others, or as variants of itself.
//!
//! Every run starts a fresh proxy, and runs are interleaved (each round visits every subject), so that a machine
//! that gets slower or faster meanwhile does so for all. Cost is CPU time of all the proxy's processes over the
//! measured window, divided by the requests completed in it: it holds on a machine where proxy, origin and load
//! share the cores, which requests a second do not.

pub(crate) mod child;
mod measure;
mod options;
mod proc;
mod report;
mod subject;
mod workload;

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

use child::Running;
use measure::Bench;
use options::Options;
use report::Row;
use subject::Subject;

pub(crate) use proc::is_root;

use crate::{Result, certs, metadata, sh, sys};

/// Measures and prints.
pub(crate) fn run(args: Vec<OsString>) -> Result<()> {
    let Some(options) = options::parse(args)? else {
        print!("{}", options::HELP);
        return Ok(());
    };
    sys::note_interrupts();
    let programs = build(&options)?;
    let subjects = subjects(&options, &programs);
    let scratch = Scratch::new(&std::env::temp_dir())?;
    // files in memory, where there are such, so that no cache is measured by its disk
    let kept = Scratch::new(Path::new("/dev/shm")).or_else(|_| Scratch::new(&scratch.0))?;
    let certs = match &options.certs {
        Some(dir) => fs::canonicalize(dir).map_err(|error| format!("{}: {error}", dir.display()))?,
        None => {
            certs::write_with(&programs.portcullis, &scratch.0)?;
            scratch.0.clone()
        }
    };
    let (_first, one) = origin(&programs.origin, &scratch.0)?;
    let (_second, other) = origin(&programs.origin, &scratch.0)?;
    let bench = Bench {
        options: &options,
        loadgen: &programs.loadgen,
        dir: &scratch.0,
        certs: &certs,
        kept: &kept.0,
        origins: &[one, other],
    };
    let rows = measure(&bench, &subjects)?;

    println!("{}", report::table(&rows));
    println!(
        "{} round(s) of {} s after {} s of warm-up, {} workers, {}-byte answers; medians",
        options.rounds, options.seconds, options.warmup, options.workers, options.bytes
    );
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report::as_json(&options, &rows))?;
        fs::write(path, text + "\n").map_err(|error| format!("{}: {error}", path.display()))?;
    }
    if options.profile == "dev" {
        println!("built without optimisation: these figures say nothing about cost");
    }
    match report::bad(&rows) {
        0 => Ok(()),
        bad => {
            Err(format!("{bad} requests failed or were not answered well: the figures can't be trusted")
                .into())
        }
    }
}

fn measure(bench: &Bench<'_>, subjects: &[Subject]) -> Result<Vec<Row>> {
    let options = bench.options;
    let mut rows = Vec::new();
    for workload in &options.workloads {
        for subject in subjects {
            rows.push(Row { workload: *workload, subject: subject.name.clone(), samples: Vec::new() });
        }
    }
    let runs =
        options.workloads.iter().map(|workload| subjects.iter().filter(|s| s.speaks(*workload)).count());
    let bar = ProgressBar::new((runs.sum::<usize>() * options.rounds) as u64);
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} {eta_precise} {msg}")?);
    bar.enable_steady_tick(Duration::from_millis(500));
    for round in 1..=options.rounds {
        for (at, workload) in options.workloads.iter().enumerate() {
            for (index, subject) in
                subjects.iter().enumerate().filter(|(_, subject)| subject.speaks(*workload))
            {
                bar.set_message(format!("round {round}: {} {}", workload.name(), subject.name));
                let sample = bench.run(subject, *workload)?;
                rows[at * subjects.len() + index].samples.push(sample);
                bar.inc(1);
            }
        }
    }
    bar.finish_and_clear();
    Ok(rows)
}

struct Programs {
    portcullis: PathBuf,
    origin: PathBuf,
    loadgen: PathBuf,
    naive: PathBuf,
}

fn build(options: &Options) -> Result<Programs> {
    let mut cargo = sh::cargo();
    cargo.args(["build", "--profile", &options.profile]);
    cargo.args(["--package", "portcullis-origin", "--package", "portcullis-loadgen"]);
    if !options.peers_only {
        cargo.args(["--package", "portcullis"]);
    }
    sh::run(&mut cargo)?;
    if options.beside.contains(&subject::Peer::Naive) {
        // alone, because what it asks of a shared dependency would be built into the others
        let mut cargo = sh::cargo();
        sh::run(cargo.args(["build", "--profile", &options.profile, "--package", "portcullis-naive"]))?;
    }
    let folder = if options.profile == "dev" { "debug" } else { options.profile.as_str() };
    let target = metadata::load()?.target_directory.join(folder);
    Ok(Programs {
        portcullis: target.join("portcullis"),
        origin: target.join("portcullis-origin"),
        loadgen: target.join("portcullis-loadgen"),
        naive: target.join("portcullis-naive"),
    })
}

fn subjects(options: &Options, programs: &Programs) -> Vec<Subject> {
    let portcullis = &programs.portcullis;
    let mut subjects = Vec::new();
    if !options.peers_only {
        subjects.push(Subject::portcullis(portcullis));
        subjects.extend(options.variants.iter().map(|variant| Subject::variant(variant, portcullis)));
    }
    for peer in &options.beside {
        match peer.find(&programs.naive) {
            Some(subject) => subjects.push(subject),
            None => eprintln!("{} is not installed here: left out", peer.name()),
        }
    }
    subjects
}

/// Starts an origin; also gives its address.
fn origin(program: &Path, dir: &Path) -> Result<(Running, String)> {
    let mut command = Command::new(program);
    // two of them share the work
    command.args(["--threads", "1"]);
    let mut origin = Running::start("the origin", command, &dir.join("origin.log"), true)?;
    let line = origin.line(Duration::from_secs(10))?;
    let address = line.as_deref().and_then(|line| line.strip_prefix("listening on http://"));
    match address.map(str::to_owned) {
        Some(address) => Ok((origin, address)),
        None => Err(origin.failed("did not say where it listens")),
    }
}

/// A directory for configurations and logs that goes when the run ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new(parent: &Path) -> Result<Self> {
        let dir = parent.join(format!("portcullis-loadtest-{}", std::process::id()));
        fs::create_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
