//! From a request as it is to the request of RFC 9113 section 8.3.1, or to an extended CONNECT.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, header, request, uri::Scheme};

use crate::Error;

/// A request's head for HTTP/2.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) request: Request<()>,
    /// What is asked for by an extended CONNECT (RFC 8441 section 4).
    pub(crate) upgrade: bool,
}

/// Fields that are HTTP/1.1's own connection management and make an HTTP/2 message malformed (RFC 9113 section 8.2.2).
const CONNECTION_FIELDS: &[HeaderName] = &[header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE];

/// Makes the head. `Host` becomes `:authority` (RFC 9113 section 8.3.1: a request that is converted from HTTP/1 should have it), and an
/// upgrade an extended CONNECT (RFC 8441 section 5).
pub(crate) fn head_of(parts: &request::Parts, secure: bool, endpoint: &str) -> Result<Head, Error> {
    if parts.method == Method::CONNECT {
        return Err(Error::InvalidRequest { reason: "CONNECT is not for a cluster" });
    }
    let upgrade = parts.headers.get(header::UPGRADE);
    if upgrade.is_some() && parts.method != Method::GET {
        return Err(Error::InvalidRequest { reason: "only a GET can be upgraded" });
    }
    let mut headers = HeaderMap::with_capacity(parts.headers.len());
    for (name, value) in &parts.headers {
        let text = name.as_str();
        let stays = *name != header::HOST
            && !CONNECTION_FIELDS.contains(name)
            && !matches!(text, "keep-alive" | "proxy-connection" | "http2-settings")
            && (*name != header::TE || value.as_bytes().eq_ignore_ascii_case(b"trailers"))
            // RFC 8441 section 5: these two are HTTP/1.1's proof that the other end understood
            && (upgrade.is_none() || !matches!(text, "sec-websocket-key" | "sec-websocket-accept"));
        if stays && *name == header::TE {
            // RFC 9113 section 8.2.2, in the one spelling
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        } else if stays {
            headers.append(name.clone(), value.clone());
        }
    }
    let invalid = |reason| Error::InvalidRequest { reason };
    let authority = match parts.headers.get(header::HOST).map(|host| host.as_bytes()) {
        // RFC 9113 section 8.3.1: no userinfo
        Some(host) if host.contains(&b'@') => return Err(invalid("its Host has an `@`")),
        Some(host) if !host.is_empty() => host.try_into().map_err(|_| invalid("its Host is no authority"))?,
        _ => match parts.uri.authority() {
            Some(authority) => authority.clone(),
            // a unix socket has no authority of its own
            None => endpoint.try_into().unwrap_or_else(|_| http::uri::Authority::from_static("localhost")),
        },
    };
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(if secure { Scheme::HTTPS } else { Scheme::HTTP });
    uri.authority = Some(authority);
    uri.path_and_query = Some(match parts.uri.path_and_query() {
        Some(target) if target.as_str().starts_with('/') || target.as_str() == "*" => target.clone(),
        Some(target) => format!("/{target}").try_into().map_err(|_| invalid("its target is no path"))?,
        None => http::uri::PathAndQuery::from_static("/"),
    });
    let uri = Uri::from_parts(uri).map_err(|_| invalid("its target is no URI"))?;
    let mut request = Request::new(());
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = headers;
    *request.uri_mut() = uri;
    *request.method_mut() = parts.method.clone();
    if let Some(protocol) = upgrade {
        let protocol = protocol.to_str().map_err(|_| invalid("its Upgrade is no protocol"))?;
        *request.method_mut() = Method::CONNECT;
        request.extensions_mut().insert(h2::ext::Protocol::from(protocol));
    }
    Ok(Head { request, upgrade: upgrade.is_some() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(request: http::request::Builder) -> Head {
        head_of(&request.body(()).unwrap().into_parts().0, true, "10.0.0.1:80").unwrap()
    }

    #[test]
    fn rfc9113_8_3_1_host_becomes_the_authority_and_connection_fields_go() {
        let made = head(
            Request::post("/a?b=c")
                .header("host", "app.test:8080")
                .header("connection", "te")
                .header("te", "trailers")
                .header("x-a", "1")
                .header("x-a", "2")
                .header("content-length", "3"),
        );
        assert_eq!(made.request.uri(), "https://app.test:8080/a?b=c");
        assert!(!made.upgrade && made.request.method() == Method::POST);
        let fields: Vec<_> = made.request.headers().iter().map(|(n, v)| format!("{n}: {v:?}")).collect();
        assert_eq!(fields, ["te: \"trailers\"", "x-a: \"1\"", "x-a: \"2\"", "content-length: \"3\""]);
    }

    #[test]
    fn a_request_without_a_host_has_its_uris_or_the_endpoints() {
        assert_eq!(head(Request::get("http://u:1/x")).request.uri(), "https://u:1/x");
        assert_eq!(head(Request::get("/x")).request.uri(), "https://10.0.0.1:80/x");
        let parts = Request::get("/x").body(()).unwrap().into_parts().0;
        assert_eq!(head_of(&parts, false, "unix:/run/x").unwrap().request.uri(), "http://localhost/x");
        let bad = Request::get("/").header("host", "a b").body(()).unwrap().into_parts().0;
        assert!(head_of(&bad, false, "e").is_err());
        let options = head(Request::options("*").header("host", "h"));
        assert_eq!(options.request.uri().path(), "*");
    }

    #[test]
    fn rfc8441_5_an_upgrade_becomes_an_extended_connect() {
        let made = head(
            Request::get("/chat")
                .header("host", "a.test")
                .header("connection", "upgrade")
                .header("upgrade", "websocket")
                .header("sec-websocket-key", "x")
                .header("sec-websocket-version", "13"),
        );
        assert!(made.upgrade && made.request.method() == Method::CONNECT);
        assert_eq!(made.request.extensions().get::<h2::ext::Protocol>().unwrap().as_str(), "websocket");
        assert_eq!(made.request.headers().len(), 1);
    }
}
