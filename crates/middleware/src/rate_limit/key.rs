//! What a rule counts by.

use std::{
    cell::OnceCell,
    fmt,
    hash::Hasher,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use http::{Extensions, HeaderMap, HeaderName, Method, Request, Uri, header};
use siphasher::sip128::{Hasher128, SipHasher13};

use super::{certificate, options::Cost, path};
use crate::{conn_info, cookie, host::Host};

/// The name of the route that a request takes, put into its extensions by whoever routes before the limit. It is what
/// [`KeyPart::Route`] counts by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteName(pub Arc<str>);

/// One thing that requests are told apart by. All of them are compared by a keyed hash of 64 bits or more, so that
/// nobody can aim at another's bucket, and none is kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeyPart {
    /// The client's address: [`crate::ClientIp`] where somebody put one into the request's extensions, else the peer of
    /// [`portcullis_conn::ConnInfo`]. Missing without either, and for peers on unix sockets.
    Client {
        /// How many leading bits of an IPv4 address count, at most 32. 32 is an address.
        v4_prefix: u8,
        /// How many leading bits of an IPv6 address count, at most 128. 64 is a network, the least that is handed to one
        /// customer (RFC 6177); with more, a customer has more than one bucket.
        v6_prefix: u8,
    },
    /// A request field's value, without white space around it. Missing where the field is not there, and where it is there
    /// more than once: what reads it behind this layer could take either.
    Field(HeaderName),
    /// A cookie's value. Missing where there is none of that name, and where there are several.
    Cookie(Box<str>),
    /// The host that is asked for, of the target or of `Host`, in lower case, without port and trailing dot, and an IPv6 address in whichever spelling.
    Host,
    /// The path, or its first segments. It is brought into one form first, so that no way to write it is a bucket of its own where some
    /// server takes it for the same: percent-encoded characters decoded, twice (`%2F` stays what it is), all behind a NUL and
    /// path parameters (`;x=1`) away, backslashes slashes, dot segments removed, repeated slashes one and the last one away. Never missing.
    Path {
        /// How many segments count, from the first on; `None` for all.
        segments: Option<u8>,
    },
    /// [`RouteName`], missing where nobody put one in. A program without one has a layer for each route instead, each with buckets of its own.
    Route,
    /// The method. Never missing.
    Method,
    /// The name that the client asked for in its TLS hello. Missing without TLS or name.
    ServerName,
    /// The certificate that the client showed, whole: a new one is a new client. Missing without one.
    ClientCertificate,
    /// The subject of the client's certificate, which stays when it is renewed. Missing without one.
    ClientSubject,
    /// Nothing: all requests share one bucket. Never missing.
    Constant,
}

impl KeyPart {
    /// An IPv4 address whole, of an IPv6 address the leading 64 bits.
    pub const CLIENT: Self = Self::Client { v4_prefix: 32, v6_prefix: 64 };
}

/// The parts that a rule counts by, all together: two requests share a bucket where all of them are equal. Alternatives
/// are tried in their order, and the first counts of which no part is missing.
///
/// ```
/// # use portcullis_middleware::rate_limit::{KeyPart, RateKey};
/// // by API key on each host, and who has none by address
/// let field = KeyPart::Field(http::HeaderName::from_static("x-api-key"));
/// let key = RateKey::new([field, KeyPart::Host]).or(RateKey::default());
/// ```
///
/// The default is [`KeyPart::CLIENT`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RateKey {
    alternatives: Vec<Vec<KeyPart>>,
}

impl RateKey {
    /// These parts together. Without any it is [`KeyPart::Constant`].
    pub fn new(parts: impl IntoIterator<Item = KeyPart>) -> Self {
        Self { alternatives: vec![parts.into_iter().collect()] }
    }

    /// What counts where a part is missing.
    #[must_use]
    pub fn or(mut self, other: Self) -> Self {
        self.alternatives.extend(other.alternatives);
        self
    }

    /// The parts of each alternative, in order.
    pub fn alternatives(&self) -> impl Iterator<Item = &[KeyPart]> {
        self.alternatives.iter().map(Vec::as_slice)
    }
}

impl Default for RateKey {
    fn default() -> Self {
        Self::new([KeyPart::CLIENT])
    }
}

impl From<KeyPart> for RateKey {
    fn from(part: KeyPart) -> Self {
        Self::new([part])
    }
}

/// What of a request is looked at.
pub(super) struct Asked<'a> {
    pub(super) method: &'a Method,
    pub(super) uri: &'a Uri,
    pub(super) headers: &'a HeaderMap,
    pub(super) extensions: &'a Extensions,
    /// What the program says that the request takes.
    pub(super) cost: Option<u32>,
    /// Looked up by the first rule that asks for it.
    client: OnceCell<Option<IpAddr>>,
}

impl<'a> Asked<'a> {
    pub(super) fn of<B>(request: &'a Request<B>) -> Self {
        Self {
            method: crate::method_of(request),
            uri: request.uri(),
            headers: request.headers(),
            extensions: request.extensions(),
            cost: request.extensions().get::<Cost>().map(|Cost(cost)| *cost),
            client: OnceCell::new(),
        }
    }

    /// The client's address.
    #[inline]
    pub(super) fn client(&self) -> Option<IpAddr> {
        *self.client.get_or_init(|| crate::client_ip(self.extensions))
    }

    /// The host in the target or in `Host`.
    fn host(&self) -> Option<Host<'a>> {
        let authority = match self.uri.authority() {
            Some(authority) => authority.as_str().as_bytes(),
            None => single(self.headers, &header::HOST)?,
        };
        Host::of(authority)
    }
}

/// The only value of a field.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then(|| value.as_bytes().trim_ascii())
}

/// The only value of a cookie.
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let mut values = cookie::values(headers, name);
    let value = values.next()?;
    values.next().is_none().then_some(value)
}

/// A [`RateKey`] made ready.
#[derive(Clone)]
pub(super) struct Compiled {
    /// The prefixes, where the client's address is all that counts and fits into 64 bits: then nothing is hashed here.
    plain: Option<(u8, u8)>,
    alternatives: Box<[Box<[KeyPart]>]>,
    /// Secret keys of the hash, for buckets of this process alone.
    seed: [u64; 2],
}

/// The bucket that all share whose key is missing.
const MISSING: u64 = 0;

impl Compiled {
    pub(super) fn new(key: &RateKey, seed: [u64; 2]) -> Self {
        let plain = match key.alternatives.as_slice() {
            [parts] => match parts.as_slice() {
                [KeyPart::Client { v4_prefix, v6_prefix: v6_prefix @ ..=64 }] => {
                    Some((*v4_prefix, *v6_prefix))
                }
                _ => None,
            },
            _ => None,
        };
        let alternatives = key.alternatives.iter().map(|parts| parts.as_slice().into()).collect();
        Self { plain, alternatives, seed }
    }

    pub(super) fn seed(&self) -> [u64; 2] {
        self.seed
    }

    /// The bucket's number in this process; `None` where a part is missing.
    #[inline]
    pub(super) fn local(&self, asked: &Asked<'_>) -> Option<u64> {
        match self.plain {
            Some((v4_prefix, v6_prefix)) => asked.client().map(|ip| client_number(ip, v4_prefix, v6_prefix)),
            // half of a hash of 128 bits, which is as good a hash
            None => self.hash(asked, self.seed, "").map(|hash| hash as u64),
        }
    }

    /// The bucket's number by the hash with these keys, for buckets that processes share. The rule's name is part of it.
    pub(super) fn shared(&self, asked: &Asked<'_>, seed: [u64; 2], rule: &str) -> Option<u128> {
        self.hash(asked, seed, rule)
    }

    pub(super) fn local_missing() -> u64 {
        MISSING
    }

    pub(super) fn shared_missing(seed: [u64; 2], rule: &str) -> u128 {
        let mut hasher = SipHasher13::new_with_keys(seed[0], seed[1]);
        write(&mut hasher, u8::MAX, rule.as_bytes());
        hasher.finish128().as_u128()
    }

    fn hash(&self, asked: &Asked<'_>, seed: [u64; 2], rule: &str) -> Option<u128> {
        (0u8..).zip(&self.alternatives).find_map(|(index, parts)| {
            let mut hasher = SipHasher13::new_with_keys(seed[0], seed[1]);
            hasher.write_u8(index);
            write(&mut hasher, 0, rule.as_bytes());
            parts.iter().try_for_each(|part| hash_part(&mut hasher, part, asked))?;
            Some(hasher.finish128().as_u128())
        })
    }
}

impl fmt::Debug for Compiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // the seed is a secret
        f.debug_struct("Compiled").field("alternatives", &self.alternatives).finish_non_exhaustive()
    }
}

/// Kind, length and bytes: so that no two different lists of parts look the same to the hash.
fn write(hasher: &mut SipHasher13, kind: u8, bytes: &[u8]) {
    hasher.write_u8(kind);
    hasher.write_u64(bytes.len() as u64);
    hasher.write(bytes);
}

fn hash_part(hasher: &mut SipHasher13, part: &KeyPart, asked: &Asked<'_>) -> Option<()> {
    let tls = || conn_info(asked.extensions).and_then(|info| info.tls.as_deref());
    let leaf = || tls().and_then(|tls| tls.peer_chain.first());
    match part {
        KeyPart::Client { v4_prefix, v6_prefix } => match asked.client()? {
            IpAddr::V4(v4) => write(hasher, 1, &masked_v4(v4, *v4_prefix).to_be_bytes()),
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128 - u32::from((*v6_prefix).min(128))).unwrap_or(0);
                write(hasher, 2, &(v6.to_bits() & mask).to_be_bytes());
            }
        },
        KeyPart::Field(name) => write(hasher, 3, single(asked.headers, name)?),
        KeyPart::Cookie(name) => write(hasher, 4, cookie(asked.headers, name)?),
        KeyPart::Host => match asked.host()? {
            Host::Name(name) => write_lower(hasher, 5, name),
            Host::Address(address) => write(hasher, 13, &address.octets()),
        },
        KeyPart::Path { segments } => {
            let path = path::normal(asked.uri.path());
            write(hasher, 6, path::first_segments(&path, *segments));
        }
        KeyPart::Route => write(hasher, 7, asked.extensions.get::<RouteName>()?.0.as_bytes()),
        KeyPart::Method => write(hasher, 8, asked.method.as_str().as_bytes()),
        KeyPart::ServerName => write(hasher, 9, tls()?.server_name.as_deref()?.as_bytes()),
        KeyPart::ClientCertificate => write(hasher, 10, leaf()?),
        KeyPart::ClientSubject => write(hasher, 11, certificate::subject(leaf()?)?),
        KeyPart::Constant => hasher.write_u8(12),
    }
    Some(())
}

fn write_lower(hasher: &mut SipHasher13, kind: u8, bytes: &[u8]) {
    hasher.write_u8(kind);
    hasher.write_u64(bytes.len() as u64);
    for chunk in bytes.chunks(64) {
        let mut lower = [0; 64];
        let lower = &mut lower[..chunk.len()];
        lower.copy_from_slice(chunk);
        lower.make_ascii_lowercase();
        hasher.write(lower);
    }
}

fn masked_v4(v4: Ipv4Addr, prefix: u8) -> u32 {
    v4.to_bits() & u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0)
}

/// One number per client: the upper half of an IPv6 address, or an IPv4 address in a range that no IPv6 peer has
/// (`ffff:ffff::/32` is multicast, RFC 4291 section 2.7, never a source).
fn client_number(client: IpAddr, v4_prefix: u8, v6_prefix: u8) -> u64 {
    const V4: u64 = 0xffff_ffff_0000_0000;
    match client {
        IpAddr::V4(v4) => V4 | u64::from(masked_v4(v4, v4_prefix)),
        IpAddr::V6(v6) => {
            let upper = (v6.to_bits() >> 64) as u64;
            upper & u64::MAX.checked_shl(64 - u32::from(v6_prefix.min(64))).unwrap_or(0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ClientIp,
        rate_limit::certificate::tests::certificate,
        test_support::{conn, get, plain, with_conn},
    };
    use portcullis_conn::TlsInfo;

    type Edit = fn(&mut Request<()>);

    fn compiled(key: impl Into<RateKey>) -> Compiled {
        Compiled::new(&key.into(), [1, 2])
    }

    fn number(key: &Compiled, request: &Request<()>) -> Option<u64> {
        key.local(&Asked::of(request))
    }

    fn from(client: &str) -> Request<()> {
        let mut request = get("/");
        request.extensions_mut().insert(ClientIp(client.parse().unwrap()));
        request
    }

    fn request(target: &str, fields: &[(&str, &str)]) -> Request<()> {
        let mut request = get(target);
        for (name, value) in fields {
            request.headers_mut().append(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        request
    }

    #[test]
    fn who_is_one_client() {
        let table = [
            ((32, 64), "192.0.2.1", "192.0.2.1", true),
            ((32, 64), "192.0.2.1", "192.0.2.2", false),
            ((24, 64), "192.0.2.1", "192.0.2.200", true),
            ((24, 64), "192.0.2.1", "192.0.3.1", false),
            ((0, 0), "192.0.2.1", "10.0.0.1", true),
            ((0, 0), "192.0.2.1", "2001:db8::1", false),
            ((32, 64), "2001:db8:0:1::1", "2001:db8:0:1:ffff::9", true),
            ((32, 64), "2001:db8:0:1::1", "2001:db8:0:2::1", false),
            ((32, 48), "2001:db8:0:1::1", "2001:db8:0:2::1", true),
            ((32, 48), "2001:db8:0:1::1", "2001:db8:1:2::1", false),
            ((32, 128), "2001:db8:0:1::1", "2001:db8:0:1::2", false),
            ((32, 128), "2001:db8:0:1::1", "2001:db8:0:1::1", true),
            ((255, 255), "192.0.2.1", "192.0.2.2", false),
            ((32, 64), "::c000:201", "192.0.2.1", false),
            ((32, 64), "::ffff:192.0.2.1", "192.0.2.1", true),
        ];
        for ((v4_prefix, v6_prefix), a, b, same) in table {
            let client = KeyPart::Client { v4_prefix, v6_prefix };
            // alone, which is not hashed, and with another part
            for key in [compiled(client.clone()), compiled(RateKey::new([client.clone(), KeyPart::Method]))] {
                let (a, b) = (number(&key, &from(a)), number(&key, &from(b)));
                assert!(a.is_some() && b.is_some());
                assert_eq!(a == b, same, "{a:?} {b:?} {client:?}");
            }
        }
    }

    #[test]
    fn a_client_without_address_is_missing() {
        let unix = portcullis_conn::ConnInfo::new(
            portcullis_conn::Transport::Unix,
            "0.0.0.0:0".parse().unwrap(),
            "0.0.0.0:0".parse().unwrap(),
        );
        for key in [compiled(KeyPart::CLIENT), compiled(RateKey::new([KeyPart::CLIENT, KeyPart::Host]))] {
            assert_eq!(number(&key, &get("/")), None);
            assert_eq!(number(&key, &with_conn(get("/"), Arc::new(unix.clone()))), None);
        }
        assert!(number(&compiled(KeyPart::CLIENT), &with_conn(get("/"), plain())).is_some());
    }

    #[test]
    fn which_requests_share_a_bucket() {
        const SAME: bool = true;
        let field = KeyPart::Field(HeaderName::from_static("x-key"));
        let cookie = KeyPart::Cookie("sid".into());
        let path = KeyPart::Path { segments: None };
        let two = KeyPart::Path { segments: Some(2) };
        let none: &[(&str, &str)] = &[];
        type Sent<'a> = (&'a str, &'a [(&'a str, &'a str)]);
        let table: &[(&KeyPart, Sent<'_>, Sent<'_>, bool)] = &[
            (&field, ("/", &[("x-key", "a")]), ("/b", &[("x-key", " a ")]), SAME),
            (&field, ("/", &[("x-key", "a")]), ("/", &[("x-key", "b")]), !SAME),
            (&field, ("/", &[("x-key", "a")]), ("/", &[("x-key", "A")]), !SAME),
            (&cookie, ("/", &[("cookie", "a=1; sid=x")]), ("/", &[("cookie", "sid=x;b=2")]), SAME),
            (&cookie, ("/", &[("cookie", "a=1"), ("cookie", "sid=x")]), ("/", &[("cookie", "sid=x")]), SAME),
            (&cookie, ("/", &[("cookie", "sid=x")]), ("/", &[("cookie", "sid=y")]), !SAME),
            (&KeyPart::Host, ("http://A.example:80/", none), ("/", &[("host", "a.example.:8080")]), SAME),
            (&KeyPart::Host, ("http://u@a.example/", none), ("/", &[("host", "a.example")]), SAME),
            (&KeyPart::Host, ("http://[::1]:80/", none), ("/", &[("host", "[::1]")]), SAME),
            (
                &KeyPart::Host,
                ("http://[2001:DB8::1]/", none),
                ("/", &[("host", "[2001:0db8:0::1]:80")]),
                SAME,
            ),
            (&KeyPart::Host, ("http://[::1]/", none), ("/", &[("host", "[::2]")]), !SAME),
            (&KeyPart::Host, ("http://a.example/", none), ("http://b.example/", none), !SAME),
            (&path, ("/a/b", none), ("/a//./b/?q=1", none), SAME),
            (&path, ("/a/b", none), ("/%61/x/../b", none), SAME),
            (&path, ("/a/b", none), ("/a%2fb", none), !SAME),
            (&path, ("/a/b", none), ("/a/c", none), !SAME),
            (&two, ("/a/b/c", none), ("/a/b", none), SAME),
            (&two, ("/a/b/c", none), ("/a/c/c", none), !SAME),
            (&KeyPart::Constant, ("/a", none), ("/b", &[("x-key", "1")]), SAME),
        ];
        for (part, (a, a_fields), (b, b_fields), same) in table {
            let key = compiled((*part).clone());
            let (one, other) = (number(&key, &request(a, a_fields)), number(&key, &request(b, b_fields)));
            assert!(one.is_some() && other.is_some(), "{part:?}: {a} {b}");
            assert_eq!(one == other, *same, "{part:?}: {a} {a_fields:?}, {b} {b_fields:?}");
        }
        let method = compiled(KeyPart::Method);
        let post = Request::post("/").body(()).unwrap();
        assert_ne!(number(&method, &post), number(&method, &get("/")));
    }

    #[test]
    fn what_is_missing() {
        let field = KeyPart::Field(HeaderName::from_static("x-key"));
        let table: &[(&KeyPart, &[(&str, &str)])] = &[
            (&field, &[("x-other", "a")]),
            (&field, &[("x-key", "a"), ("x-key", "b")]),
            (&KeyPart::Cookie("sid".into()), &[("cookie", "sid2=x; xsid=y")]),
            (&KeyPart::Cookie("sid".into()), &[("cookie", "sid=x; sid=y")]),
            (&KeyPart::Cookie("sid".into()), &[("cookie", "sid=x"), ("cookie", "sid=x")]),
            (&KeyPart::Host, &[]),
            (&KeyPart::Host, &[("host", ":80")]),
            (&KeyPart::Host, &[("host", "a.example"), ("host", "b.example")]),
            (&KeyPart::Route, &[]),
            (&KeyPart::ServerName, &[]),
            (&KeyPart::ClientCertificate, &[]),
            (&KeyPart::ClientSubject, &[]),
        ];
        for (part, fields) in table {
            let request = request("/", fields);
            assert_eq!(number(&compiled((*part).clone()), &request), None, "{part:?} {fields:?}");
            let both = RateKey::new([KeyPart::Method, (*part).clone()]);
            assert_eq!(number(&compiled(both.clone()), &request), None, "one part is enough");
            let key = both.or(KeyPart::Constant.into());
            assert!(number(&compiled(key), &request).is_some(), "an alternative counts instead");
        }
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        let fields = |a: &str, b: &str| request("/", &[("x-a", a), ("x-b", b)]);
        let names = ["x-a", "x-b"].map(|name| KeyPart::Field(HeaderName::from_static(name)));
        let key = compiled(RateKey::new(names.clone()));
        assert_ne!(number(&key, &fields("ab", "c")), number(&key, &fields("a", "bc")));
        // an alternative is not the first one with the same value
        let [a, b] = names;
        let key = compiled(RateKey::from(a).or(b.into()));
        assert_ne!(
            number(&key, &request("/", &[("x-a", "v")])),
            number(&key, &request("/", &[("x-b", "v")]))
        );
    }

    #[test]
    fn identities_of_tls_and_routes() {
        let with = |name: &str, cert: Vec<u8>| {
            let mut tls = TlsInfo::default();
            tls.server_name = Some(name.to_owned());
            tls.peer_chain = vec![cert.into()];
            with_conn(get("/"), Arc::new(conn("192.0.2.1:1").with_tls(tls)))
        };
        let one = with("a.example", certificate(1, "client", true));
        let renewed = with("b.example", certificate(2, "client", true));
        let other = with("a.example", certificate(1, "another", true));
        let table = [
            (KeyPart::ServerName, false, true),
            (KeyPart::ClientCertificate, false, false),
            (KeyPart::ClientSubject, true, false),
        ];
        for (part, as_renewed, as_other) in table {
            let key = compiled(part.clone());
            assert!(number(&key, &one).is_some());
            assert_eq!(number(&key, &one) == number(&key, &renewed), as_renewed, "{part:?}");
            assert_eq!(number(&key, &one) == number(&key, &other), as_other, "{part:?}");
        }
        let named: [Edit; 2] = [
            |request| drop(request.extensions_mut().insert(RouteName("a".into()))),
            |request| drop(request.extensions_mut().insert(RouteName("b".into()))),
        ];
        let [a, b] = named.map(|edit| {
            let mut request = get("/");
            edit(&mut request);
            number(&compiled(KeyPart::Route), &request)
        });
        assert!(a.is_some() && b.is_some() && a != b);
    }

    #[test]
    fn shared_buckets_go_by_seed_and_rule() {
        let key = compiled(KeyPart::CLIENT);
        let (request, other) = (from("192.0.2.1"), from("192.0.2.2"));
        let shared = |request: &Request<()>, seed, rule| key.shared(&Asked::of(request), seed, rule).unwrap();
        assert_eq!(shared(&request, [5, 6], "a"), shared(&request, [5, 6], "a"));
        assert_ne!(shared(&request, [5, 6], "a"), shared(&request, [5, 7], "a"));
        assert_ne!(shared(&request, [5, 6], "a"), shared(&request, [5, 6], "b"));
        assert_ne!(shared(&request, [5, 6], "a"), shared(&other, [5, 6], "a"));
        assert_ne!(Compiled::shared_missing([5, 6], "a"), Compiled::shared_missing([5, 6], "b"));
    }
}
