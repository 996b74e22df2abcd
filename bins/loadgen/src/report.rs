//! The result of a load run, as a table or as JSON.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::{cli::LoadOptions, stats::Stats};

/// One JSON object on one line.
pub(crate) fn as_json(options: &LoadOptions, threads: usize, stats: &Stats) -> String {
    let counts = |pairs: &mut dyn Iterator<Item = (String, u64)>| {
        Value::Object(pairs.map(|(name, count)| (name, Value::from(count))).collect::<Map<_, _>>())
    };
    json!({
        "protocol": options.protocol.name(),
        "mode": if options.rate.is_some() { "open" } else { "closed" },
        "url": options.url.to_string(),
        "connections": options.connections,
        "streams": options.streams,
        "threads": threads,
        "seconds": options.duration.as_secs_f64(),
        "rate": options.rate,
        "requests": stats.requests(),
        "errors": stats.errors().values().sum::<u64>(),
        "error_kinds": counts(&mut stats.errors().iter().map(|(kind, count)| ((*kind).to_owned(), *count))),
        "first_error": stats.first_error(),
        "rps": rps(options, stats),
        "mean_us": stats.mean_us(),
        "p50_us": stats.quantile_us(0.5),
        "p99_us": stats.quantile_us(0.99),
        "p999_us": stats.quantile_us(0.999),
        "max_us": stats.max_us(),
        "bytes": stats.bytes(),
        "window_bytes": stats.window_bytes(),
        "statuses": counts(&mut stats.statuses().iter().map(|(status, count)| (status.to_string(), *count))),
        "late_starts": stats.late_starts,
        "unstarted": stats.unstarted,
        "reconnects": stats.reconnects,
    })
    .to_string()
}

/// For people.
pub(crate) fn as_text(options: &LoadOptions, threads: usize, stats: &Stats) -> String {
    let mut out = String::new();
    let mut row = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<12} {value}");
    };
    let streams = match options.protocol.name() {
        "h2" | "h3" => format!(" x {} streams", options.streams),
        _ => String::new(),
    };
    let loop_kind = match options.rate {
        Some(rate) => format!("open loop at {rate}/s"),
        None => "closed loop".to_owned(),
    };
    row(
        "protocol",
        format!(
            "{}, {} connections{streams}, {threads} threads, {loop_kind}",
            options.protocol.name(),
            options.connections
        ),
    );
    row("requests", format!("{} in {:.1} s", stats.requests(), options.duration.as_secs_f64()));
    row("rps", format!("{:.0}", rps(options, stats)));
    row(
        "latency us",
        format!(
            "p50 {:.0}  p99 {:.0}  p99.9 {:.0}  max {:.0}  mean {:.0}",
            stats.quantile_us(0.5),
            stats.quantile_us(0.99),
            stats.quantile_us(0.999),
            stats.max_us(),
            stats.mean_us()
        ),
    );
    row("body bytes", stats.bytes().to_string());
    row("statuses", listed(stats.statuses().iter().map(|(status, count)| (status.to_string(), *count))));
    row("errors", listed(stats.errors().iter().map(|(kind, count)| ((*kind).to_owned(), *count))));
    if let Some(error) = stats.first_error() {
        row("first error", error.to_owned());
    }
    if options.rate.is_some() {
        row("late starts", format!("{} (and {} never started)", stats.late_starts, stats.unstarted));
    }
    if stats.reconnects > 0 {
        row("reconnects", stats.reconnects.to_string());
    }
    out
}

fn rps(options: &LoadOptions, stats: &Stats) -> f64 {
    stats.requests() as f64 / options.duration.as_secs_f64()
}

fn listed(counts: impl Iterator<Item = (String, u64)>) -> String {
    let all: Vec<String> = counts.map(|(name, count)| format!("{name}: {count}")).collect();
    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli, stats::Outcome};
    use std::time::Duration;

    #[test]
    fn json_has_what_scripts_read() {
        let args = ["--rate=100", "--duration=2", "http://localhost:1/"];
        let Ok(cli::Command::Load(options)) = cli::parse(args.iter().map(Into::into)) else { panic!() };
        let mut stats = Stats::new();
        stats.success(Outcome { status: 200, bytes: 7 }, Duration::from_micros(100));
        let report: Value = serde_json::from_str(&as_json(&options, 1, &stats)).unwrap();
        assert_eq!(report["protocol"], "h1");
        assert_eq!(report["requests"], 1);
        assert_eq!(report["rps"], 0.5);
        assert_eq!(report["bytes"], 7);
        assert!(report["window_bytes"].is_null());
        assert_eq!(report["statuses"]["200"], 1);
        assert_eq!(report["errors"], 0);
        assert!(report["p99_us"].as_f64().unwrap() >= 100.0);
        assert!(as_text(&options, 1, &stats).contains("200: 1"));
    }
}
