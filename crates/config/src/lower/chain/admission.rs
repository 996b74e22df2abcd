//! `[basic_auth]`, `[jwt]`, `[forward_auth]`, `[cors]`, `[csrf]`.

use http::{HeaderName, HeaderValue, Method, uri::PathAndQuery};
use portcullis_edge::{
    middleware::{
        forward_auth::ForwardAuthOptions,
        jwt::{Algorithm, JwtOptions},
    },
    plan::{BasicAuthPlan, CorsOrigins, CorsPlan, CsrfPlan, ForwardAuthPlan, JwtKeys, JwtPlan},
};
use toml::de::DeValue;

use super::super::route::{
    changes::{host, protected},
    matches::{cookie_name, method, pairs},
};
use super::field;
use crate::{
    disk,
    errors::escape,
    reader::{Read, Spanned, Table, Wrong, items},
    values::{boolean, duration, integer, ms, secs, text, whole_seconds},
};

/// Clusters that are named, with where.
pub(super) type Named = Vec<Spanned<String>>;

fn string(value: &DeValue<'_>) -> Read<String> {
    let text = text(value)?;
    let sound = (1..=256).contains(&text.len()) && !text.chars().any(char::is_control);
    sound.then(|| text.to_owned()).ok_or_else(|| Wrong::new("wants 1 to 256 characters in one line"))
}

/// The name of a field that is set in a message.
fn settable(value: &DeValue<'_>) -> Read<HeaderName> {
    protected(field(value)?)
}

fn target(value: &DeValue<'_>) -> Read<PathAndQuery> {
    let text = text(value)?;
    let target = text.parse::<PathAndQuery>().ok().filter(|_| text.starts_with('/') && text.is_ascii());
    target.ok_or_else(|| {
        Wrong::new(format!("wants a path, found \"{}\"", escape(text))).hint("for example \"/verify\"")
    })
}

pub(super) fn basic_auth(mut table: Table<'_, '_>) -> Option<BasicAuthPlan> {
    let users = table.need("users", "\"users.txt\"", disk::path);
    let mut plan = BasicAuthPlan::new("");
    let options = &mut plan.options;
    table.set("realm", &mut options.realm, string);
    table.set("strip", &mut options.strip, boolean);
    options.user_field = table.get("user_header", settable).map(Spanned::into_inner);
    table.set("max_hashing", &mut options.max_hashing, integer(1..=256));
    table.set("max_waiting", &mut options.max_waiting, integer(0..=65_536));
    table.set("remember", &mut options.remember, integer(0..=1_000_000));
    table.set("remember_for", &mut options.remember_for, duration(secs(0)..=secs(86_400)));
    table.finish();
    plan.users = users?.into_inner();
    Some(plan)
}

/// The keys that say where keys come from.
const KEYS: [&str; 4] = ["secret", "public_keys", "key_set", "key_set_path"];

/// Those that say more about the last of them.
const FETCHING: [&str; 3] = ["key_set_cluster", "key_set_host", "key_set_every"];

pub(super) fn jwt(mut table: Table<'_, '_>, named: &mut Named) -> Option<JwtPlan> {
    let given: Vec<_> = KEYS.into_iter().filter_map(|key| Some((key, table.key_span(key)?))).collect();
    match &given[..] {
        [] => {
            let wrong = Wrong::new("tokens need a key to be checked with");
            table.sink().absent(
                table.span(),
                wrong
                    .hint("add `secret`, `public_keys`, `key_set`, or `key_set_path` with `key_set_cluster`"),
            );
        }
        [(first, _), rest @ ..] => {
            for (key, at) in rest {
                let wrong = Wrong::new(format!("`{key}` does not go with `{first}`"));
                table.sink().error(at.clone(), wrong.hint("keys come from one place"));
            }
            let stray = FETCHING.iter().filter(|_| table.key_span("key_set_path").is_none());
            for (key, at) in stray.filter_map(|key| Some((key, table.key_span(key)?))) {
                let wrong = Wrong::new(format!("`{key}` goes only with `key_set_path`"));
                table.sink().error(at, wrong.hint("a file is not asked for"));
            }
        }
    }
    let file = |table: &mut Table<'_, '_>, key| table.get(key, disk::path).map(Spanned::into_inner);
    let keys = file(&mut table, "secret").map(JwtKeys::Secret);
    let keys = keys.or(file(&mut table, "public_keys").map(JwtKeys::Pem));
    let keys = keys.or(file(&mut table, "key_set").map(JwtKeys::Set));
    let keys = keys.or(fetched(&mut table, named));
    let algorithms = table.need_list("algorithms", "\"RS256\"", |value| {
        let name = text(value)?;
        name.parse::<Algorithm>().map_err(|error| {
            Wrong::new(format!("is \"{}\": {error}", escape(name)))
                .hint("for example \"RS256\", \"ES256\" or \"EdDSA\"")
        })
    });
    let mut options = JwtOptions::default();
    options.issuers = items(table.list("issuers", "\"https://issuer.example\"", string));
    options.audiences = items(table.list("audiences", "\"api\"", string));
    table.set("leeway", &mut options.leeway, whole_seconds(secs(0)..=secs(3600)));
    options.required = items(table.list("required", "\"jti\"", string));
    options.scopes = items(table.list("scopes", "\"read\"", string));
    options.cookie = table.get("cookie", |value| cookie_name(text(value)?)).map(Spanned::into_inner);
    table.set("strip", &mut options.strip, boolean);
    table.set("user_claim", &mut options.user_claim, string);
    let name = |name: &str| Ok(name.to_owned());
    options.claims = table
        .get("claims", |value| pairs(value, name, settable))
        .map(Spanned::into_inner)
        .unwrap_or_default();
    table.set("realm", &mut options.realm, string);
    if let Some(keys) = &keys {
        mixed(&table, algorithms.as_ref(), matches!(keys, JwtKeys::Secret(_)));
    }
    options.algorithms = items(algorithms);
    if !options.algorithms.is_empty()
        && let Err(error) = options.check()
    {
        table.sink().error(table.span(), Wrong::new(format!("the options for tokens are wrong: {error}")));
    }
    table.finish();
    Some(JwtPlan::new(options, keys?))
}

/// Algorithms that the keys, a secret or public ones, can't be for.
fn mixed(table: &Table<'_, '_>, algorithms: Option<&Spanned<Vec<Spanned<Algorithm>>>>, secret: bool) {
    let why = match secret {
        true => "a secret is for HS256, HS384 and HS512 alone",
        false => "public keys are not for HS256, HS384 and HS512",
    };
    let all = algorithms.into_iter().flat_map(|list| list.get_ref());
    for algorithm in all.filter(|algorithm| algorithm.get_ref().is_secret() != secret) {
        let wrong = Wrong::new(format!("no key here can be for \"{}\"", algorithm.get_ref()));
        table.sink().error(algorithm.span(), wrong.hint(why));
    }
}

fn fetched(table: &mut Table<'_, '_>, named: &mut Named) -> Option<JwtKeys> {
    let path = table.get("key_set_path", target);
    let mut every = secs(300);
    table.set("key_set_every", &mut every, duration(secs(10)..=secs(86_400)));
    let cluster = table.get("key_set_cluster", string);
    let host = table.get("key_set_host", |value| host(text(value)?)).map(Spanned::into_inner);
    if path.is_some() && cluster.is_none() {
        let wrong = Wrong::new("`key_set_path` goes with `key_set_cluster`");
        table.sink().absent(table.span(), wrong.hint("add `key_set_cluster = \"issuer\"`"));
    }
    let (path, cluster) = path.zip(cluster)?;
    named.push(cluster.clone());
    Some(JwtKeys::Fetch { cluster: cluster.into_inner(), target: path.into_inner(), host, every })
}

pub(super) fn forward_auth(mut table: Table<'_, '_>, named: &mut Named) -> Option<ForwardAuthPlan> {
    let cluster = table.need("cluster", "\"auth\"", string);
    let path = table.need("path", "\"/verify\"", target);
    let mut options = ForwardAuthOptions::new(PathAndQuery::from_static("/"));
    options.host = table.get("host", |value| host(text(value)?)).map(Spanned::into_inner);
    table.set("timeout", &mut options.timeout, duration(ms(10)..=secs(300)));
    options.request_fields = items(table.list("request_headers", "\"x-user\"", settable));
    options.response_fields = items(table.list("response_headers", "\"set-cookie\"", settable));
    options.user_field = table.get("user_header", field).map(Spanned::into_inner);
    table.finish();
    let cluster = cluster?;
    named.push(cluster.clone());
    options.target = path?.into_inner();
    Some(ForwardAuthPlan::new(cluster.into_inner(), options))
}

pub(super) fn cors(mut table: Table<'_, '_>) -> Option<CorsPlan> {
    let mut plan = CorsPlan::default();
    let origins = table.need_list("origins", "\"https://app.example.com\"", |value| match value {
        DeValue::String(text) if *text == "*" => Ok(None),
        value => origin(value).map(Some),
    });
    let methods = table.list("methods", "\"PUT\"", |value| match method(value)? {
        // pages may send one, but it would be answered as any other OPTIONS, without what lets them read it
        Method::OPTIONS => Err(Wrong::new("is OPTIONS, of which pages can read nothing")
            .hint("leave it out: preflights are answered in any case")),
        method => Ok(method),
    });
    let headers = table.list("headers", "\"content-type\"", field);
    let expose = table.list("expose", "\"etag\"", field);
    let credentials = table.get("credentials", boolean);
    plan.credentials = credentials.as_ref().is_some_and(|is| *is.get_ref());
    if plan.credentials {
        no_wildcard(&table, "headers", headers.as_ref());
        no_wildcard(&table, "expose", expose.as_ref());
    }
    (plan.methods, plan.headers, plan.expose) = (items(methods), items(headers), items(expose));
    plan.max_age = table.get("max_age", whole_seconds(secs(0)..=secs(86_400))).map(Spanned::into_inner);
    let origins = origins?;
    let all = origins.get_ref().iter().find(|origin| origin.get_ref().is_none());
    if let (Some(all), true) = (all, origins.get_ref().len() > 1) {
        let wrong = Wrong::new("`origins` has \"*\" and others: it is any origin, or these");
        table.sink().error(all.span(), wrong.hint("leave it out, or the others"));
    }
    if let (Some(_), true, Some(credentials)) = (all, plan.credentials, &credentials) {
        let wrong = Wrong::new("`credentials` does not go with `origins = [\"*\"]`");
        let why = "every page could act as the user: name the origins";
        table.sink().error(credentials.span(), wrong.hint(why));
    }
    plan.origins = match items(Some(origins)).into_iter().collect::<Option<Vec<String>>>() {
        Some(list) => {
            CorsOrigins::List(list.iter().filter_map(|text| HeaderValue::from_str(text).ok()).collect())
        }
        None => CorsOrigins::Any,
    };
    table.finish();
    Some(plan)
}

/// Fetch standard section 3.2.3: with credentials `*` is a name like any other.
fn no_wildcard(table: &Table<'_, '_>, key: &str, list: Option<&Spanned<Vec<Spanned<HeaderName>>>>) {
    for all in list.into_iter().flat_map(|list| list.get_ref()).filter(|name| *name.get_ref() == "*") {
        let wrong = Wrong::new(format!("`{key}` has \"*\", which stands for all only without `credentials`"));
        table.sink().error(all.span(), wrong.hint("name them"));
    }
}

pub(super) fn csrf(mut table: Table<'_, '_>) -> Option<CsrfPlan> {
    let trusted = items(table.list("trusted", "\"https://app.example.com\"", origin));
    table.finish();
    Some(CsrfPlan::default().with_trusted(trusted))
}

/// An origin as browsers send it (RFC 6454 section 6.2): a scheme, a host in lower case, and a port that is not the scheme's own.
fn origin(value: &DeValue<'_>) -> Read<String> {
    let text = text(value)?;
    let wrong = |hint: &str| Wrong::new(format!("wants an origin, found \"{}\"", escape(text))).hint(hint);
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let rest = rest.ok_or_else(|| wrong("for example \"https://app.example.com\""))?;
    let sound = !rest.is_empty()
        && rest
            .bytes()
            .all(|b| b.is_ascii_graphic() && !b.is_ascii_uppercase() && !b"/?#@*\"\\".contains(&b));
    if !sound || text.parse::<http::Uri>().is_err() {
        return Err(wrong("a scheme and a host in lower case, without a slash at the end"));
    }
    let own = if text.starts_with("https") { ":443" } else { ":80" };
    if rest.ends_with(own) {
        return Err(wrong("browsers leave the port of the scheme out"));
    }
    Ok(text.to_owned())
}
