//! Examples of portcullis; each is a file beside this one, run as `cargo run -p portcullis-examples --example NAME`.
