//! What a pick costs, for each policy, 1, 10 and 1,000 endpoints, all available and every third one down.
//! `cargo bench --bench balance`; instruction counts: `valgrind --tool=callgrind --toggle-collect='*picks*'` on the
//! binary that cargo names, with the words of one case (`least-request 10 up`) to run that one alone.
#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "a program to measure with")]

use std::{hint::black_box, time::Instant};

use portcullis_upstream::{BalanceOptions, Policy, bench::Bench};

const PICKS: u32 = 200_000;

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let bounded = |policy| BalanceOptions::default().with_policy(policy).with_hash_balance_factor(125);
    let plain = |policy| BalanceOptions::default().with_policy(policy);
    let cases = [
        ("least-request", plain(Policy::LeastRequest)),
        ("round-robin", plain(Policy::RoundRobin)),
        ("random", plain(Policy::Random)),
        ("peak-ewma", plain(Policy::PeakEwma)),
        ("maglev", plain(Policy::maglev())),
        ("ring-hash", plain(Policy::ring_hash())),
        ("maglev-bounded", bounded(Policy::maglev())),
        ("ring-hash-bounded", bounded(Policy::ring_hash())),
    ];
    for (name, options) in &cases {
        for count in [1, 10, 1000] {
            for (state, down_every) in [("up", 0), ("third-down", 3)] {
                let case = [*name, &count.to_string(), state];
                if !wanted.iter().zip(case).all(|(wanted, is)| wanted == is) {
                    continue;
                }
                let bench = Bench::new(options, count, down_every);
                let begun = Instant::now();
                picks(&bench);
                let each = begun.elapsed().as_nanos() as f64 / f64::from(PICKS);
                println!("{}: {each:.1} ns for each pick", case.join(" "));
            }
        }
    }
}

#[inline(never)]
fn picks(bench: &Bench) {
    for i in 0..u64::from(PICKS) {
        // keys that are spread as hashes are
        black_box(bench.pick(black_box(i.wrapping_mul(0x9e37_79b9_7f4a_7c15))));
    }
}
