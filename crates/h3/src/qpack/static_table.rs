//! The static table (RFC 9204 appendix A).

use http::{HeaderName, HeaderValue};

/// A line of the table.
pub(crate) enum Line {
    /// A pseudo-header field and its value.
    Pseudo(&'static str, &'static str),
    /// A field and its value.
    Field(HeaderName, HeaderValue),
}

/// The line with this index.
pub(crate) fn line(index: u64) -> Option<&'static Line> {
    TABLE.get(usize::try_from(index).ok()?)
}

const fn field(name: &'static str, value: &'static str) -> Line {
    Line::Field(HeaderName::from_static(name), HeaderValue::from_static(value))
}

const fn pseudo(name: &'static str, value: &'static str) -> Line {
    Line::Pseudo(name, value)
}

#[rustfmt::skip]
static TABLE: [Line; 99] = [
    pseudo(":authority", ""),
    pseudo(":path", "/"),
    field("age", "0"),
    field("content-disposition", ""),
    field("content-length", "0"),
    field("cookie", ""),
    field("date", ""),
    field("etag", ""),
    field("if-modified-since", ""),
    field("if-none-match", ""),
    field("last-modified", ""),
    field("link", ""),
    field("location", ""),
    field("referer", ""),
    field("set-cookie", ""),
    pseudo(":method", "CONNECT"),
    pseudo(":method", "DELETE"),
    pseudo(":method", "GET"),
    pseudo(":method", "HEAD"),
    pseudo(":method", "OPTIONS"),
    pseudo(":method", "POST"),
    pseudo(":method", "PUT"),
    pseudo(":scheme", "http"),
    pseudo(":scheme", "https"),
    pseudo(":status", "103"),
    pseudo(":status", "200"),
    pseudo(":status", "304"),
    pseudo(":status", "404"),
    pseudo(":status", "503"),
    field("accept", "*/*"),
    field("accept", "application/dns-message"),
    field("accept-encoding", "gzip, deflate, br"),
    field("accept-ranges", "bytes"),
    field("access-control-allow-headers", "cache-control"),
    field("access-control-allow-headers", "content-type"),
    field("access-control-allow-origin", "*"),
    field("cache-control", "max-age=0"),
    field("cache-control", "max-age=2592000"),
    field("cache-control", "max-age=604800"),
    field("cache-control", "no-cache"),
    field("cache-control", "no-store"),
    field("cache-control", "public, max-age=31536000"),
    field("content-encoding", "br"),
    field("content-encoding", "gzip"),
    field("content-type", "application/dns-message"),
    field("content-type", "application/javascript"),
    field("content-type", "application/json"),
    field("content-type", "application/x-www-form-urlencoded"),
    field("content-type", "image/gif"),
    field("content-type", "image/jpeg"),
    field("content-type", "image/png"),
    field("content-type", "text/css"),
    field("content-type", "text/html; charset=utf-8"),
    field("content-type", "text/plain"),
    field("content-type", "text/plain;charset=utf-8"),
    field("range", "bytes=0-"),
    field("strict-transport-security", "max-age=31536000"),
    field("strict-transport-security", "max-age=31536000; includesubdomains"),
    field("strict-transport-security", "max-age=31536000; includesubdomains; preload"),
    field("vary", "accept-encoding"),
    field("vary", "origin"),
    field("x-content-type-options", "nosniff"),
    field("x-xss-protection", "1; mode=block"),
    pseudo(":status", "100"),
    pseudo(":status", "204"),
    pseudo(":status", "206"),
    pseudo(":status", "302"),
    pseudo(":status", "400"),
    pseudo(":status", "403"),
    pseudo(":status", "421"),
    pseudo(":status", "425"),
    pseudo(":status", "500"),
    field("accept-language", ""),
    field("access-control-allow-credentials", "FALSE"),
    field("access-control-allow-credentials", "TRUE"),
    field("access-control-allow-headers", "*"),
    field("access-control-allow-methods", "get"),
    field("access-control-allow-methods", "get, post, options"),
    field("access-control-allow-methods", "options"),
    field("access-control-expose-headers", "content-length"),
    field("access-control-request-headers", "content-type"),
    field("access-control-request-method", "get"),
    field("access-control-request-method", "post"),
    field("alt-svc", "clear"),
    field("authorization", ""),
    field("content-security-policy", "script-src 'none'; object-src 'none'; base-uri 'none'"),
    field("early-data", "1"),
    field("expect-ct", ""),
    field("forwarded", ""),
    field("if-range", ""),
    field("origin", ""),
    field("purpose", "prefetch"),
    field("server", ""),
    field("timing-allow-origin", "*"),
    field("upgrade-insecure-requests", "1"),
    field("user-agent", ""),
    field("x-forwarded-for", ""),
    field("x-frame-options", "deny"),
    field("x-frame-options", "sameorigin"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_lines_of_the_appendix() {
        let text = |index| match line(index).unwrap() {
            Line::Pseudo(name, value) => ((*name).to_owned(), (*value).to_owned()),
            Line::Field(name, value) => (name.to_string(), value.to_str().unwrap().to_owned()),
        };
        for (index, name, value) in [
            (0, ":authority", ""),
            (1, ":path", "/"),
            (17, ":method", "GET"),
            (25, ":status", "200"),
            (31, "accept-encoding", "gzip, deflate, br"),
            (52, "content-type", "text/html; charset=utf-8"),
            (71, ":status", "500"),
            (86, "early-data", "1"),
            (95, "user-agent", ""),
            (98, "x-frame-options", "sameorigin"),
        ] {
            assert_eq!(text(index), (name.to_owned(), value.to_owned()), "{index}");
        }
        assert!(line(99).is_none() && line(u64::MAX).is_none());
    }
}
