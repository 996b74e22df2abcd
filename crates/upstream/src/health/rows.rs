//! The rules by which checks in a row make an endpoint healthy or unhealthy.

use super::{HealthOptions, InitialHealth};

/// What checks of one endpoint have shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rows {
    is_healthy: bool,
    is_checked: bool,
    /// Results in a row that speak against `is_healthy`.
    against: u32,
}

impl Rows {
    pub(super) fn new(initial: InitialHealth) -> Self {
        Self { is_healthy: initial == InitialHealth::Healthy, is_checked: false, against: 0 }
    }

    pub(super) fn is_healthy(self) -> bool {
        self.is_healthy
    }

    /// Takes a result. Says what the endpoint becomes, if that changes.
    pub(super) fn take(&mut self, passed: bool, options: &HealthOptions) -> Option<bool> {
        let is_first = !std::mem::replace(&mut self.is_checked, true);
        if passed == self.is_healthy {
            self.against = 0;
            return None;
        }
        self.against = self.against.saturating_add(1);
        let enough = match passed {
            // nothing speaks against an endpoint that was only waited for
            true if is_first => 1,
            true => options.healthy_threshold,
            false => options.unhealthy_threshold,
        };
        if self.against < enough {
            return None;
        }
        self.against = 0;
        self.is_healthy = passed;
        Some(passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::{Check, TcpCheck};

    #[test]
    fn results_and_what_they_change() {
        use InitialHealth::{Healthy, Unhealthy};
        // `+` passed, `-` failed; then the changes: `U` unhealthy, `H` healthy, `.` none
        for (initial, healthy, unhealthy, results, changes) in [
            (Healthy, 2, 3, "++++", "...."),
            (Healthy, 2, 3, "---", "..U"),
            (Healthy, 2, 3, "--+--+", "......"),
            (Healthy, 2, 3, "-----++", "..U...H"),
            (Healthy, 2, 3, "---+-+-++", "..U.....H"),
            (Healthy, 1, 1, "-+-+", "UHUH"),
            (Healthy, 0, 0, "-+", "UH"),
            (Unhealthy, 2, 3, "+", "H"),
            (Unhealthy, 2, 3, "-++", "..H"),
            (Unhealthy, 2, 3, "-+-+-", "....."),
            (Unhealthy, 2, 3, "+---", "H..U"),
        ] {
            let options = HealthOptions::new(Check::Tcp(TcpCheck::default()))
                .with_healthy_threshold(healthy)
                .with_unhealthy_threshold(unhealthy);
            let mut rows = Rows::new(initial);
            let mut is_healthy = initial == Healthy;
            let seen: String = results
                .chars()
                .map(|result| {
                    let change = rows.take(result == '+', &options);
                    is_healthy = change.unwrap_or(is_healthy);
                    assert_eq!(rows.is_healthy(), is_healthy);
                    match change {
                        Some(true) => 'H',
                        Some(false) => 'U',
                        None => '.',
                    }
                })
                .collect();
            assert_eq!(seen, changes, "{initial:?} {healthy} {unhealthy} {results}");
        }
    }
}
