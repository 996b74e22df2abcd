//! End-to-end tests of the `portcullis` binary. There is no library here: see `e2e/main.rs`.
