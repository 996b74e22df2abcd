//! Medians, the table, and the file.

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde_json::{Value, json};

use super::{measure::Sample, options::Options, workload::Workload};

/// All runs of one subject under one workload; none where it does not speak the protocol.
pub(crate) struct Row {
    pub(crate) workload: Workload,
    pub(crate) subject: String,
    pub(crate) samples: Vec<Sample>,
}

impl Row {
    fn median(&self, of: fn(&Sample) -> f64) -> Option<f64> {
        median(self.samples.iter().map(of).collect())
    }

    fn cpu_s_per_gib(&self) -> Option<f64> {
        median(self.samples.iter().filter_map(|sample| sample.cpu_s_per_gib).collect())
    }

    /// What subjects are compared by: CPU time for each GiB where bodies are the work, for each request elsewhere.
    fn cost(&self) -> Option<f64> {
        if self.workload == Workload::H3Bulk {
            self.cpu_s_per_gib()
        } else {
            self.median(|sample| sample.cpu_us)
        }
    }

    fn bad(&self) -> u64 {
        self.samples.iter().map(|sample| sample.bad).sum()
    }
}

/// The middle value, or the mean of the middle two.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

/// The first subject is what the others' CPU time is divided by.
pub(crate) fn table(rows: &[Row]) -> Table {
    let base = rows.first().map_or("", |row| row.subject.as_str());
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    let relative = format!("CPU / {base}'s");
    table.set_header([
        "workload",
        "proxy",
        "req/s",
        "p50 us",
        "p99 us",
        "p99.9 us",
        "CPU us/req",
        "CPU s/GiB",
        &relative,
        "peak MiB",
        "bad",
    ]);
    for row in rows {
        let cost = row.cost();
        let base_cost = rows
            .iter()
            .find(|other| other.workload == row.workload && other.subject == base)
            .and_then(Row::cost);
        let ratio = cost.zip(base_cost).filter(|(_, base)| *base > 0.0).map(|(cost, base)| cost / base);
        let gib = row.cpu_s_per_gib().filter(|_| row.workload == Workload::H3Bulk);
        let bad = (!row.samples.is_empty()).then(|| row.bad() as f64);
        let numbers = [
            (row.median(|sample| sample.rps), 0),
            (row.median(|sample| sample.p50_us), 0),
            (row.median(|sample| sample.p99_us), 0),
            (row.median(|sample| sample.p999_us), 0),
            (row.median(|sample| sample.cpu_us), 2),
            (gib, 2),
            (ratio, 2),
            (row.median(|sample| sample.peak_mib), 1),
            (bad, 0),
        ];
        let mut cells = vec![Cell::new(row.workload.name()), Cell::new(&row.subject)];
        cells.extend(numbers.into_iter().map(|(number, digits)| {
            let text = number.map_or_else(|| "n/a".to_owned(), |number| format!("{number:.digits$}"));
            Cell::new(text).set_alignment(CellAlignment::Right)
        }));
        table.add_row(cells);
    }
    table
}

/// How many requests went wrong, over all.
pub(crate) fn bad(rows: &[Row]) -> u64 {
    rows.iter().map(Row::bad).sum()
}

/// Everything, for machines.
pub(crate) fn as_json(options: &Options, rows: &[Row]) -> Value {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZeroUsize::get);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    json!({
        "machine": { "cores": cores, "kernel": kernel.trim() },
        "seconds": options.seconds,
        "warmup": options.warmup,
        "rounds": options.rounds,
        "rate": options.rate,
        "bytes": options.bytes,
        "workers": options.workers,
        "profile": options.profile,
        "results": rows.iter().map(|row| json!({
            "workload": row.workload.name(),
            "proxy": row.subject,
            "median": {
                "rps": row.median(|sample| sample.rps),
                "p50_us": row.median(|sample| sample.p50_us),
                "p99_us": row.median(|sample| sample.p99_us),
                "p999_us": row.median(|sample| sample.p999_us),
                "cpu_us_per_request": row.median(|sample| sample.cpu_us),
                "cpu_s_per_gib": row.cpu_s_per_gib(),
                "peak_mib": row.median(|sample| sample.peak_mib),
            },
            "requests": row.samples.iter().map(|sample| sample.requests).sum::<u64>(),
            "bad": row.bad(),
            "runs": row.samples.iter().map(Sample::as_json).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(subject: &str, cpu: &[f64]) -> Row {
        let sample = |cpu_us: &f64| Sample {
            rps: 1.0,
            p50_us: 1.0,
            p99_us: 1.0,
            p999_us: 1.0,
            cpu_us: *cpu_us,
            cpu_s_per_gib: Some(cpu_us / 2.0),
            peak_mib: 1.0,
            requests: 1,
            bad: 1,
            report: Value::Null,
        };
        Row { workload: Workload::H1, subject: subject.to_owned(), samples: cpu.iter().map(sample).collect() }
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]), Some(2.5));
    }

    #[test]
    fn the_table_has_ratios_and_gaps() {
        let rows = [row("portcullis", &[8.0, 10.0, 9.0]), row("nginx", &[18.0]), row("haproxy", &[])];
        let table = table(&rows).to_string();
        let line = |name: &str| table.lines().find(|line| line.contains(name)).unwrap().to_owned();
        assert!(line("┆ nginx").contains("2.00"), "{table}");
        assert!(line("┆ haproxy").contains("n/a"), "{table}");
        assert_eq!(bad(&rows), 4);
    }

    #[test]
    fn long_answers_are_compared_by_length() {
        let bulk = |subject: &str, cpu: f64, gib: f64| {
            let mut row = row(subject, &[cpu]);
            row.workload = Workload::H3Bulk;
            row.samples[0].cpu_s_per_gib = Some(gib);
            row
        };
        let table = table(&[bulk("portcullis", 9.0, 2.0), bulk("naive", 9.0, 3.0)]).to_string();
        let line = table.lines().find(|line| line.contains("naive")).unwrap();
        assert!(line.contains("3.00") && line.contains("1.50"), "{table}");
    }
}
