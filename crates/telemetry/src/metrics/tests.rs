use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use super::*;

/// Reads an exposition strictly: every sample belongs to the family declared last, and occurs once.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let mut family = String::new();
    let mut kind = String::new();
    let mut families = HashSet::new();
    let mut lines = text.lines();
    for line in lines.by_ref() {
        if line == "# EOF" {
            break;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, of) = rest.split_once(' ').unwrap();
            assert_eq!(name, family, "TYPE after HELP");
            of.clone_into(&mut kind);
        } else if let Some(rest) = line.strip_prefix("# HELP ") {
            rest.split_once(' ').unwrap().0.clone_into(&mut family);
            assert!(families.insert(family.clone()), "{family} declared twice");
        } else {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let base = name.split('{').next().unwrap();
            let endings: &[&str] = match kind.as_str() {
                "counter" => &["_total"],
                "gauge" => &[""],
                "info" => &["_info"],
                "histogram" => &["_bucket", "_count", "_sum"],
                other => panic!("{other}"),
            };
            let ending = base.strip_prefix(&family).unwrap();
            assert!(endings.contains(&ending), "{line}");
            assert!(samples.insert(name.to_owned(), value.parse().unwrap()).is_none(), "{name} twice");
        }
    }
    assert!(text.ends_with("# EOF\n") && lines.next().is_none());
    samples
}

#[test]
fn a_new_registry_shows_every_series_at_zero() {
    let samples = parse(&Metrics::new("1.2.3").encode());
    assert_eq!(samples["portcullis_up"], 1.0);
    assert_eq!(samples["portcullis_build_info{version=\"1.2.3\"}"], 1.0);
    let count = |prefix: &str| samples.keys().filter(|name| name.starts_with(prefix)).count();
    assert_eq!(count("portcullis_requests_total{"), 5 * 6);
    assert_eq!(count("portcullis_request_duration_seconds_bucket{"), 5 * 15);
    assert_eq!(count("portcullis_requests_in_flight{"), 5);
    assert_eq!(samples.values().sum::<f64>(), 2.0);
}

#[test]
fn requests_are_counted_where_they_belong() {
    let metrics = Metrics::new("1");
    let answer = |version, status: u16, millis| {
        metrics.on_request(version);
        let status = StatusCode::from_u16(status).unwrap();
        metrics.on_response(version, status, Duration::from_millis(millis));
    };
    answer(Version::HTTP_2, 200, 3);
    metrics.on_end(Version::HTTP_2, true);
    answer(Version::HTTP_2, 204, 7);
    answer(Version::HTTP_3, 502, 60_000);
    metrics.clone().on_end(Version::HTTP_3, false);
    metrics.on_request(Version::HTTP_11);

    let samples = parse(&metrics.encode());
    let table = [
        ("portcullis_requests_total{protocol=\"h2\",status_class=\"2xx\"}", 2.0),
        ("portcullis_requests_total{protocol=\"h3\",status_class=\"5xx\"}", 1.0),
        ("portcullis_requests_total{protocol=\"http/1.1\",status_class=\"2xx\"}", 0.0),
        ("portcullis_requests_in_flight{protocol=\"h2\"}", 1.0),
        ("portcullis_requests_aborted_total{protocol=\"h2\"}", 0.0),
        ("portcullis_requests_aborted_total{protocol=\"h3\"}", 1.0),
        ("portcullis_requests_in_flight{protocol=\"h3\"}", 0.0),
        ("portcullis_requests_in_flight{protocol=\"http/1.1\"}", 1.0),
        ("portcullis_request_duration_seconds_bucket{le=\"0.0025\",protocol=\"h2\"}", 0.0),
        ("portcullis_request_duration_seconds_bucket{le=\"0.005\",protocol=\"h2\"}", 1.0),
        ("portcullis_request_duration_seconds_bucket{le=\"0.01\",protocol=\"h2\"}", 2.0),
        ("portcullis_request_duration_seconds_bucket{le=\"+Inf\",protocol=\"h2\"}", 2.0),
        ("portcullis_request_duration_seconds_bucket{le=\"10.0\",protocol=\"h3\"}", 0.0),
        ("portcullis_request_duration_seconds_bucket{le=\"+Inf\",protocol=\"h3\"}", 1.0),
        ("portcullis_request_duration_seconds_count{protocol=\"h2\"}", 2.0),
        ("portcullis_request_duration_seconds_sum{protocol=\"h2\"}", 0.01),
        ("portcullis_request_duration_seconds_sum{protocol=\"h3\"}", 60.0),
    ];
    for (name, value) in table {
        assert_eq!(samples.get(name), Some(&value), "{name}");
    }
}

#[test]
fn counters_of_other_parts() {
    let metrics = Metrics::new("1");
    let counter = Arc::new(AtomicU64::new(41));
    let read = Arc::clone(&counter);
    metrics.register_counter_fn("a_total", "with ending", move || read.load(Ordering::Relaxed)).unwrap();
    metrics.register_counter_fn("b", "two\nlines", || 7).unwrap();
    metrics.register_gauge_fn("c", "", || -1.5).unwrap();
    metrics
        .register_counter_series("d_total", "by name", "name", |series| {
            series.push("x", 1);
            series.push("say \"hi\"\n", 2);
            series.push("x", 3);
        })
        .unwrap();
    metrics.register_gauge_series("e", "by name", "name", |series| series.push("x", 0.5)).unwrap();
    counter.fetch_add(1, Ordering::Relaxed);
    let samples = parse(&metrics.encode());
    let table = [
        ("a_total", 42.0),
        ("b_total", 7.0),
        ("c", -1.5),
        ("d_total{name=\"x\"}", 4.0),
        ("d_total{name=\"say \\\"hi\\\"\\n\"}", 2.0),
        ("e{name=\"x\"}", 0.5),
    ];
    for (name, value) in table {
        assert_eq!(samples.get(name), Some(&value), "{name}");
    }
}

#[test]
fn labels_are_bounded() {
    let metrics = Metrics::new("1");
    metrics
        .register_counter_series("hosts", "by host", "host", |series| {
            for n in 0..5000 {
                series.push(&format!("{n:04}.example"), 1);
            }
            series.push(&"\u{e9}".repeat(1000), 1);
        })
        .unwrap();
    let samples = parse(&metrics.encode());
    let hosts: Vec<_> = samples.iter().filter(|(name, _)| name.starts_with("hosts_total")).collect();
    assert_eq!(hosts.len(), MAX_SERIES + 1);
    assert_eq!(hosts.iter().map(|(_, count)| **count).sum::<f64>(), 5001.0);
    assert_eq!(samples["hosts_total{host=\"other\"}"], 4001.0);

    let long = Metrics::new("1");
    long.register_gauge_series("long", "", "x", |series| series.push(&"\u{e9}".repeat(1000), 1.0)).unwrap();
    assert!(parse(&long.encode()).contains_key(&format!("long{{x=\"{}\"}}", "\u{e9}".repeat(126))));
}

#[test]
fn names_that_would_spoil_the_exposition_are_refused() {
    let metrics = Metrics::new("1");
    for name in ["", "1a", "a-b", "a b", "a{b}", "\u{e9}", "a\nb", "_total", "a_sum_total"] {
        let error = metrics.register_counter_fn(name, "", || 0).unwrap_err();
        assert_eq!(error, MetricError::InvalidName { name: name.to_owned() });
    }
    for name in ["a_total", "a_bucket", "a_info", "a_count", "a_created"] {
        let error = metrics.register_gauge_fn(name, "", || 0.0).unwrap_err();
        assert_eq!(error, MetricError::InvalidName { name: name.to_owned() });
    }
    for label in ["", "a:b", "__a", "le", "1", "a\"b"] {
        let error = metrics.register_counter_series("x", "", label, |_| {}).unwrap_err();
        assert_eq!(error, MetricError::InvalidLabel { label: label.to_owned() });
    }
    metrics.register_counter_fn("x", "", || 0).unwrap();
    for name in ["x", "x_total", "portcullis_requests_total", "portcullis_up", "portcullis_build"] {
        let error = metrics.register_counter_fn(name, "", || 0).unwrap_err();
        assert_eq!(error, MetricError::Duplicate { name: name.to_owned() });
    }
    parse(&metrics.encode());
}
