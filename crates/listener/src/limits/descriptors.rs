//! How many descriptors this process may have, and how many connections that carries.

use std::io;

/// Descriptors of one proxied connection: the client's socket and the one to the upstream.
const PER_CONNECTION: u64 = 2;

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

/// How many proxied connections fit under a soft descriptor limit: two descriptors each, the client's and the
/// upstream's, after `reserve` is set aside for listeners, files, timers and name look-ups. 0 when nothing is left.
#[must_use]
pub fn connections_that_fit(soft: u64, reserve: u64) -> usize {
    usize::try_from(soft.saturating_sub(reserve) / PER_CONNECTION).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_descriptors_each_after_the_reserve() {
        for (soft, reserve, fit) in
            [(100, 20, 40), (101, 20, 40), (1024, 64, 480), (20, 20, 0), (10, 20, 0), (0, 0, 0)]
        {
            assert_eq!(connections_that_fit(soft, reserve), fit, "{soft} - {reserve}");
        }
        assert!(connections_that_fit(u64::MAX, 64) > 1 << 40);
    }

    #[cfg(unix)]
    #[test]
    fn the_soft_limit_rises_to_the_hard_one() {
        let (soft, hard) = descriptor_limit().unwrap();
        assert!(soft > 0 && soft <= hard);
        let lower = soft.min(hard - 1).min(4096);
        crate::sys::set_soft_descriptor_limit(lower).unwrap();
        assert_eq!(descriptor_limit().unwrap(), (lower, hard));
        assert_eq!(raise_descriptor_limit().unwrap(), most(hard));
        assert_eq!(descriptor_limit().unwrap().1, hard, "the hard limit must stay");
    }
}
