//! The layer around an origin that is a function, with every call counted.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod safety;
mod storing;
mod validation;
mod world;
