//! Which endpoints are fit for requests: what their answers tell, and what checks of our own find.

mod jitter;
mod outlier;

pub use outlier::{FailureKind, Outlier, OutlierOptions};
