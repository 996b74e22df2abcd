//! `cachetests`: the public tests of HTTP caches (github.com/http-tests/cache-tests) against the binary.
//!
//! The suite is a checkout that the operator made: it is no part of this repository, and nothing here fetches it.

mod proxy;
mod report;
mod suite;

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use lexopt::prelude::*;

use proxy::Proxy;
use suite::Suite;

use crate::{Result, metadata, sh, sys};

const HELP: &str = "\
cargo xtask cachetests --suite DIR: the public tests of HTTP caches against the binary

  --suite DIR      a checkout of github.com/http-tests/cache-tests in which `npm install` was run; needs node
  --bin PATH       the binary (default: built with cargo's dev profile)
  --beside P,...   nginx and varnish, where they are installed, in the same way
  --keep DIR       the results as the suite gives them, one file for each proxy
  --write          writes docs/cache-tests.md
";

struct Options {
    suite: PathBuf,
    binary: Option<PathBuf>,
    beside: Vec<OsString>,
    keep: Option<PathBuf>,
    write: bool,
}

fn parse(args: &[OsString]) -> Result<Option<Options>> {
    let (mut suite, mut binary, mut beside, mut keep, mut write) = (None, None, Vec::new(), None, false);
    let mut args = lexopt::Parser::from_args(args);
    while let Some(arg) = args.next()? {
        match arg {
            // the programs have working directories of their own
            Long("suite") => suite = Some(std::path::absolute(args.value()?)?),
            Long("bin") => binary = Some(std::path::absolute(args.value()?)?),
            Long("beside") => beside = args.value()?.string()?.split(',').map(OsString::from).collect(),
            Long("keep") => keep = Some(PathBuf::from(args.value()?)),
            Long("write") => write = true,
            Short('h') | Long("help") => return Ok(None),
            _ => return Err(arg.unexpected().into()),
        }
    }
    let suite = suite.ok_or_else(|| format!("--suite is missing\n\n{HELP}"))?;
    Ok(Some(Options { suite, binary, beside, keep, write }))
}

/// Runs them, prints the table, and fails where a required test does.
pub(crate) fn run(args: &[OsString]) -> Result<()> {
    let Some(options) = parse(args)? else {
        print!("{HELP}");
        return Ok(());
    };
    sys::note_interrupts();
    let mut proxies = vec![Proxy::Portcullis(binary(&options)?)];
    for name in &options.beside {
        match Proxy::peer(name)? {
            Some(peer) => proxies.push(peer),
            None => eprintln!("{} is not installed here: left out", name.to_string_lossy()),
        }
    }
    let scratch = std::env::temp_dir().join(format!("portcullis-cachetests-{}", std::process::id()));
    fs::create_dir(&scratch)?;
    let judged = measure(&options, &proxies, &scratch);
    // what stays behind is in the directory for such files
    let _ = fs::remove_dir_all(&scratch);
    let judged = judged?;

    println!("{}", report::table(&judged));
    print!("{}", report::failures(&judged));
    if options.write {
        fs::write(sh::root().join("docs/cache-tests.md"), report::page(&judged)?)?;
    }
    report::verdict(&judged)
}

fn binary(options: &Options) -> Result<PathBuf> {
    if let Some(binary) = &options.binary {
        return Ok(binary.clone());
    }
    sh::run(sh::cargo().args(["build", "--package", "portcullis"]))?;
    Ok(metadata::load()?.target_directory.join("debug/portcullis"))
}

fn measure(options: &Options, proxies: &[Proxy], scratch: &Path) -> Result<suite::Judged> {
    let mut suite = Suite::start(&options.suite, scratch)?;
    let mut results = Vec::new();
    for proxy in proxies {
        let name = proxy.name()?;
        eprintln!("{name} ...");
        let text = suite.run(proxy, &scratch.join(format!("at-{}", results.len())))?;
        if let Some(dir) = &options.keep {
            fs::create_dir_all(dir)?;
            fs::write(dir.join(format!("{}.json", name.replace(' ', "-"))), &text)?;
        }
        let file = scratch.join(format!("results-{}.json", results.len()));
        fs::write(&file, text)?;
        results.push((name, file));
    }
    suite.judge(&results)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Options> {
        let args: Vec<OsString> = args.iter().map(Into::into).collect();
        parse(&args).map(|options| options.unwrap())
    }

    #[test]
    fn the_suite_is_needed_and_paths_are_made_absolute() {
        assert!(parsed(&[]).is_err());
        assert!(parsed(&["--suite", "x", "--no"]).is_err());
        let options = parsed(&["--suite", "x", "--bin", "y", "--beside", "nginx,varnish"]).unwrap();
        assert!(options.suite.is_absolute() && options.binary.is_some_and(|binary| binary.is_absolute()));
        assert_eq!(options.beside, ["nginx", "varnish"]);
        assert!(!options.write);
    }
}
