//! HTTP/2 towards an endpoint: the h2 crate's connection in a task of its own, requests in their own tasks.

mod conn;
mod exchange;
mod head;
mod upgraded;

pub(crate) use conn::{H2Conn, H2Lease};
pub(crate) use exchange::{Failure, H2Response, SendError, exchange};
pub(crate) use head::head_of;
pub(crate) use upgraded::H2Upgraded;
