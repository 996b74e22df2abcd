//! Benchmarks of the pure parts; each is a file beside this one, run as `cargo bench -p portcullis-benches`.
