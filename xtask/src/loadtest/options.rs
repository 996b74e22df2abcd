//! The command line of `loadtest`.

use std::{ffi::OsString, path::PathBuf};

use lexopt::prelude::*;

use super::{subject::Peer, workload::Workload};
use crate::Result;

pub(crate) const HELP: &str = "\
cargo xtask loadtest: what the proxy costs, and how fast it answers

It builds portcullis, the origin and the load generator, starts them on loopback, and prints for each workload the
requests a second, the latency, the CPU time per request of all the proxy's processes and their peak memory.

  --only W,...         workloads: h1, h1s, h2, h3; h3bulk (100 MiB answers); upload (64 KiB), bulk (10 MiB answers),
                       ws (messages of 64 bytes) and cachehit (16 KiB from the proxy's cache) over plain HTTP/1.1
                       (default: all)
  --seconds S          measured seconds per run, 1 to 600 (default 5)
  --warmup S           seconds before that (default 1)
  --rounds N           runs of each, interleaved; medians are shown (default: 1, or 5 when comparing)
  --rate R             open loop: that many requests a second (default: as many as it takes)
  --bytes N            length of the answers to h1, h1s, h2 and h3 (default 1024)
  --workers N          the proxies' workers (default 2)
  --profile P          cargo profile to build with (default release; dist is what is shipped)
  --beside P,...       compare with nginx, haproxy, varnish (cachehit alone), where they are installed, and with
                       naive: h3 and hyper-util's client with their defaults, by HTTP/3 alone
  --variant NAME=SPEC  compare with another portcullis; SPEC is a binary's path, or KEY=VALUE for the top of its
                       configuration file (workers=work-stealing), or both with a comma between; may be repeated
  --peers-only         leave portcullis itself out
  --certs DIR          use cert.pem and key.pem from there (default: made by `portcullis certs`)
  --json FILE          write everything that was measured
";

/// What to compare and how long.
pub(crate) struct Options {
    pub(crate) workloads: Vec<Workload>,
    pub(crate) seconds: f64,
    pub(crate) warmup: f64,
    pub(crate) rounds: usize,
    pub(crate) rate: Option<f64>,
    pub(crate) bytes: u64,
    pub(crate) workers: usize,
    pub(crate) profile: String,
    pub(crate) beside: Vec<Peer>,
    pub(crate) variants: Vec<Variant>,
    pub(crate) peers_only: bool,
    pub(crate) certs: Option<PathBuf>,
    pub(crate) json: Option<PathBuf>,
}

/// Another portcullis to compare with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Variant {
    pub(crate) name: String,
    pub(crate) binary: Option<PathBuf>,
    /// Top-level keys that differ from the usual configuration, with their values as TOML.
    pub(crate) keys: Vec<(String, String)>,
}

/// Reads the arguments; `None` asks for help.
pub(crate) fn parse(args: Vec<OsString>) -> Result<Option<Options>> {
    let mut options = Options {
        workloads: Workload::ALL.to_vec(),
        seconds: 5.0,
        warmup: 1.0,
        rounds: 0,
        rate: None,
        bytes: 1024,
        workers: 2,
        profile: "release".to_owned(),
        beside: Vec::new(),
        variants: Vec::new(),
        peers_only: false,
        certs: None,
        json: None,
    };
    let mut args = lexopt::Parser::from_args(args);
    while let Some(arg) = args.next()? {
        match arg {
            Long("only") => options.workloads = list(&args.value()?.string()?, Workload::named)?,
            Long("seconds") => options.seconds = args.value()?.parse()?,
            Long("warmup") => options.warmup = args.value()?.parse()?,
            Long("rounds") => options.rounds = args.value()?.parse()?,
            Long("rate") => options.rate = Some(args.value()?.parse()?),
            Long("bytes") => options.bytes = args.value()?.parse()?,
            Long("workers") => options.workers = args.value()?.parse()?,
            Long("profile") => options.profile = args.value()?.string()?,
            Long("beside") => options.beside = list(&args.value()?.string()?, Peer::named)?,
            Long("variant") => options.variants.push(variant(&args.value()?.string()?)?),
            Long("peers-only") => options.peers_only = true,
            Long("certs") => options.certs = Some(args.value()?.into()),
            Long("json") => options.json = Some(args.value()?.into()),
            Short('h') | Long("help") => return Ok(None),
            _ => return Err(arg.unexpected().into()),
        }
    }
    if options.rounds == 0 {
        let comparing = !options.beside.is_empty() || !options.variants.is_empty();
        options.rounds = if comparing { 5 } else { 1 };
    }
    let in_range = (1.0..=600.0).contains(&options.seconds)
        && (0.0..=60.0).contains(&options.warmup)
        && (1..=100).contains(&options.rounds)
        && (1..=256).contains(&options.workers);
    if !in_range {
        return Err("--seconds is 1 to 600, --warmup 0 to 60, --rounds 1 to 100, --workers 1 to 256".into());
    }
    if options.peers_only && options.beside.is_empty() {
        return Err("--peers-only needs --beside".into());
    }
    Ok(Some(options))
}

fn list<T>(text: &str, named: fn(&str) -> Option<T>) -> Result<Vec<T>> {
    text.split(',')
        .map(|name| named(name.trim()).ok_or_else(|| format!("`{name}` is not known here").into()))
        .collect()
}

fn variant(text: &str) -> Result<Variant> {
    let (name, spec) = text
        .split_once('=')
        .filter(|(name, spec)| !name.is_empty() && !spec.is_empty())
        .ok_or_else(|| format!("`{text}` is not NAME=SPEC"))?;
    let mut variant = Variant { name: name.to_owned(), ..Variant::default() };
    for part in spec.split(',') {
        match part.split_once('=') {
            Some((key, value)) => variant.keys.push((key.to_owned(), toml_value(value))),
            None if variant.binary.is_none() => {
                // each run has its own working directory
                variant.binary = Some(std::path::absolute(part)?);
            }
            None => return Err(format!("`{text}` names two binaries").into()),
        }
    }
    Ok(variant)
}

/// Numbers and truth values stand as they are, anything else becomes a string.
fn toml_value(value: &str) -> String {
    if value.parse::<i64>().is_ok() || matches!(value, "true" | "false") {
        value.to_owned()
    } else {
        format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Options> {
        parse(args.iter().map(Into::into).collect()).map(|options| options.unwrap())
    }

    #[test]
    fn variants_are_binaries_keys_or_both() {
        let keys = |key: &str, value: &str| vec![(key.to_owned(), value.to_owned())];
        let name = "v".to_owned();
        let both = variant("v=/bin/p,workers=work-stealing").unwrap();
        let binary = Some(PathBuf::from("/bin/p"));
        assert_eq!(both, Variant { name: name.clone(), binary, keys: keys("workers", "\"work-stealing\"") });
        assert_eq!(
            variant("v=threads=4").unwrap(),
            Variant { name, binary: None, keys: keys("threads", "4") }
        );
        for wrong in ["v", "=x", "v=", "v=a,b"] {
            assert!(variant(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn comparing_takes_more_rounds() {
        assert_eq!(parsed(&[]).unwrap().rounds, 1);
        assert_eq!(parsed(&["--beside", "nginx"]).unwrap().rounds, 5);
        assert_eq!(parsed(&["--variant", "a=b", "--rounds", "2"]).unwrap().rounds, 2);
    }

    #[test]
    fn wrong_values_are_refused() {
        for args in [
            &["--seconds", "0"][..],
            &["--rounds", "1000"],
            &["--only", "h4"],
            &["--beside", "apache"],
            &["--peers-only"],
            &["--unknown"],
        ] {
            assert!(parsed(args).is_err(), "{args:?}");
        }
    }
}
