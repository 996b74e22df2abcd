//! A set of idle endpoints to pick from, for the benchmarks of this workspace. No part of the interface.

use std::time::Instant;

use super::{Ask, BalanceOptions, Endpoints, Load, Member, Table, Tried};

/// Endpoints in memory.
#[derive(Debug)]
pub struct Bench {
    table: Table,
    loads: Vec<Load>,
    down: Vec<bool>,
    now: Instant,
    tried: Tried,
}

impl Endpoints for (&[Load], &[bool]) {
    fn load(&self, index: usize) -> &Load {
        &self.0[index]
    }

    fn is_available(&self, index: usize, _: Instant) -> bool {
        !self.1[index]
    }
}

impl Bench {
    /// So many endpoints, of which each `down_every`-th is unavailable (0: none).
    pub fn new(options: &BalanceOptions, count: usize, down_every: usize) -> Self {
        let now = Instant::now();
        let members: Vec<Member> = (0..count)
            .map(|n| Member { name: format!("10.0.0.{n}:80").into(), weight: 1, priority: 0, zone: None })
            .collect();
        Self {
            table: Table::with_seed(options, &members, 1),
            loads: (0..count).map(|_| Load::new(1, now)).collect(),
            down: (0..count).map(|n| down_every != 0 && n % down_every == 0).collect(),
            now,
            tried: Tried::default(),
        }
    }

    /// One pick.
    pub fn pick(&self, hash: u64) -> Option<usize> {
        let ask = Ask { hash: Some(hash), tried: &self.tried };
        self.table.pick(&(&*self.loads, &*self.down), self.now, &ask)
    }
}
