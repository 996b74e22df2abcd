//! Hashes that are the same in every process and version: SipHash-1-3 with a fixed key, over bytes alone.

use std::net::IpAddr;

use http::{HeaderMap, header, request::Parts};
use siphasher::sip::SipHasher13;

use super::HashKey;

/// The hash of these bytes, the same for ever: who changes it moves all keys of all users to other endpoints.
pub(crate) fn stable_hash(bytes: &[u8]) -> u64 {
    SipHasher13::new_with_keys(0x706f_7274_6375_6c6c, 0x6973_2062_616c_616e).hash(bytes)
}

/// Spreads the bits of a number (the finalizer of splitmix64).
pub(crate) fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// The hash of the first of the keys that the request has.
pub(crate) fn hash_of(keys: &[HashKey], parts: &Parts, client: Option<IpAddr>) -> Option<u64> {
    keys.iter().find_map(|key| match key {
        HashKey::Header(name) => parts.headers.get(name).map(|value| stable_hash(value.as_bytes())),
        HashKey::Cookie(name) => cookie(&parts.headers, name).map(stable_hash),
        HashKey::ClientIp => client.map(|client| match client.to_canonical() {
            IpAddr::V4(client) => stable_hash(&client.octets()),
            IpAddr::V6(client) => stable_hash(&client.octets()),
        }),
        HashKey::Uri => parts.uri.path_and_query().map(|uri| stable_hash(uri.as_str().as_bytes())),
        HashKey::Path => {
            Some(parts.uri.path()).filter(|path| !path.is_empty()).map(|path| stable_hash(path.as_bytes()))
        }
        HashKey::Query(name) => query(parts.uri.query()?, name).map(|value| stable_hash(value.as_bytes())),
        HashKey::Host => host(parts).map(stable_lower_hash),
    })
}

/// The value of the first cookie of that name (RFC 6265 section 4.2.1).
pub(crate) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b';'))
        .find_map(|pair| {
            let pair = pair.trim_ascii();
            pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")
        })
}

fn query<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| match pair.split_once('=') {
        Some((key, value)) => (key == name).then_some(value),
        None => (pair == name).then_some(""),
    })
}

fn host(parts: &Parts) -> Option<&str> {
    if let Some(host) = parts.uri.host() {
        return Some(host);
    }
    let value = parts.headers.get(header::HOST)?.to_str().ok()?;
    let end = match value.rfind(':') {
        // a colon inside of brackets is the address's own
        Some(colon) if !value[colon..].contains(']') => colon,
        _ => value.len(),
    };
    Some(&value[..end]).filter(|host| !host.is_empty())
}

fn stable_lower_hash(text: &str) -> u64 {
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        stable_hash(text.to_ascii_lowercase().as_bytes())
    } else {
        stable_hash(text.as_bytes())
    }
}
