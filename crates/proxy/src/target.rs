//! The request target and the `Host` field that the upstream sees.
//!
//! The target becomes the origin form (RFC 9112 section 3.2.1), or `*` for a server-wide OPTIONS (section 3.2.4). Path and
//! query are the bytes that came: nothing is decoded, merged or stripped. Every request gets exactly one `Host`, which
//! an HTTP/2 or 3 upstream's client turns into `:authority`.
//!
//! One thing is lost before it gets here: `http::Uri` reads an absolute form without a path as `/`, so that an OPTIONS for
//! `http://a.example` goes on as `/` where RFC 9112 section 3.2.4 asks for `*`.

use std::{mem, net::SocketAddr};

use http::{HeaderMap, HeaderValue, Uri, header, uri::PathAndQuery};

/// Sets `Host` from the target, whose authority wins over a `Host` that came with it: RFC 9112 section 3.2.2 for the
/// absolute form, RFC 9113 section 8.3.1 and RFC 9114 section 4.3.1 for `:authority`.
///
/// Without either (HTTP/1.0 only), the address that the client connected to stands for the host, as RFC 9112
/// section 3.3 has it, since the upstream is spoken to in a version that needs one; with no address known it is empty.
pub fn set_host(headers: &mut HeaderMap, uri: &Uri, local: Option<SocketAddr>) {
    let Some(authority) = uri.authority() else {
        if !headers.contains_key(header::HOST) {
            let host = local.and_then(|local| HeaderValue::try_from(local.to_string()).ok());
            headers.insert(header::HOST, host.unwrap_or(HeaderValue::from_static("")));
        }
        return;
    };
    let authority = authority.as_str();
    if headers.get(header::HOST).is_none_or(|host| host.as_bytes() != authority.as_bytes()) {
        let host = HeaderValue::from_str(authority).expect("an authority has only visible ascii characters");
        headers.insert(header::HOST, host);
    }
}

/// Brings a target into the form for an upstream. A target that is in it already is not touched.
pub fn to_origin_form(uri: &mut Uri) {
    if uri.authority().is_none() && uri.scheme().is_none() {
        return;
    }
    let target = mem::take(uri).into_parts().path_and_query;
    *uri = Uri::from(match target {
        // RFC 9112 section 3.2.1: an empty path is sent as `/`
        Some(target) if target.as_str().starts_with('?') => {
            let query = target.query().unwrap_or_default();
            PathAndQuery::try_from(format!("/?{query}")).unwrap_or_else(|_| target.clone())
        }
        Some(target) => target,
        None => PathAndQuery::from_static("/"),
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn forms() {
        for (from, to) in [
            ("/a/b?c=d", "/a/b?c=d"),
            ("/", "/"),
            ("http://a.example", "/"),
            ("http://a.example/", "/"),
            ("http://a.example:8080/x?y", "/x?y"),
            ("https://a.example?y=1", "/?y=1"),
            ("*", "*"),
            // as received
            ("http://a.example//x/%2F/%7euser;p=1/?a=%20&b=//", "//x/%2F/%7euser;p=1/?a=%20&b=//"),
            ("/?", "/?"),
        ] {
            let mut uri: Uri = from.parse().unwrap();
            to_origin_form(&mut uri);
            assert_eq!(uri.to_string(), to, "{from}");
            assert!(uri.authority().is_none() && uri.scheme().is_none());
        }
    }

    #[test]
    fn rfc3986_3_5_a_fragment_never_goes_on() {
        let uri: Uri = "/a#b?c".parse().unwrap();
        assert_eq!(uri.to_string(), "/a");
    }

    #[test]
    fn hosts() {
        for (target, host, set) in [
            ("/x", Some("a.example"), "a.example"),
            ("http://b.example/x", Some("a.example"), "b.example"),
            ("http://b.example:8080/x", None, "b.example:8080"),
            ("/x", None, "192.0.2.2:443"),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(host) = host {
                headers.insert("host", host.parse().unwrap());
            }
            let local = SocketAddr::from(([192, 0, 2, 2], 443));
            set_host(&mut headers, &target.parse().unwrap(), Some(local));
            assert_eq!(headers.get_all("host").iter().collect::<Vec<_>>(), [set], "{target} {host:?}");
        }
        let mut headers = HeaderMap::new();
        set_host(&mut headers, &"/".parse().unwrap(), None);
        assert_eq!(headers["host"], "");
    }

    proptest! {
        #[test]
        fn path_and_query_are_kept_byte_for_byte(path in "(/[a-zA-Z0-9%._~!$&'()*+,;=:@-]{0,8}){1,6}", query in "[a-z0-9=&%/?]{0,10}") {
            let target = format!("{path}?{query}");
            let mut uri: Uri = format!("http://h.example{target}").parse().unwrap();
            to_origin_form(&mut uri);
            prop_assert_eq!(uri.to_string(), target);
        }
    }
}
