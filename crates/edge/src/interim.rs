//! What a chain changes in responses, made in those that go ahead of them.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Request};
use portcullis_conn::{Interim, InterimEdit, SendInterim};
use portcullis_proxy::FieldEdits;

use crate::Body;

struct Edited {
    /// The route's.
    edits: Option<Arc<FieldEdits>>,
    /// What no response is to have.
    removed: Box<[HeaderName]>,
}

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
        for name in &self.removed {
            headers.remove(name);
        }
        // the last word, as in responses
        if let Some(edits) = &self.edits {
            edits.apply(&mut headers);
        }
        send(&mut headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())))
    }
}

/// Has the changes made in interim responses (RFC 9110 section 15.2), which go to the client's driver past every layer.
/// `None` where there are none.
pub(crate) fn edited(
    edits: Option<&Arc<FieldEdits>>,
    removed: &[HeaderName],
) -> Option<impl Fn(Request<Body>) -> Request<Body> + Clone + use<>> {
    if edits.is_none() && removed.is_empty() {
        return None;
    }
    let edit: Arc<dyn InterimEdit> = Arc::new(Edited { edits: edits.cloned(), removed: removed.into() });
    Some(move |mut request: Request<Body>| {
        if let Some(interim) = request.extensions_mut().get_mut::<Interim>() {
            interim.set_edit(Arc::clone(&edit));
        }
        request
    })
}
