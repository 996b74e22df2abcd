//! What /proc says about a process and those it started.

use std::{
    collections::{HashMap, HashSet},
    fs,
};

use crate::sys;

/// A process and all its descendants. `/proc/PID/stat` counts all threads of a process.
pub(crate) fn tree(root: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        if let Some(stat) = stat(pid) {
            children.entry(stat.parent).or_default().push(pid);
        }
    }
    let (mut tree, mut seen, mut next) = (Vec::new(), HashSet::new(), vec![root]);
    while let Some(pid) = next.pop() {
        if seen.insert(pid) {
            tree.push(pid);
            next.extend(children.get(&pid).into_iter().flatten());
        }
    }
    tree
}

/// CPU time of the tree so far, user and system, in microseconds.
pub(crate) fn cpu_us(root: u32) -> u64 {
    let ticks: u64 = tree(root).into_iter().filter_map(stat).map(|stat| stat.ticks).sum();
    ticks * 1_000_000 / sys::ticks_per_second()
}

/// The sum of the peaks of resident memory, in KiB. Pages that processes share count in each.
pub(crate) fn peak_kib(root: u32) -> u64 {
    let status = |pid| fs::read_to_string(format!("/proc/{pid}/status")).ok();
    tree(root).into_iter().filter_map(status).filter_map(|status| high_water(&status)).sum()
}

/// Whether this program runs as root.
pub(crate) fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    uid.and_then(|ids| ids.split_whitespace().nth(1)) == Some("0")
}

struct Stat {
    parent: u32,
    ticks: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// proc(5): field 2 is the name in parentheses and may hold anything, so count from the last one.
fn parse_stat(stat: &str) -> Option<Stat> {
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // `rest` begins with field 3; the parent is field 4, utime and stime are 14 and 15
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat { parent: u32::try_from(number(4)?).ok()?, ticks: number(14)? + number(15)? })
}

fn high_water(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines_with_odd_names() {
        let line = "12 (a) b) S 7 12 12 0 -1 4194560 1 2 3 4 100 23 9 9 20 0 1 0 5 6 7";
        let stat = parse_stat(line).unwrap();
        assert_eq!((stat.parent, stat.ticks), (7, 123));
        assert!(parse_stat("12 (a S 7").is_none());
    }

    #[test]
    fn the_peak_is_read() {
        assert_eq!(high_water("Name:\tx\nVmHWM:\t    1234 kB\nVmRSS:\t 1 kB\n"), Some(1234));
        assert_eq!(high_water("Name:\tx\n"), None);
    }

    #[test]
    fn this_process_is_in_its_tree_and_has_memory() {
        assert_eq!(tree(std::process::id())[0], std::process::id());
        assert!(peak_kib(std::process::id()) > 0);
    }
}
