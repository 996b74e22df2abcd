//! Which clock rules go by: the processor's counter, in this crate's own tests tokio's, which can be paused.

#[cfg(not(test))]
pub(super) type RuleClock = governor::clock::DefaultClock;

#[cfg(test)]
pub(super) use self::paused::RuleClock;

#[cfg(test)]
mod paused {
    use std::sync::OnceLock;

    use governor::{clock::Clock, nanos::Nanos};
    use tokio::time::Instant;

    #[derive(Clone, Debug, Default)]
    pub(crate) struct RuleClock(OnceLock<Instant>);

    impl Clock for RuleClock {
        type Instant = Nanos;

        fn now(&self) -> Nanos {
            Instant::now().duration_since(*self.0.get_or_init(Instant::now)).into()
        }
    }
}
