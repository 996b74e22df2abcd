//! How many descriptors this process may have, and how many connections that carries.

use std::{fmt, io};

/// How many descriptors this process may have open, as (soft, hard): the soft limit is the one that counts, and
/// may be raised to the hard one. `u64::MAX` is no limit.
///
/// # Errors
/// What the system says; [`io::ErrorKind::Unsupported`] where there is no such limit (Windows).
pub fn descriptor_limit() -> io::Result<(u64, u64)> {
    #[cfg(unix)]
    return crate::sys::descriptor_limit();
    #[cfg(not(unix))]
    return Err(io::ErrorKind::Unsupported.into());
}

/// Raises the soft descriptor limit of this process to the hard one, and gives the soft limit in force afterwards.
/// A library has no business doing this unasked: it is for a binary's start.
///
/// # Errors
/// As [`descriptor_limit`].
pub fn raise_descriptor_limit() -> io::Result<u64> {
    #[cfg(unix)]
    {
        let (soft, hard) = descriptor_limit()?;
        if soft < hard {
            crate::sys::set_soft_descriptor_limit(most(hard))?;
        }
        Ok(descriptor_limit()?.0)
    }
    #[cfg(not(unix))]
    return Err(io::ErrorKind::Unsupported.into());
}

/// macOS refuses a soft limit above `OPEN_MAX` even where the hard limit reads as unlimited.
#[cfg(unix)]
fn most(hard: u64) -> u64 {
    if cfg!(target_vendor = "apple") { hard.min(10_240) } else { hard }
}

/// How many descriptors this process has open, counted in `/proc/self/fd`, or `/dev/fd` where that is not there.
///
/// # Errors
/// Neither can be read.
pub fn open_descriptors() -> io::Result<u64> {
    let directory = std::fs::read_dir("/proc/self/fd").or_else(|_| std::fs::read_dir("/dev/fd"))?;
    // the directory itself is one while it is read
    Ok((directory.count() as u64).saturating_sub(1))
}

/// What the descriptors of a process carry, as plain numbers.
///
/// ```
/// use portcullis_listener::DescriptorBudget;
///
/// let budget = DescriptorBudget::new(1024, 4096, 16);
/// assert_eq!(budget.connections(), 488);
/// assert!(budget.check(488).is_ok());
/// assert!(budget.check(1000).unwrap_err().to_string().contains("1000 connections need 2048 descriptors"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DescriptorBudget {
    /// How many this process may open (`ulimit -n`); `u64::MAX` is no limit.
    pub soft: u64,
    /// To how many it may raise that by itself.
    pub hard: u64,
    /// How many are open already: standard streams, listeners, timers and the like.
    pub in_use: u64,
    /// How many are set aside for files, name look-ups and upstreams beyond one for each connection. Default 32.
    pub reserve: u64,
    /// How many a connection takes. Default 2: its own and that of an upstream. At least 1.
    pub per_connection: u64,
}

impl DescriptorBudget {
    /// Limits, and what is open already.
    #[must_use]
    pub fn new(soft: u64, hard: u64, in_use: u64) -> Self {
        Self { soft, hard, in_use, reserve: 32, per_connection: 2 }
    }

    /// As it is in this process now.
    ///
    /// # Errors
    /// The limit can't be read. Where what is open can't be counted, 16 are assumed.
    pub fn measure() -> io::Result<Self> {
        let (soft, hard) = descriptor_limit()?;
        Ok(Self::new(soft, hard, open_descriptors().unwrap_or(16)))
    }

    /// Sets [`DescriptorBudget::reserve`].
    #[must_use]
    pub fn with_reserve(mut self, reserve: u64) -> Self {
        self.reserve = reserve;
        self
    }

    /// Sets [`DescriptorBudget::per_connection`].
    #[must_use]
    pub fn with_per_connection(mut self, descriptors: u64) -> Self {
        self.per_connection = descriptors.max(1);
        self
    }

    /// How many connections it carries; 0 if nothing is left for any.
    #[must_use]
    pub fn connections(&self) -> usize {
        let left = self.soft.saturating_sub(self.in_use).saturating_sub(self.reserve);
        usize::try_from(left / self.per_connection.max(1)).unwrap_or(usize::MAX)
    }

    /// How many descriptors so many connections need in all.
    #[must_use]
    pub fn needed(&self, connections: usize) -> u64 {
        let connections = u64::try_from(connections).unwrap_or(u64::MAX);
        connections
            .saturating_mul(self.per_connection.max(1))
            .saturating_add(self.in_use)
            .saturating_add(self.reserve)
    }

    /// Whether it carries so many connections.
    ///
    /// # Errors
    /// It does not; the error's text is the arithmetic and the ways out.
    pub fn check(&self, connections: usize) -> Result<(), TooManyConnections> {
        if connections <= self.connections() {
            return Ok(());
        }
        Err(TooManyConnections { connections, budget: *self })
    }
}

/// More connections than the descriptors carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TooManyConnections {
    /// How many were asked for.
    pub connections: usize,
    /// What there is.
    pub budget: DescriptorBudget,
}

impl fmt::Display for TooManyConnections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connections, budget } = self;
        let DescriptorBudget { soft, hard, in_use, reserve, per_connection } = budget;
        let needed = budget.needed(*connections);
        write!(
            f,
            "{connections} connections need {needed} descriptors ({connections} x {per_connection}, {in_use} open already, \
             {reserve} in reserve), but this process may open {soft} (hard limit {hard}): "
        )?;
        match budget.connections() {
            0 => write!(f, "not one connection fits, so ")?,
            fit => write!(f, "allow at most {fit}, or ")?,
        }
        write!(
            f,
            "raise the limit, with `ulimit -n {needed}` in the shell that starts it or `LimitNOFILE={needed}` in its systemd \
             unit"
        )
    }
}

impl std::error::Error for TooManyConnections {}

/// Held by tests that change the process's limit, and by those that look at it.
#[cfg(test)]
pub(crate) static LIMIT_IS_MINE: parking_lot::Mutex<()> = parking_lot::Mutex::new(());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits() {
        for (soft, in_use, reserve, each, fit) in [
            (100, 10, 10, 2, 40),
            (101, 10, 10, 2, 40),
            (1024, 16, 32, 2, 488),
            (1024, 16, 32, 1, 976),
            (20, 10, 10, 2, 0),
            (10, 20, 0, 2, 0),
            (0, 0, 0, 1, 0),
            (u64::MAX, 10, 10, 1, usize::MAX - 20),
        ] {
            let budget =
                DescriptorBudget::new(soft, soft, in_use).with_reserve(reserve).with_per_connection(each);
            assert_eq!(budget.connections(), fit, "{budget:?}");
            assert!(budget.check(fit).is_ok() && budget.needed(fit) <= soft.max(in_use + reserve));
            assert!(soft == u64::MAX || budget.check(fit + 1).is_err() && budget.needed(fit + 1) > soft);
        }
        let most = DescriptorBudget::new(u64::MAX, u64::MAX, u64::MAX).with_reserve(u64::MAX);
        assert_eq!((most.connections(), most.needed(usize::MAX)), (0, u64::MAX));
    }

    #[test]
    fn the_arithmetic_is_told() {
        let text = DescriptorBudget::new(1024, 4096, 16).check(1000).unwrap_err().to_string();
        assert_eq!(
            text,
            "1000 connections need 2048 descriptors (1000 x 2, 16 open already, 32 in reserve), but this process may \
             open 1024 (hard limit 4096): allow at most 488, or raise the limit, with `ulimit -n 2048` in the shell that \
             starts it or `LimitNOFILE=2048` in its systemd unit"
        );
        let text = DescriptorBudget::new(40, 40, 16).check(1).unwrap_err().to_string();
        assert!(text.contains("not one connection fits, so raise the limit"), "{text}");
    }

    #[cfg(unix)]
    #[test]
    fn open_ones_are_counted() {
        let files: Vec<_> = (0..50).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        let with = open_descriptors().unwrap();
        assert!(with >= 50 && DescriptorBudget::measure().unwrap().soft >= with);
        drop(files);
    }

    #[cfg(unix)]
    #[test]
    fn the_soft_limit_rises_to_the_hard_one() {
        let _mine = LIMIT_IS_MINE.lock();
        let (soft, hard) = descriptor_limit().unwrap();
        assert!(soft > 0 && soft <= hard);
        let lower = soft.min(hard - 1).min(4096);
        crate::sys::set_soft_descriptor_limit(lower).unwrap();
        assert_eq!(descriptor_limit().unwrap(), (lower, hard));
        assert_eq!(raise_descriptor_limit().unwrap(), most(hard));
        assert_eq!(descriptor_limit().unwrap().1, hard, "the hard limit must stay");
    }
}
