//! Takes secrets out of what stands in a log.

use std::{borrow::Cow, collections::BTreeSet, fmt, sync::Arc};

use super::escape::run_of;

/// Query parameters whose values are secrets more often than not, as [`Redaction`] compares them.
pub const SECRET_PARAMETERS: [&str; 40] = [
    "access_token",
    "apikey",
    "api_key",
    "assertion",
    "auth",
    "auth_token",
    "authorization",
    "client_assertion",
    "client_secret",
    "code",
    "code_verifier",
    "credential",
    "credentials",
    "csrf_token",
    "id_token",
    "jwt",
    "key",
    "otp",
    "pass",
    "passphrase",
    "passwd",
    "password",
    "private_key",
    "pwd",
    "refresh_token",
    "samlresponse",
    "secret",
    "session",
    "session_id",
    "sessionid",
    "sid",
    "sig",
    "signature",
    "ticket",
    "token",
    "x_amz_credential",
    "x_amz_security_token",
    "x_amz_signature",
    "x_goog_credential",
    "x_goog_signature",
];

/// In place of a secret.
const HIDDEN: &[u8] = b"***";
/// Longer names of parameters are no secret's.
const MAX_NAME: usize = 64;

/// Which query parameters of targets and of the URIs in fields show `***` in place of their value. Default: [`SECRET_PARAMETERS`].
///
/// Names are compared without regard to case, `-` is `_`, escapes are undone (`%74oken` is `token`), and of `user[password]`,
/// `token[]` and `token[0]` the last name counts. `&`, `;`, `?` and `#` end a value. The userinfo of every URI in a text (`https://name:password@host/`) is always hidden, and so
/// it is where nothing else is. Names of more than 64 bytes are not looked at.
///
/// Clones share the list.
#[derive(Clone, PartialEq, Eq)]
pub struct Redaction {
    names: Arc<Names>,
}

#[derive(Clone, Default, PartialEq, Eq)]
struct Names {
    all: BTreeSet<Box<[u8]>>,
    /// By the last five bits of a name's first letter, whatever its case: which lengths such names have. Most parameters are known by it to be none.
    shapes: [u64; 32],
}

impl Names {
    fn of(all: BTreeSet<Box<[u8]>>) -> Self {
        let mut shapes = [0; 32];
        for name in &all {
            if let Some(first) = name.first() {
                shapes[usize::from(first & 31)] |= 1 << (name.len() & 63);
            }
        }
        Self { all, shapes }
    }

    /// `odd`: there is something in it that may stand for something else.
    fn have(&self, name: &[u8], odd: bool) -> bool {
        let Some(first) = name.first() else { return false };
        // as `normal` has it
        let first = if *first == b'-' { b'_' } else { *first };
        if !odd && self.shapes[usize::from(first & 31)] & 1 << (name.len() & 63) == 0 {
            return false;
        }
        let mut buffer = [0; MAX_NAME];
        normal(name, &mut buffer).is_some_and(|name| self.all.contains(name))
    }
}

impl Default for Redaction {
    fn default() -> Self {
        Self::none().with(SECRET_PARAMETERS)
    }
}

impl Redaction {
    /// No parameter.
    pub fn none() -> Self {
        Self { names: Arc::default() }
    }

    /// These too.
    #[must_use]
    pub fn with<'n>(mut self, names: impl IntoIterator<Item = &'n str>) -> Self {
        let mut all = self.names.all.clone();
        all.extend(names.into_iter().map(|name| plain(name.as_bytes())));
        self.names = Arc::new(Names::of(all));
        self
    }

    /// Without these.
    #[must_use]
    pub fn without<'n>(mut self, names: impl IntoIterator<Item = &'n str>) -> Self {
        let mut all = self.names.all.clone();
        for name in names {
            all.remove(&plain(name.as_bytes()));
        }
        self.names = Arc::new(Names::of(all));
        self
    }

    /// The text without its secrets. Allocates where there is one.
    pub fn apply<'t>(&self, text: &'t [u8]) -> Cow<'t, [u8]> {
        let mut hidden = Hidden { text, out: None, done: 0, next: userinfo(text, 0) };
        let query = run_of(text, |byte| !matches!(byte, b'?' | b'#'));
        if !self.names.all.is_empty() && query < text.len() {
            let (mut name, mut odd, mut at) = (query + 1, false, query + 1);
            while at < text.len() {
                match text[at] {
                    b'=' => {
                        let (value, end) =
                            (at + 1, at + 1 + run_of(&text[at + 1..], |byte| !is_separator(byte)));
                        if value < end && self.names.have(&text[name..at], odd) {
                            hidden.hide(value, end);
                        }
                        at = end;
                        continue;
                    }
                    byte if is_separator(byte) => (name, odd) = (at + 1, false),
                    b'%' | b'[' | b']' => odd = true,
                    _ => {}
                }
                at += 1;
            }
        }
        hidden.end()
    }

    /// An authority without its userinfo (RFC 3986 section 3.2.1): of a CONNECT, or a host as it was asked for.
    pub(super) fn authority<'t>(&self, text: &'t [u8]) -> Cow<'t, [u8]> {
        match text.iter().rposition(|byte| *byte == b'@') {
            Some(at) => Cow::Owned([HIDDEN, &text[at..]].concat()),
            None => Cow::Borrowed(text),
        }
    }

    /// A request's target, which is an authority where it has no path.
    pub(super) fn target<'t>(&self, text: &'t [u8]) -> Cow<'t, [u8]> {
        match text.first() {
            Some(b'/' | b'*') | None => self.apply(text),
            Some(_) if text.contains(&b'/') => self.apply(text),
            Some(_) => self.authority(text),
        }
    }
}

impl fmt::Debug for Redaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names.all.iter().map(|name| String::from_utf8_lossy(name))).finish()
    }
}

fn is_separator(byte: u8) -> bool {
    matches!(byte, b'&' | b';' | b'?' | b'#')
}

/// A text on its way to what is shown of it.
struct Hidden<'t> {
    text: &'t [u8],
    /// Made with the first secret.
    out: Option<Vec<u8>>,
    /// How much of the text is in it.
    done: usize,
    /// The next userinfo.
    next: Option<(usize, usize)>,
}

impl<'t> Hidden<'t> {
    /// Hides a value, after every userinfo before it.
    fn hide(&mut self, from: usize, to: usize) {
        self.userinfo_until(from);
        self.put(from, to);
    }

    fn userinfo_until(&mut self, end: usize) {
        while let Some((from, to)) = self.next.filter(|(from, _)| *from < end) {
            self.put(from, to);
            self.next = userinfo(self.text, to);
        }
    }

    /// What is hidden may lie within what is hidden already, or go on behind it.
    fn put(&mut self, from: usize, to: usize) {
        if from >= self.done {
            let out = self.out.get_or_insert_with(|| Vec::with_capacity(self.text.len()));
            out.extend_from_slice(&self.text[self.done..from]);
            out.extend_from_slice(HIDDEN);
        }
        self.done = self.done.max(to);
    }

    fn end(mut self) -> Cow<'t, [u8]> {
        self.userinfo_until(self.text.len());
        match self.out {
            Some(mut out) => {
                out.extend_from_slice(&self.text[self.done..]);
                Cow::Owned(out)
            }
            None => Cow::Borrowed(self.text),
        }
    }
}

/// RFC 3986 section 3.2.1: from after `//` until before the `@` of the first authority from there on that has one.
fn userinfo(text: &[u8], mut start: usize) -> Option<(usize, usize)> {
    loop {
        let colon = start + run_of(&text[start..], |byte| byte != b':');
        let after = text.get(colon + 1..)?;
        start = colon + 1;
        let Some(rest) = after.strip_prefix(b"//") else { continue };
        let from = colon + 3;
        let end = run_of(rest, |byte| !matches!(byte, b'/' | b'?' | b'#' | b'\\'));
        // a text that is a URI is looked at whole, whatever is in it; one that has others around it ends where no URI goes on
        let is_all =
            !text[..colon].iter().any(|byte| !byte.is_ascii_alphanumeric() && !b"+-.".contains(byte));
        let ends = |byte: &u8| matches!(byte, b'"' | b'<' | b'>' | b'&') || byte.is_ascii_whitespace();
        let end = match rest[..end].iter().position(ends) {
            Some(sooner) if !is_all => sooner,
            _ => end,
        };
        if let Some(at) = rest[..end].iter().rposition(|byte| *byte == b'@') {
            return Some((from, from + at));
        }
    }
}

/// What of a name counts.
fn normal<'b>(mut name: &[u8], buffer: &'b mut [u8; MAX_NAME]) -> Option<&'b [u8]> {
    let mut len = 0;
    while let Some((&first, mut rest)) = name.split_first() {
        let mut byte = first;
        if first == b'%'
            && let [high, low, after @ ..] = rest
            && let (Some(high), Some(low)) = (digit(*high), digit(*low))
        {
            byte = high << 4 | low;
            rest = after;
        }
        *buffer.get_mut(len)? = if byte == b'-' { b'_' } else { byte.to_ascii_lowercase() };
        len += 1;
        name = rest;
    }
    let mut found = &buffer[..len];
    // places of a list
    while let Some(bracket) = found.strip_suffix(b"]").and_then(opening) {
        if !found[bracket + 1..found.len() - 1].iter().all(u8::is_ascii_digit) {
            break;
        }
        found = &found[..bracket];
    }
    if let Some(inner) = found.strip_suffix(b"]")
        && let Some(bracket) = opening(inner)
    {
        found = &inner[bracket + 1..];
    }
    Some(found)
}

/// Where the last bracket opens.
fn opening(name: &[u8]) -> Option<usize> {
    name.iter().rposition(|byte| *byte == b'[')
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

/// A name as it is kept: one that is too long is never met.
fn plain(name: &[u8]) -> Box<[u8]> {
    let mut buffer = [0; MAX_NAME];
    normal(name, &mut buffer).unwrap_or(name).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn redacted(text: &str) -> String {
        String::from_utf8(Redaction::default().apply(text.as_bytes()).into_owned()).unwrap()
    }

    #[test]
    fn what_is_hidden() {
        let table = [
            ("/", "/"),
            ("/token=1", "/token=1"),
            ("/?token=1", "/?token=***"),
            ("/a?b=c&token=secret&d=e", "/a?b=c&token=***&d=e"),
            ("/?token=", "/?token="),
            ("/?token", "/?token"),
            ("/?tokens=1", "/?tokens=1"),
            ("/?TOKEN=1", "/?TOKEN=***"),
            ("/?%74ok%65n=1", "/?%74ok%65n=***"),
            ("/?api-key=1;key=2", "/?api-key=***;key=***"),
            ("/?user[password]=1&token[]=2", "/?user[password]=***&token[]=***"),
            ("/?user%5Bpassword%5D=1", "/?user%5Bpassword%5D=***"),
            ("/?token[0]=1&password[1][]=2&a[0]=3", "/?token[0]=***&password[1][]=***&a[0]=3"),
            ("/?user[password][0]=1&token[a]=2", "/?user[password][0]=***&token[a]=2"),
            ("/?X-Amz-Signature=ff&X-Amz-Date=1", "/?X-Amz-Signature=***&X-Amz-Date=1"),
            ("/?a=b?token=1", "/?a=b?token=***"),
            ("/?token=a=b", "/?token=***"),
            ("https://u:p@h.test/?code=1#access_token=2", "https://***@h.test/?code=***#access_token=***"),
            ("https://a@b@h.test/", "https://***@h.test/"),
            ("https://h.test/@x", "https://h.test/@x"),
            ("https://u:p &q@h.test/", "https://***@h.test/"),
            // not only the first, and not only where it is all
            ("/x?u=https://a:b@c", "/x?u=https://***@c"),
            ("/x?u=https://c&mail=a@b", "/x?u=https://c&mail=a@b"),
            ("/x?token=https://a:b@c/&u=d://e@f", "/x?token=***&u=d://***@f"),
            ("https://u;token=a@h.test/", "https://***@h.test/"),
            ("x?y://u;token=1@h;2&key=3", "x?y://***;2&key=***"),
            ("https://a.test/, https://u:p@h.test/", "https://a.test/, https://***@h.test/"),
            ("a.test,https://u:p@h.test,http://v@i", "a.test,https://***@h.test,http://***@i"),
            ("<https://u:p@h>; rel=\"x\", <http://q@i>", "<https://***@h>; rel=\"x\", <http://***@i>"),
            ("Bot (+https://u:p@h.test/) a@b", "Bot (+https://***@h.test/) a@b"),
            ("Bot +https://h.test a@b", "Bot +https://h.test a@b"),
            ("a:b:://c@d ::", "a:b:://***@d ::"),
            ("://", "://"),
            ("h.test:443", "h.test:443"),
            ("/?%=1&%7=2&token%=3", "/?%=1&%7=2&token%=3"),
        ];
        for (text, expected) in table {
            assert_eq!(redacted(text), expected);
        }
        let long = format!("/?{}[token]=1", "a".repeat(MAX_NAME));
        assert_eq!(redacted(&long), long);
    }

    #[test]
    fn the_list_is_the_callers() {
        let list = Redaction::default().with(["Card-Number"]).without(["CODE"]);
        assert_eq!(&*list.apply(b"/?card_number=4&code=7&token=1"), b"/?card_number=***&code=7&token=***");
        let list = Redaction::none().with(["_token"]);
        assert_eq!(&*list.apply(b"/?-token=1&_token=2&token=3"), b"/?-token=***&_token=***&token=3");
        assert_eq!(&*Redaction::none().apply(b"//u:p@h/?token=1"), b"//u:p@h/?token=1");
        assert_eq!(&*Redaction::none().apply(b"x://u:p@h/?token=1"), b"x://***@h/?token=1");
        for name in SECRET_PARAMETERS {
            assert_eq!(redacted(&format!("/?{name}=1")), format!("/?{name}=***"));
        }
    }

    proptest! {
        #[test]
        fn a_secret_is_never_there(before in "[a-z0-9=&;?#%/:@]{0,24}", secret in "[A-Z]{8,12}", after in "([&;#][a-z]*)?") {
            let text = format!("/?{before}&token={secret}{after}");
            prop_assert!(!redacted(&text).contains(&secret), "{}", redacted(&text));
        }

        #[test]
        fn no_text_panics(text in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Redaction::default().apply(&text);
        }
    }
}
