//! Thousands of certificates: how long until they are loaded, what each takes, and that a look-up does not depend on how
//! many there are. `cargo bench -p portcullis-benches --bench certs -- 10000`; the number is a choice. Instruction counts of the look-ups:
//! `valgrind --tool=callgrind --toggle-collect='*lookups*'` on the binary that cargo names.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a program to measure with"
)]

use std::{fs, hint::black_box, path::PathBuf, sync::Arc, time::Instant};

use portcullis_testkit::certs::TestCa;
use portcullis_tls::{CertReloader, CertSource, CertStore};

fn main() {
    let count = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(10_000_usize);
    let few = store(10);
    let many = store(count);
    for (name, (store, names)) in [("10", &few), (&*count.to_string(), &many)] {
        let begun = Instant::now();
        lookups(store, names);
        let each = begun.elapsed().as_nanos() / u128::from(LOOKUPS);
        println!("{name} certificates: {each} ns for each look-up");
    }
}

const LOOKUPS: u32 = 200_000;

#[inline(never)]
fn lookups(store: &CertStore, names: &[String]) {
    for i in 0..LOOKUPS as usize {
        black_box(store.lookup(Some(black_box(&names[i % names.len()]))));
    }
}

/// Loads so many pairs from a directory and says what that took.
fn store(count: usize) -> (Arc<CertStore>, Vec<String>) {
    let directory =
        std::env::temp_dir().join(format!("portcullis-bench-certs-{}-{count}", std::process::id()));
    let ca = TestCa::new();
    let names: Vec<String> = (0..count).map(|i| format!("host-{i}.example.com")).collect();
    for (i, name) in names.iter().enumerate() {
        let below: PathBuf = directory.join(i.to_string());
        fs::create_dir_all(&below).unwrap();
        let cert = ca.issue(&[name]);
        fs::write(below.join("fullchain.pem"), cert.chain_pem()).unwrap();
        fs::write(below.join("privkey.pem"), cert.key_pem()).unwrap();
    }
    let store = Arc::new(CertStore::new());
    let mut reloader = CertReloader::new(&store, vec![CertSource::Directory(directory.clone())]);
    let (memory, begun) = (resident(), Instant::now());
    reloader.load().unwrap();
    let took = begun.elapsed();
    let each = (resident().saturating_sub(memory)) * 1024 / count as u64;
    println!("{count} certificates: ready in {took:.2?}, {each} bytes each");
    let begun = Instant::now();
    assert!(reloader.reload().is_empty());
    println!("{count} certificates: looked at for changes in {:.2?}", begun.elapsed());
    fs::remove_dir_all(directory).unwrap();
    (store, names)
}

/// KiB of memory.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}
