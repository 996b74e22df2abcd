//! The real binary, started as a process and talked to over real sockets: what only the whole can show.
//!
//! `cargo xtask test` builds the binary and runs this. Every test starts an edge of its own on a port that the system
//! chooses, reads from its output where it listens, and has a deadline.
#![allow(clippy::unwrap_used, reason = "whatever is missing fails the test")]
#![allow(clippy::print_stderr, reason = "a failed test shows what the binary said")]
#![allow(clippy::disallowed_methods, reason = "a test reads the environment and its child's files")]

mod support;

mod acme;
mod admission;
mod answers;
mod attempts;
mod bodies;
mod bounds;
mod caching;
mod certificates;
mod check;
mod config;
mod connect;
mod demo;
mod discovery;
mod drain;
mod drains;
mod endpoints;
mod expectations;
mod failover;
mod fields;
mod floods;
mod floods_quic;
mod goaway;
mod grpc;
mod handover;
mod http3_upstream;
mod idle;
mod layers;
mod listeners;
mod log;
mod nginx;
mod proxy;
mod purges;
mod quic;
mod quic_paths;
mod rates;
mod raw_http1;
mod raw_http2;
mod reload;
mod routes;
mod shaping;
mod smuggling;
mod storms;
mod tls;
mod torture;
mod trailers;
mod upgrade;
mod websocket;
