//! Which endpoint of a cluster a request goes to: a pure core, without IO and without locks.
//!
//! A [`Table`] is built once from the members and the options and does not change; what changes (who is available, how
//! many requests are under way, how long they take) is read from the caller's [`Endpoints`] at each pick.

mod consistent;
mod hash;
mod load;
mod options;
#[cfg(feature = "sticky")]
mod sticky;
mod table;

pub(crate) use hash::{hash_of, stable_hash};
pub(crate) use load::Load;
pub use options::{BalanceOptions, HashKey, Policy};
#[cfg(feature = "sticky")]
pub use sticky::{StickyCookie, StickyError};
pub(crate) use table::{Ask, Endpoints, Member, Table, Tried};

#[cfg(feature = "bench")]
#[doc(hidden)]
pub mod bench;

#[cfg(test)]
mod tests;
