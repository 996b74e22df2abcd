//! Which of several responses under one key a request gets: by the fields that `Vary` names (RFC 9111 section 4.1), and by what the rules add.

use http::{
    HeaderMap, HeaderName,
    header::{
        ACCEPT, ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE, AUTHORIZATION, COOKIE, REFERER, USER_AGENT,
        VARY,
    },
};

use crate::{
    buf::Buf,
    directives::{is_well_quoted, members, split},
    rules::CacheRules,
};

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

/// Of a response: what the rules name and what `Vary` names. `None` for `*`, for what is no name, for what is written behind the cache, and for too many.
pub(crate) fn selectors(response: &HeaderMap, rules: &CacheRules) -> Option<Box<[Selector]>> {
    let mut selectors: Vec<Selector> = Vec::new();
    selectors.extend(rules.key_fields.iter().cloned().map(Selector::Field));
    selectors.extend(rules.key_cookies.iter().map(|name| Selector::Cookie(name.as_str().into())));
    let most = selectors.len() + MAX_NAMES;
    for member in response.get_all(VARY).iter().flat_map(|line| members(line.as_bytes())) {
        // `*` is a valid token and would pass for a name.
        let name = HeaderName::from_bytes(member).ok().filter(|name| name.as_str() != "*")?;
        // What the origin chose by is not what the client sent (RFC 9111 section 4.1).
        if rules.written_behind.contains(&name) {
            return None;
        }
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

/// Whether these rules tell responses apart by what these selectors have: what was stored by others may be without what these add.
pub(crate) fn fit(selectors: &[Selector], rules: &CacheRules) -> bool {
    let fields = rules.key_fields.len();
    let Some(own) = selectors.get(..fields + rules.key_cookies.len()) else { return false };
    let (own_fields, own_cookies) = own.split_at(fields);
    let is_field =
        |(selector, name): (&Selector, &HeaderName)| matches!(selector, Selector::Field(own) if own == name);
    let is_cookie =
        |(selector, name): (&Selector, &String)| matches!(selector, Selector::Cookie(own) if **own == **name);
    let written = |selector: &Selector| matches!(selector, Selector::Field(name) if rules.written_behind.contains(name));
    own_fields.iter().zip(&rules.key_fields).all(is_field)
        && own_cookies.iter().zip(&rules.key_cookies).all(is_cookie)
        && !selectors.iter().skip(own.len()).any(written)
}

/// A request's values in the one form in which they are compared; `None` when they are too long, or can be read in more than one way.
pub(crate) fn selection(selectors: &[Selector], request: &HeaderMap) -> Option<Buf> {
    let mut values = Buf::new();
    for selector in selectors {
        match selector {
            Selector::Field(name) => field(name, request, &mut values),
            Selector::Cookie(name) => cookie(name, request, &mut values)?,
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
    let is_list = [ACCEPT, ACCEPT_LANGUAGE, ACCEPT_ENCODING, ACCEPT_CHARSET].contains(name);
    if is_list && lines.iter().all(|line| is_well_quoted(line.as_bytes())) {
        // Lists whose case means nothing (RFC 9110 section 12.5), and neither do empty members (section 5.6.1.2).
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
    } else if is_list
        || [COOKIE, AUTHORIZATION, USER_AGENT, REFERER].contains(name)
        || !lines.iter().all(|line| is_well_quoted(line.as_bytes()))
    {
        // No lists, or none that all take for the same, as where quotes may reach over the end of a line: to the byte.
        for line in lines {
            values.extend(line.as_bytes());
            values.push(2);
        }
    } else {
        // Several lines are one with commas, and space around a comma is none (RFC 9111 section 4.1). A member that is empty stays:
        // who does not know the field as a list sees one comma more.
        for member in lines.iter().flat_map(|line| split(line.as_bytes(), b',')) {
            values.extend(member);
            values.push(b',');
        }
    }
}

/// Without the space around its parameters, the first part and `q` in small letters; `q=1` is what counts without it. The values of other parameters may have
/// case (RFC 9110 section 8.3.1), and space elsewhere is none that all leave out.
fn preference(member: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(member.len());
    let mut parts = split(member, b';').peekable();
    let first = parts.next().unwrap_or_default();
    text.extend_from_slice(first);
    // A value is none of a name's.
    if !first.contains(&b'=') {
        text.make_ascii_lowercase();
    }
    while let Some(part) = parts.next() {
        let weight = part.get(..2).filter(|start| start.eq_ignore_ascii_case(b"q=")).map(|_| &part[2..]);
        let full = weight.is_some_and(|weight| matches!(weight, b"1" | b"1." | b"1.0" | b"1.00" | b"1.000"));
        if full && parts.peek().is_none() {
            break;
        }
        text.push(b';');
        match weight {
            Some(weight) => {
                text.extend_from_slice(b"q=");
                text.extend_from_slice(weight);
            }
            None => text.extend_from_slice(part),
        }
    }
    text
}

/// `None` where it depends on the reader whether the cookie is there.
fn cookie(name: &str, request: &HeaderMap, values: &mut Buf) -> Option<()> {
    for (other, value) in cookies(request) {
        if other == name.as_bytes() {
            values.push(1);
            values.extend(value);
        } else if other.trim_ascii() == name.as_bytes() {
            // Some take the space off the name, for others this is another cookie.
            return None;
        }
    }
    Some(())
}

/// Name and the rest, from `=` on, of each cookie (RFC 6265 section 4.2.1), of every line. The one space that stands between cookies is left out, and no other.
pub(crate) fn cookies(request: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    request.get_all(COOKIE).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b';')).map(|pair| {
        let pair = pair.strip_prefix(b" ").unwrap_or(pair);
        pair.split_at(pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len()))
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
            (
                "accept-encoding",
                &[("accept-encoding", "gzip,, br,")],
                &[("accept-encoding", "br,gzip")],
                true,
            ),
            ("accept", &[("accept", "text/html ; q=0.5")], &[("accept", "TEXT/html;Q=0.5")], true),
            ("accept", &[("accept", "a/b;v=1;q=1.0")], &[("accept", "a/b; v=1")], true),
            ("accept", &[("accept", "a/b; p=\"x;q=1\"")], &[("accept", "a/b;p=\"x;q=1\"")], true),
            // What only one of two readers would take for the same is not.
            ("origin", &[("origin", "https://a,")], &[("origin", "https://a")], false),
            ("foo", &[("foo", "1,,2")], &[("foo", "1,2")], false),
            ("foo", &[("foo", ",1")], &[("foo", "1")], false),
            ("foo", &[("foo", "1"), ("foo", "")], &[("foo", "1")], false),
            ("foo", &[("foo", ",")], &[("foo", "")], false),
            ("accept-language", &[("accept-language", "d e")], &[("accept-language", "de")], false),
            ("accept-encoding", &[("accept-encoding", "g zip")], &[("accept-encoding", "gzip")], false),
            ("accept", &[("accept", "a/b;v=x y")], &[("accept", "a/b;v=xy")], false),
            ("accept", &[("accept", "a/b;q = 0.5")], &[("accept", "a/b;q=0.5")], false),
            ("accept", &[("accept", "a/b;v=X")], &[("accept", "a/b;v=x")], false),
            ("accept", &[("accept", "a/b;v=\"X; q=1\"")], &[("accept", "a/b;v=\"X;q=1\"")], false),
            ("accept", &[("accept", "a/b;v=\";q=1")], &[("accept", "a/b;v=\"")], false),
            ("accept", &[("accept", "a/b;v=\"C, d/e")], &[("accept", "a/b;v=\"c, d/e")], false),
            ("accept", &[("accept", "b\""), ("accept", "a")], &[("accept", "a"), ("accept", "b\"")], false),
            ("foo", &[("foo", "\"a"), ("foo", "b\"")], &[("foo", "\"a,b\"")], false),
            ("foo", &[("foo", "\"a"), ("foo", "b\"")], &[("foo", "\"a, b\"")], false),
            ("foo", &[("foo", "a=\"b\""), ("foo", "c")], &[("foo", "a=\"b\", c")], true),
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
            &[("x-country", "de"), ("cookie", "theme= dark")],
            &[("x-country", "de"), ("cookie", "theme")],
            &[("x-country", "de"), ("cookie", "theme=")],
        ] {
            assert_ne!(dark, select(other), "{other:?}");
        }
        assert_ne!(select(&[("cookie", "theme")]), select(&[("cookie", "theme=")]));
        // It depends on the origin whether these have the cookie.
        for cookie in
            ["theme =dark", "id=1;  theme=dark", "\ttheme=dark", "id=1; theme\t=dark", "id=1; theme "]
        {
            let fields = [("x-country", "de"), ("cookie", cookie)];
            assert!(selection(&selectors, &headers(&fields)).is_none(), "{cookie:?}");
        }
    }

    #[test]
    fn what_other_rules_stored_may_not_fit() {
        let name = HeaderName::from_static;
        let plain = CacheRules::default();
        let field = plain.clone().with_key_fields([name("a")]);
        let cookie = plain.clone().with_key_cookies(["c".to_owned()]);
        let both = field.clone().with_key_cookies(["c".to_owned()]);
        let written = plain.clone().with_written_behind([name("v")]);
        let all = [&plain, &field, &cookie, &both, &written];
        for (stored, vary, want) in [
            (&plain, "", [true, false, false, false, true]),
            (&plain, "a", [true, true, false, false, true]),
            (&plain, "v", [true, false, false, false, false]),
            (&field, "v", [true, true, false, false, false]),
            (&cookie, "a", [true, false, true, false, true]),
            (&both, "", [true, true, false, true, true]),
        ] {
            let selectors = selectors(&headers(&[("vary", vary)]), stored).unwrap();
            assert_eq!(all.map(|rules| fit(&selectors, rules)), want, "{stored:?} {vary}");
        }
    }

    #[test]
    fn what_selects_nothing() {
        for vary in ["*", "a, *", "not a name", "a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q"] {
            assert_eq!(selectors(&headers(&[("vary", vary)]), &CacheRules::default()), None, "{vary}");
        }
        let rules = CacheRules::default().with_written_behind([HeaderName::from_static("x-a")]);
        for (vary, selects) in [("X-A", false), ("x-b, x-a", false), ("x-b", true)] {
            assert_eq!(selectors(&headers(&[("vary", vary)]), &rules).is_some(), selects, "{vary}");
        }
        let all = selectors(&headers(&[("vary", "a")]), &CacheRules::default()).unwrap();
        assert!(selection(&all, &headers(&[("a", &"x".repeat(MAX_SELECTION))])).is_none());
    }
}
