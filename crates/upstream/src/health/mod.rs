//! Which endpoints are fit for requests: what their answers tell ([`Outlier`]), and what checks of our own find
//! ([`Checker`]).

mod checker;
mod grpc;
pub(crate) mod jitter;
mod options;
mod outlier;
mod probe;
mod rows;

pub use checker::{Checker, HealthCounters, Target};
pub use options::{
    Check, GrpcCheck, HealthOptions, HttpCheck, InitialHealth, InvalidHealthOptions, TcpCheck,
};
pub use outlier::{FailureKind, Outlier, OutlierOptions};
pub use probe::CheckError;
