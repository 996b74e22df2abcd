//! One run: a fresh proxy, the load, and what both showed.

use std::{net::SocketAddr, path::Path, process::Command, time::Duration};

use serde_json::{Value, json};

use super::{
    child::{Running, free_port},
    options::Options,
    proc,
    subject::{Place, Subject},
    workload::Workload,
};
use crate::Result;

const START: Duration = Duration::from_secs(15);

/// What all runs share.
pub(crate) struct Bench<'a> {
    pub(crate) options: &'a Options,
    pub(crate) loadgen: &'a Path,
    pub(crate) dir: &'a Path,
    pub(crate) certs: &'a Path,
    /// For what caches keep in files.
    pub(crate) kept: &'a Path,
    /// `address:port` of each.
    pub(crate) origins: &'a [String],
}

/// The numbers of one run.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) rps: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) cpu_us: f64,
    /// CPU time for each GiB of bodies that came in the window, in seconds; where the load generator counts them.
    pub(crate) cpu_s_per_gib: Option<f64>,
    pub(crate) peak_mib: f64,
    pub(crate) requests: u64,
    /// Failed requests and answers with another status than the workload's.
    pub(crate) bad: u64,
    /// What the load generator reported.
    pub(crate) report: Value,
}

impl Sample {
    pub(crate) fn as_json(&self) -> Value {
        json!({
            "cpu_us_per_request": self.cpu_us,
            "cpu_s_per_gib": self.cpu_s_per_gib,
            "peak_mib": self.peak_mib,
            "bad": self.bad,
            "load": self.report,
        })
    }
}

impl Bench<'_> {
    /// Starts the subject, loads it, ends it.
    pub(crate) fn run(&self, subject: &Subject, workload: Workload) -> Result<Sample> {
        let place = Place {
            dir: self.dir,
            certs: self.certs,
            plain: free_port()?,
            tls: free_port()?,
            origins: self.origins,
            workers: self.options.workers,
            root: proc::is_root(),
            cache: (workload == Workload::CacheHit).then_some(self.kept),
        };
        let log = |name: &str| self.dir.join(format!("{name}.log"));
        let (command, ports) = (subject.command(&place)?, subject.ports(&place));
        let mut proxy = Running::start(&subject.name, command, &log("proxy"), ports.is_empty())?;
        if ports.is_empty() && proxy.line(START)?.is_none() {
            return Err(proxy.failed("did not say that it listens"));
        }
        for port in ports {
            proxy.wait_for(SocketAddr::from(([127, 0, 0, 1], port)), START)?;
        }
        let port = if workload.is_plain() { place.plain } else { place.tls };
        let name = format!("the load on {}", subject.name);
        let mut load = Running::start(&name, self.load(workload, port), &log("loadgen"), true)?;

        let patience = Duration::from_secs_f64(self.options.seconds + self.options.warmup + 20.0);
        let (mut before, mut after, mut report) = (None, None, None);
        while let Some(line) = load.line(patience)? {
            match line.as_str() {
                "measure begin" => before = Some(proc::cpu_us(proxy.pid())),
                "measure end" => after = Some(proc::cpu_us(proxy.pid())),
                line if line.starts_with('{') => report = Some(serde_json::from_str::<Value>(line)?),
                _ => {}
            }
        }
        let status = load.wait(patience)?;
        let peak_mib = proc::peak_kib(proxy.pid()) as f64 / 1024.0;
        let (Some(before), Some(after), Some(report)) = (before, after, report) else {
            return Err(load.failed(&format!("gave no result ({status})")));
        };
        // also an end with `no request succeeded` has a report; it says why
        sample(before, after, peak_mib, report, workload.good())
            .ok_or_else(|| load.failed("succeeded with no request"))
    }

    fn load(&self, workload: Workload, port: u16) -> Command {
        let (connections, streams) = workload.shape();
        let options = self.options;
        let mut command = Command::new(self.loadgen);
        command.args(["--json", "--marks", "--insecure", "--protocol", workload.protocol()]);
        command.args(["--connections".to_owned(), connections.to_string()]);
        command.args(["--streams".to_owned(), streams.to_string()]);
        command.args(["--duration".to_owned(), options.seconds.to_string()]);
        command.args(["--warmup".to_owned(), options.warmup.to_string()]);
        if let Some(rate) = options.rate {
            command.args(["--rate".to_owned(), rate.to_string()]);
        }
        if let Some(bytes) = workload.sends() {
            command.args(["--body-bytes".to_owned(), bytes.to_string()]);
        }
        // by name, because a TLS name is a name; by address for plain, because localhost is two of them
        let place = if workload.is_plain() { "http://127.0.0.1" } else { "https://localhost" };
        command.arg(format!("{place}:{port}{}", workload.path(options.bytes)));
        command
    }
}

fn sample(before: u64, after: u64, peak_mib: f64, report: Value, good: &str) -> Option<Sample> {
    let number = |name: &str| report[name].as_f64();
    let requests = report["requests"].as_u64().filter(|requests| *requests > 0)?;
    let ok = report["statuses"][good].as_u64().unwrap_or(0);
    let cpu_us = after.saturating_sub(before) as f64;
    let gib =
        report["window_bytes"].as_f64().filter(|bytes| *bytes > 0.0).map(|bytes| bytes / f64::from(1 << 30));
    Some(Sample {
        rps: number("rps")?,
        p50_us: number("p50_us")?,
        p99_us: number("p99_us")?,
        p999_us: number("p999_us")?,
        cpu_us: cpu_us / requests as f64,
        cpu_s_per_gib: gib.map(|gib| cpu_us / 1e6 / gib),
        peak_mib,
        requests,
        bad: report["errors"].as_u64()? + (requests - ok),
        report,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cost_is_cpu_by_request() {
        let report = json!({
            "requests": 1000, "errors": 2, "rps": 500.0, "p50_us": 1.0, "p99_us": 2.0, "p999_us": 3.0,
            "statuses": {"200": 990, "502": 10}, "window_bytes": 1 << 20,
        });
        let sample = sample(1_000_000, 1_009_500, 1.0, report, "200").unwrap();
        assert!((sample.cpu_us - 9.5).abs() < 1e-9);
        assert!((sample.cpu_s_per_gib.unwrap() - 9.728).abs() < 1e-9);
        assert_eq!(sample.bad, 12);
        assert!(super::sample(0, 1, 1.0, json!({"requests": 0}), "200").is_none());
    }
}
