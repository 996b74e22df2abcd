//! What an edge tells about itself: its log, its access log, its metrics and the service that shows them.
//!
//! | module | holds |
//! |---|---|
//! | [`subscriber`] | a `tracing` subscriber made from options, for a binary to install |
//! | [`access_log`] | the forms of an access log line, and a writer that never blocks who logs |
//! | [`metrics`] | request counters, a registry for the counters of other parts, and their exposition |
//! | [`admin`] | `/metrics`, `/health`, pages and actions as a service, for a binary to put on a private socket |
//!
//! No part of the edge knows this crate: parts emit `tracing` events and keep cheap counters, and whoever wires them
//! together binds those to a registry here. Nothing is installed process-wide and no socket is opened.

pub mod access_log;
pub mod admin;
pub mod metrics;
pub mod subscriber;

pub use access_log::rfc3339;

mod stripe;
