//! Metrics that are read by a closure when somebody asks.

use std::{collections::BTreeMap, fmt, ops::AddAssign};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet},
    metrics::MetricType,
};

/// How many values a closure's label may have. What is pushed under further ones is added to the value `other`.
pub const MAX_SERIES: usize = 1000;
/// The longest value of a label, as long as the longest host name; longer ones are cut.
const MAX_VALUE: usize = 253;
const OTHER: &str = "other";

/// Takes the numbers of one metric, each under a value of its label.
#[derive(Debug)]
pub struct Series<N> {
    numbers: BTreeMap<String, N>,
}

impl<N: AddAssign> Series<N> {
    fn new() -> Self {
        Self { numbers: BTreeMap::new() }
    }

    /// Adds a number under a value: numbers under the same value are added together.
    pub fn push(&mut self, value: &str, number: N) {
        let value = cut(value);
        if let Some(sum) = self.numbers.get_mut(value) {
            *sum += number;
        } else if self.numbers.len() < MAX_SERIES {
            self.numbers.insert(value.to_owned(), number);
        } else if let Some(sum) = self.numbers.get_mut(OTHER) {
            *sum += number;
        } else {
            self.numbers.insert(OTHER.to_owned(), number);
        }
    }
}

/// At most [`MAX_VALUE`] bytes, whole characters.
fn cut(value: &str) -> &str {
    let mut end = value.len().min(MAX_VALUE);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    &value[..end]
}

type Read<N> = Box<dyn Fn(&mut Series<N>) + Send + Sync>;

/// What a histogram shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HistogramReading {
    /// Upper bounds, rising, each with how many were no larger.
    pub buckets: Vec<(f64, u64)>,
    /// How many there were.
    pub count: u64,
    /// What they add up to.
    pub sum: f64,
}

impl HistogramReading {
    /// How many were in each bucket alone, those beyond the last bound in one without.
    fn apart(&self) -> Vec<(f64, u64)> {
        let mut below = 0;
        let all = self.buckets.iter().copied().chain([(f64::INFINITY, self.count)]);
        all.map(|(bound, sum)| {
            let alone = sum.saturating_sub(below);
            below = sum.max(below);
            (bound, alone)
        })
        .collect()
    }
}

pub(super) enum Kind {
    Counter(Read<u64>),
    Gauge(Read<f64>),
    Histogram(Box<dyn Fn() -> HistogramReading + Send + Sync>),
}

pub(super) struct SeriesCollector {
    pub(super) name: String,
    pub(super) help: String,
    /// Without a label there is one number, under the empty value.
    pub(super) label: Option<String>,
    pub(super) kind: Kind,
}

impl SeriesCollector {
    /// Reads the numbers and encodes each, under its value where there is a label.
    fn encode_as<N: AddAssign>(
        &self,
        mut encoder: DescriptorEncoder<'_>,
        metric_type: MetricType,
        read: &Read<N>,
        encode: impl Fn(&mut MetricEncoder<'_>, &N) -> fmt::Result,
    ) -> fmt::Result {
        let mut series = Series::new();
        read(&mut series);
        let mut family = encoder.encode_descriptor(&self.name, &self.help, None, metric_type)?;
        for (value, number) in &series.numbers {
            match &self.label {
                Some(label) => {
                    encode(&mut family.encode_family(&[(label.as_str(), value.as_str())])?, number)?;
                }
                None => encode(&mut family, number)?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for SeriesCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SeriesCollector").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Collector for SeriesCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Counter(read) => self.encode_as(encoder, MetricType::Counter, read, |family, number| {
                family.encode_counter::<NoLabelSet, _, u64>(number, None)
            }),
            Kind::Gauge(read) => {
                self.encode_as(encoder, MetricType::Gauge, read, |family, number| family.encode_gauge(number))
            }
            Kind::Histogram(read) => {
                let reading = read();
                let mut encoder = encoder;
                encoder
                    .encode_descriptor(&self.name, &self.help, None, MetricType::Histogram)?
                    .encode_histogram::<NoLabelSet>(reading.sum, reading.count, &reading.apart(), None)
            }
        }
    }
}
