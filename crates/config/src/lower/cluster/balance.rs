//! How requests are spread over the endpoints of a cluster.

use portcullis_edge::{
    plan::{ClusterPlan, StickyPlan},
    upstream::{HashKey, Policy},
};
use toml::de::DeValue;

use super::super::route::matches::cookie_name;
use crate::{
    errors::escape,
    reader::{Read, Spanned, Table, Wrong, items},
    values::{boolean, duration, integer, ms, secs, word},
};

pub(super) fn read(table: &mut Table<'_, '_>, plan: &mut ClusterPlan) {
    let to = &mut plan.options.balance;
    let hash_at = table.key_span("hash_on");
    let policy_at = table.key_span("balance");
    table.set("balance", &mut to.policy, policy);
    let hashes = matches!(to.policy, Policy::Maglev { .. } | Policy::RingHash { .. });
    if let Some(list) = table.list("hash_on", "\"client-ip\"", hash_key) {
        to.hash_on = items(Some(list));
    }
    match (hashes, hash_at, policy_at) {
        (false, Some(at), _) => {
            let wrong = Wrong::new("`hash_on` goes only with `balance = \"maglev\"` or \"ring-hash\"");
            table.sink().error(at, wrong);
        }
        (true, None, Some(at)) => {
            let wrong = Wrong::new("this balance goes by a hash, and nothing is hashed")
                .hint("add `hash_on = [\"client-ip\"]`, or a header, a cookie, \"uri\", \"path\", \"host\"");
            table.sink().error(at, wrong);
        }
        _ => {}
    }
    table.set("hash_balance_factor", &mut to.hash_balance_factor, integer(0..=1000));
    table.set("slow_start", &mut to.slow_start, duration(ms(0)..=secs(3600)));
    table.set("panic_threshold", &mut to.panic_threshold, integer(0..=100));
    to.zone = table.get("zone", zone).map(|zone| zone.into_inner().into());
    table.set("zone_threshold", &mut to.zone_threshold, integer(0..=100));
    plan.sticky = sticky(table);
}

fn sticky(table: &mut Table<'_, '_>) -> Option<StickyPlan> {
    let mut plan = StickyPlan::new();
    let others = ["sticky_key", "sticky_secure", "sticky_max_age"].map(|key| (key, table.key_span(key)));
    plan.name = table.get("sticky_cookie", own_cookie).map(Spanned::into_inner);
    plan.key = table.get("sticky_key", key).map(Spanned::into_inner);
    table.set("sticky_secure", &mut plan.secure, boolean);
    plan.max_age =
        table.get("sticky_max_age", duration(secs(1)..=secs(365 * 86_400))).map(Spanned::into_inner);
    if plan.name.is_none() {
        for (key, at) in others {
            if let Some(at) = at {
                let wrong = Wrong::new(format!("`{key}` goes only with `sticky_cookie`"));
                table.sink().error(at, wrong);
            }
        }
        return None;
    }
    Some(plan)
}

fn policy(value: &DeValue<'_>) -> Read<Policy> {
    const WORDS: &[&str] = &["least-request", "round-robin", "random", "peak-ewma", "maglev", "ring-hash"];
    Ok(match word(value, "a balance", "least-request")? {
        "least-request" => Policy::LeastRequest,
        "round-robin" => Policy::RoundRobin,
        "random" => Policy::Random,
        "peak-ewma" => Policy::PeakEwma,
        "maglev" => Policy::maglev(),
        "ring-hash" => Policy::ring_hash(),
        other => {
            let words: Vec<_> = WORDS.iter().map(|word| format!("\"{word}\"")).collect();
            let wrong =
                Wrong::new(format!("must be one of {}, found \"{}\"", words.join(", "), escape(other)));
            return Err(match crate::suggest::nearest(other, WORDS.iter().copied()) {
                Some(near) => wrong.hint(format!("did you mean \"{near}\"?")),
                None => wrong,
            });
        }
    })
}

fn hash_key(value: &DeValue<'_>) -> Read<HashKey> {
    let text = word(value, "what is hashed", "client-ip")?;
    let wrong = || {
        Wrong::new(format!("\"{}\" is nothing that can be hashed", escape(text))).hint(
            "\"client-ip\", \"uri\", \"path\", \"host\", \"header:NAME\", \"cookie:NAME\" or \"query:NAME\"",
        )
    };
    Ok(match text.split_once(':') {
        None => match text {
            "client-ip" => HashKey::ClientIp,
            "uri" => HashKey::Uri,
            "path" => HashKey::Path,
            "host" => HashKey::Host,
            _ => return Err(wrong()),
        },
        Some((_, "")) => return Err(wrong()),
        Some(("header", name)) => HashKey::Header(name.parse().map_err(|_| wrong())?),
        Some(("cookie", name)) => HashKey::Cookie(cookie_name(name)?),
        Some(("query", name)) => HashKey::Query(name.to_owned()),
        Some(_) => return Err(wrong()),
    })
}

pub(super) fn zone(value: &DeValue<'_>) -> Read<String> {
    match word(value, "a zone", "eu-1a")? {
        zone if !zone.is_empty() && zone.len() <= 64 && !zone.contains(char::is_whitespace) => {
            Ok(zone.to_owned())
        }
        other => Err(Wrong::new(format!("wants a zone, found \"{}\"", escape(other)))
            .hint("1 to 64 characters without white space")),
    }
}

/// 32 bytes in hexadecimal.
fn key(value: &DeValue<'_>) -> Read<[u8; 32]> {
    let text = word(value, "a key", "64 hexadecimal digits")?;
    let wrong =
        || Wrong::new("wants a key of 64 hexadecimal digits").hint("`openssl rand -hex 32` makes one");
    let digits: Vec<u32> = text.chars().map(|c| c.to_digit(16)).collect::<Option<_>>().ok_or_else(wrong)?;
    if digits.len() != 64 {
        return Err(wrong());
    }
    let mut key = [0; 32];
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::try_from(pair[0] << 4 | pair[1]).map_err(|_| wrong())?;
    }
    Ok(key)
}

/// The name of a cookie that is set here: a token (RFC 6265 section 4.1.1, RFC 9110 section 5.6.2).
fn own_cookie(value: &DeValue<'_>) -> Read<String> {
    let name = word(value, "the name of a cookie", "portcullis_sticky")?;
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || name.len() > 64 || !name.bytes().all(token) {
        let wrong = Wrong::new(format!("wants the name of a cookie, found \"{}\"", escape(name)));
        return Err(wrong.hint("1 to 64 characters of a token (RFC 6265 section 4.1.1)"));
    }
    Ok(name.to_owned())
}
