//! Which of several responses under one key a request gets: by the fields that `Vary` names (RFC 9111 section 4.1), and by what the rules add.

use http::{
    HeaderMap, HeaderName,
    header::{
        ACCEPT, ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE, AUTHORIZATION, COOKIE, REFERER, USER_AGENT,
        VARY,
    },
};

use crate::{buf::Buf, directives::members, rules::CacheRules};

/// More names than this are not followed.
const MAX_NAMES: usize = 16;

/// More bytes of a request's values than this select nothing: it is not stored, and what is stored is not compared with it.
const MAX_SELECTION: usize = 4096;

/// What a request is looked at by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Selector {
    Field(HeaderName),
    Cookie(Box<str>),
}

/// Of a response: what the rules name and what `Vary` names. `None` for `*`, for what is no name, and for too many.
pub(crate) fn selectors(response: &HeaderMap, rules: &CacheRules) -> Option<Box<[Selector]>> {
    let mut selectors: Vec<Selector> = Vec::new();
    selectors.extend(rules.key_fields.iter().cloned().map(Selector::Field));
    selectors.extend(rules.key_cookies.iter().map(|name| Selector::Cookie(name.as_str().into())));
    let most = selectors.len() + MAX_NAMES;
    for member in response.get_all(VARY).iter().flat_map(|line| members(line.as_bytes())) {
        // `*` is a valid token and would pass for a name.
        let name = HeaderName::from_bytes(member).ok().filter(|name| name.as_str() != "*")?;
        let selector = Selector::Field(name);
        if selectors.contains(&selector) {
            continue;
        }
        if selectors.len() == most {
            return None;
        }
        selectors.push(selector);
    }
    Some(selectors.into())
}

/// A request's values in the one form in which they are compared; `None` when they are too long.
pub(crate) fn selection(selectors: &[Selector], request: &HeaderMap) -> Option<Buf> {
    let mut values = Buf::new();
    for selector in selectors {
        match selector {
            Selector::Field(name) => field(name, request, &mut values),
            Selector::Cookie(name) => cookie(name, request, &mut values),
        }
        // No value has this byte in it.
        values.push(0);
    }
    (values.as_slice().len() <= MAX_SELECTION).then_some(values)
}

fn field(name: &HeaderName, request: &HeaderMap, values: &mut Buf) {
    let lines = request.get_all(name);
    // A field that is there and empty is not one that is missing.
    if !request.contains_key(name) {
        return;
    }
    values.push(1);
    if [ACCEPT, ACCEPT_LANGUAGE, ACCEPT_ENCODING, ACCEPT_CHARSET].contains(name) {
        // Lists whose case means nothing (RFC 9110 section 12.5).
        let mut all: Vec<Vec<u8>> =
            lines.iter().flat_map(|line| members(line.as_bytes())).map(preference).collect();
        // The order of languages may be their priority (section 12.5.4).
        if *name != ACCEPT_LANGUAGE {
            all.sort_unstable();
            all.dedup();
        }
        for member in all {
            values.extend(&member);
            values.push(b',');
        }
    } else if [COOKIE, AUTHORIZATION, USER_AGENT, REFERER].contains(name) {
        // No lists: to the byte.
        for line in lines {
            values.extend(line.as_bytes());
            values.push(2);
        }
    } else {
        // Several lines are one with commas, and space around a comma is none.
        for member in lines.iter().flat_map(|line| members(line.as_bytes())) {
            values.extend(member);
            values.push(b',');
        }
    }
}

/// In small letters, without space; `q=1` is what counts without it.
fn preference(member: &[u8]) -> Vec<u8> {
    let mut text: Vec<u8> =
        member.iter().filter(|b| !b.is_ascii_whitespace()).map(u8::to_ascii_lowercase).collect();
    for full in [&b";q=1.000"[..], b";q=1.00", b";q=1.0", b";q=1.", b";q=1"] {
        if text.ends_with(full) {
            text.truncate(text.len() - full.len());
            break;
        }
    }
    text
}

fn cookie(name: &str, request: &HeaderMap, values: &mut Buf) {
    for value in cookies(request).filter_map(|(other, value)| (other == name.as_bytes()).then_some(value)) {
        values.push(1);
        values.extend(value);
    }
}

/// Name and value of each cookie (RFC 6265 section 4.2), of every line.
pub(crate) fn cookies(request: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    request.get_all(COOKIE).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b';')).map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=');
        let (name, value) = at.map_or((pair, &[][..]), |at| (&pair[..at], &pair[at + 1..]));
        (name.trim_ascii(), value.trim_ascii())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn same(vary: &'static str, one: &[(&'static str, &str)], other: &[(&'static str, &str)]) -> bool {
        let selectors = selectors(&headers(&[("vary", vary)]), &CacheRules::default()).unwrap();
        let select = |fields| selection(&selectors, &headers(fields)).unwrap();
        select(one) == select(other)
    }

    #[test]
    fn values_are_compared_in_one_form() {
        type Fields = &'static [(&'static str, &'static str)];
        let table: &[(&'static str, Fields, Fields, bool)] = &[
            ("foo", &[("foo", "1")], &[("foo", "1"), ("bar", "2")], true),
            ("foo", &[("foo", "1")], &[("foo", "2")], false),
            ("foo", &[("foo", "1")], &[], false),
            ("foo", &[("foo", "")], &[], false),
            ("foo", &[("foo", "1, 2")], &[("foo", "1"), ("foo", "2")], true),
            ("foo", &[("foo", "1,2")], &[("foo", " 1 ,  2 ")], true),
            ("foo", &[("foo", "1,2")], &[("foo", "2,1")], false),
            ("foo", &[("foo", "a")], &[("foo", "A")], false),
            ("foo", &[("foo", "\"a, b\"")], &[("foo", "\"a,b\"")], false),
            ("foo, bar", &[("foo", "1")], &[("bar", "1")], false),
            (
                "accept-language",
                &[("accept-language", "en, de")],
                &[("accept-language", "EN,de;q=1.0")],
                true,
            ),
            ("accept-language", &[("accept-language", "en, de")], &[("accept-language", "de, en")], false),
            (
                "accept-language",
                &[("accept-language", "en, de;q=0.5")],
                &[("accept-language", "de, en;q=0.5")],
                false,
            ),
            (
                "accept-encoding",
                &[("accept-encoding", "gzip, br")],
                &[("accept-encoding", "br"), ("accept-encoding", "GZIP")],
                true,
            ),
            ("accept-encoding", &[("accept-encoding", "gzip")], &[("accept-encoding", "gzip;q=0")], false),
            ("user-agent", &[("user-agent", "a, b")], &[("user-agent", "a,b")], false),
            ("cookie", &[("cookie", "a=1")], &[("cookie", "a=1; b=2")], false),
        ];
        for (vary, one, other, want) in table {
            assert_eq!(same(vary, one, other), *want, "{vary}: {one:?} {other:?}");
        }
    }

    #[test]
    fn rules_add_fields_and_cookies() {
        let rules = CacheRules::default()
            .with_key_fields([HeaderName::from_static("x-country")])
            .with_key_cookies(["theme".to_owned()]);
        let selectors = selectors(&headers(&[("vary", "X-Country, foo")]), &rules).unwrap();
        assert_eq!(selectors.len(), 3);
        let select = |fields: &[(&'static str, &str)]| selection(&selectors, &headers(fields)).unwrap();
        let dark = select(&[("x-country", "de"), ("cookie", "id=1; theme=dark")]);
        assert_eq!(dark, select(&[("x-country", "de"), ("cookie", "theme=dark"), ("cookie", "id=2")]));
        for other in [
            &[("x-country", "de"), ("cookie", "theme=light")][..],
            &[("x-country", "de"), ("cookie", "xtheme=dark")],
            &[("x-country", "at"), ("cookie", "theme=dark")],
            &[("cookie", "theme=dark")],
            &[("x-country", "de")],
            &[("x-country", "de"), ("cookie", "theme=dark; theme=light")],
        ] {
            assert_ne!(dark, select(other), "{other:?}");
        }
    }

    #[test]
    fn what_selects_nothing() {
        for vary in ["*", "a, *", "not a name", "a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q"] {
            assert_eq!(selectors(&headers(&[("vary", vary)]), &CacheRules::default()), None, "{vary}");
        }
        let all = selectors(&headers(&[("vary", "a")]), &CacheRules::default()).unwrap();
        assert!(selection(&all, &headers(&[("a", &"x".repeat(MAX_SELECTION))])).is_none());
    }
}
