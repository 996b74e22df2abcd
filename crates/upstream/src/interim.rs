//! Interim responses on their way to the client.

use http::{Extensions, HeaderMap, StatusCode, header};
use portcullis_conn::Interim;

/// Before a final response; with more of them an endpoint has failed.
pub(crate) const MAX_INTERIM: u32 = 16;

/// Passes one on (RFC 9110 section 15.2), if the client's protocol has a way for it, without the fields that end at this hop (RFC 9110
/// section 7.6.1). A 100 was asked for by who sent the request, so it ends here.
pub(crate) fn pass_on(extensions: &Extensions, status: StatusCode, headers: &HeaderMap) {
    if status == StatusCode::CONTINUE {
        return;
    }
    let Some(interim) = extensions.get::<Interim>() else { return };
    let listed = |name: &str| {
        let lines = headers.get_all(header::CONNECTION).iter();
        lines
            .filter_map(|line| line.to_str().ok())
            .flat_map(|line| line.split(','))
            .any(|listed| listed.trim().eq_ignore_ascii_case(name))
    };
    let crosses = |name: &str| {
        // the length of an interim response is none, whatever it says (RFC 9110 section 8.6)
        !matches!(
            name,
            "connection"
                | "content-length"
                | "keep-alive"
                | "proxy-authenticate"
                | "proxy-connection"
                | "te"
                | "trailer"
                | "transfer-encoding"
                | "upgrade"
        ) && !listed(name)
    };
    let fields = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    interim.send(status.as_u16(), fields.filter(|(name, _)| crosses(name)));
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http::HeaderValue;
    use portcullis_conn::InterimSink;

    use super::*;

    #[derive(Default)]
    struct Kept(Mutex<Vec<String>>);

    impl InterimSink for Kept {
        fn send(&self, request: u64, status: u16, fields: &mut dyn Iterator<Item = (&str, &[u8])>) -> bool {
            let fields: Vec<_> =
                fields.map(|(name, value)| format!("{name}={}", value.escape_ascii())).collect();
            self.0.lock().unwrap().push(format!("{request} {status} {}", fields.join(" ")));
            true
        }
    }

    #[test]
    fn what_ends_at_this_hop_does_not_cross() {
        let kept = Arc::new(Kept::default());
        let mut extensions = Extensions::new();
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("link", "</a>"),
            ("link", "</b>"),
            ("connection", "x-a, Keep-Alive"),
            ("connection", "x-b"),
            ("keep-alive", "timeout=5"),
            ("x-a", "1"),
            ("x-b", "1"),
            ("x-c", "1"),
            ("content-length", "7"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "x"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        pass_on(&extensions, StatusCode::EARLY_HINTS, &headers);
        extensions.insert(Interim::new(Arc::clone(&kept) as _, 7));
        pass_on(&extensions, StatusCode::CONTINUE, &headers);
        pass_on(&extensions, StatusCode::EARLY_HINTS, &headers);
        assert_eq!(*kept.0.lock().unwrap(), ["7 103 link=</a> link=</b> x-c=1"]);
    }
}
