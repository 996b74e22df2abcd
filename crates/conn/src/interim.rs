//! Interim responses: from who hears of one to the driver of the client's connection.

use std::{fmt, sync::Arc};

/// Where a protocol's driver takes interim responses (RFC 9110 section 15.2).
pub trait InterimSink: Send + Sync {
    /// Sends one ahead of the response to this request, or says that it can't: the response was begun, too many wait, or this is no interim
    /// response.
    fn send(&self, request: u64, status: u16, fields: &mut dyn Iterator<Item = (&str, &[u8])>) -> bool;
}

/// Sends on the fields that it was given; false where the driver can't.
pub type SendInterim<'a> = dyn FnMut(&mut dyn Iterator<Item = (&str, &[u8])>) -> bool + 'a;

/// Changes interim responses on their way to the driver.
pub trait InterimEdit: Send + Sync {
    /// Gives `send` what is to be sent in place of these fields.
    fn edit(&self, fields: &mut dyn Iterator<Item = (&str, &[u8])>, send: &mut SendInterim<'_>) -> bool;
}

/// Sends interim responses, `103 Early Hints` (RFC 8297) among them, ahead of the response to one request. A driver that can do so puts it among
/// the request's extensions; where it is missing, interim responses end here.
///
/// It leaves with the next turn of the connection's task, and always before the response. `100 Continue` is the driver's own matter.
#[derive(Clone)]
pub struct Interim {
    sink: Arc<dyn InterimSink>,
    request: u64,
    edit: Option<Arc<dyn InterimEdit>>,
}

impl Interim {
    /// For this request of the sink's.
    pub fn new(sink: Arc<dyn InterimSink>, request: u64) -> Self {
        Self { sink, request, edit: None }
    }

    /// Has each one changed before it is sent; in place of who did so until now.
    pub fn set_edit(&mut self, edit: Arc<dyn InterimEdit>) {
        self.edit = Some(edit);
    }

    /// Sends one. False if it can't be sent any more, or not at all: nothing else follows from that.
    pub fn send<'a>(&self, status: u16, fields: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> bool {
        let mut fields = fields.into_iter();
        match &self.edit {
            None => self.sink.send(self.request, status, &mut fields),
            Some(edit) => edit.edit(&mut fields, &mut |fields| self.sink.send(self.request, status, fields)),
        }
    }
}

impl fmt::Debug for Interim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interim").field("request", &self.request).finish_non_exhaustive()
    }
}
