//! The layer around an origin that is a function, with every call counted.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod collapsing;
#[cfg(feature = "disk")]
mod disk;
mod poisoning;
mod purging;
mod ranges;
mod rules;
mod safety;
mod sharing;
mod stale;
mod storing;
mod validation;
mod world;
