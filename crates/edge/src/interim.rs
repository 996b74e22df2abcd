//! What a route changes in responses, made in those that go ahead of them.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Request};
use portcullis_conn::{Interim, InterimEdit, SendInterim};
use portcullis_proxy::FieldEdits;

use crate::Body;

struct Edited(Arc<FieldEdits>);

impl InterimEdit for Edited {
    fn edit(&self, fields: &mut dyn Iterator<Item = (&str, &[u8])>, send: &mut SendInterim<'_>) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            if let (Ok(name), Ok(value)) =
                (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value))
            {
                // full: a map holds 32,768 fields
                let _ = headers.try_append(name, value);
            }
        }
        self.0.apply(&mut headers);
        send(&mut headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())))
    }
}

/// Has the changes made in interim responses (RFC 9110 section 15.2), which go to the client's driver past every layer.
pub(crate) fn edited(edits: &Arc<FieldEdits>) -> impl Fn(Request<Body>) -> Request<Body> + Clone + use<> {
    let edit: Arc<dyn InterimEdit> = Arc::new(Edited(Arc::clone(edits)));
    move |mut request| {
        if let Some(interim) = request.extensions_mut().get_mut::<Interim>() {
            interim.set_edit(Arc::clone(&edit));
        }
        request
    }
}
