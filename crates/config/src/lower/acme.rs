//! `[acme]`, `[acme.on_demand]`, and what `[[certificate]]` asks of them.

use std::{collections::HashMap, path::PathBuf, time::Duration};

use portcullis_edge::{
    acme::{AcmeOptions, Challenge, Directory, KeyKind},
    plan::{AcmePlan, AcmeStorage, DnsHookPlan, ExternalAccountPlan, OnDemandPlan},
};
use toml::de::DeValue;

use super::certificate::Certificate;
use crate::{
    disk::path,
    errors::escape,
    reader::{Read, Sink, Spanned, Table, Wrong, items},
    values::{choice, duration, integer, ms, secs, text, word},
};

/// Beside the configuration file.
const STORAGE: &str = "acme";

#[derive(Clone, Copy, Default, PartialEq)]
enum How {
    #[default]
    TlsAlpn01,
    Http01,
    Dns01,
}

/// `None` where nothing is to be issued.
pub(crate) fn read(root: &mut Table<'_, '_>, certificates: &[Certificate]) -> Option<AcmePlan> {
    let wanted: Vec<_> = certificates.iter().filter_map(|certificate| certificate.acme.as_ref()).collect();
    let sink = root.sink();
    let (span, mut plan) = match root.table("acme", "`[acme]`") {
        Some(table) => (Some(table.span()), section(table)),
        None => (None, AcmePlan::in_directory(STORAGE)),
    };
    if wanted.is_empty() && plan.on_demand.is_none() {
        if let Some(span) = span {
            let wrong = Wrong::new("no certificate is to be issued: `[acme]` does nothing");
            sink.warn(span, wrong.hint("add a `[[certificate]]` with `acme = [\"www.example.com\"]`"));
        }
        return None;
    }
    names(sink, &wanted, &plan);
    plan.options.certificates = wanted.into_iter().map(|names| names.get_ref().clone()).collect();
    Some(plan)
}

/// Each list by the rules of those who have it issued; and none of them has another's name.
fn names(sink: &Sink, wanted: &[&Spanned<Vec<String>>], plan: &AcmePlan) {
    let mut seen: HashMap<&str, ()> = HashMap::new();
    for list in wanted {
        let mut alone = plan.clone();
        alone.options.certificates = vec![list.get_ref().clone()];
        if let Err(error) = alone.check() {
            sink.error(list.span(), Wrong::new(escape(&error.to_string())));
            continue;
        }
        for name in list.get_ref() {
            if seen.insert(name, ()).is_some() {
                let wrong = Wrong::new(format!("{} is issued twice", escape(name)));
                sink.error(list.span(), wrong.hint("leave it in one `[[certificate]]`"));
            }
        }
    }
}

fn section(mut table: Table<'_, '_>) -> AcmePlan {
    let mut plan = AcmePlan::in_directory(STORAGE);
    let mut storage = PathBuf::from(STORAGE);
    table.set("storage", &mut storage, path);
    plan.storage = AcmeStorage::Directory(storage);
    let options = &mut plan.options;
    table.set("directory", &mut options.directory, directory);
    table.set("roots", &mut plan.roots, |value| path(value).map(Some));
    if let Some(contacts) = table.list("contacts", "\"you@example.com\"", contact) {
        options.contacts = items(Some(contacts));
    }
    table.set("profile", &mut options.profile, |value| text(value).map(|name| Some(name.to_owned())));
    let keys = [("p256", KeyKind::P256), ("p384", KeyKind::P384), ("rsa2048", KeyKind::Rsa2048)];
    table.set("key", &mut options.key, choice(&keys));
    times(&mut table, options);
    plan.external_account = external_account(&mut table);
    let how = challenge(&mut table, &mut plan);
    plan.on_demand = table.table("on_demand", "`[acme.on_demand]`").and_then(|on_demand| {
        if how == How::Dns01 {
            let wrong = Wrong::new("`[acme.on_demand]` does not go with `challenge = \"dns-01\"`");
            let why = "a client does not wait that long for a record to spread";
            on_demand.sink().error(on_demand.span(), wrong.hint(why));
        }
        self::on_demand(on_demand)
    });
    table.finish();
    plan
}

fn times(table: &mut Table<'_, '_>, options: &mut AcmeOptions) {
    let at = table.key_span("retry_max").or_else(|| table.key_span("retry_min"));
    table.set("poll", &mut options.poll, duration(ms(100)..=secs(86_400)));
    table.set("retry_min", &mut options.retry_min, duration(ms(10)..=secs(86_400)));
    table.set("retry_max", &mut options.retry_max, duration(ms(10)..=secs(7 * 86_400)));
    if options.retry_max < options.retry_min {
        if let Some(at) = at {
            table.sink().error(at, Wrong::new("`retry_max` is less than `retry_min`"));
        }
        options.retry_max = options.retry_min;
    }
}

fn external_account(table: &mut Table<'_, '_>) -> Option<ExternalAccountPlan> {
    let (id, key) = ("eab_key_id", "eab_hmac_key");
    if table.key_span(id).is_none() && table.key_span(key).is_none() {
        // asked for all the same, so that they are known
        table.get(id, text_owned);
        table.get(key, path);
        return None;
    }
    let id = table.need(id, "\"as the authority shows it\"", text_owned)?;
    let key = table.need(key, "\"eab-key\"", path)?;
    Some(ExternalAccountPlan::new(id.into_inner(), key.into_inner()))
}

fn challenge(table: &mut Table<'_, '_>, plan: &mut AcmePlan) -> How {
    let mut how = How::default();
    let words = [("tls-alpn-01", How::TlsAlpn01), ("http-01", How::Http01), ("dns-01", How::Dns01)];
    table.set("challenge", &mut how, choice(&words));
    if how != How::Dns01 {
        for key in ["dns_hook", "dns_timeout", "dns_propagation"] {
            if let Some(at) = table.key_span(key) {
                let wrong = Wrong::new(format!("`{key}` goes only with `challenge = \"dns-01\"`"));
                table.sink().error(at, wrong.hint("remove it, or change `challenge`"));
            }
        }
    }
    let hook = if how == How::Dns01 {
        table.need_list("dns_hook", "\"/usr/local/bin/set-record\"", text_owned)
    } else {
        table.list("dns_hook", "\"/usr/local/bin/set-record\"", text_owned)
    };
    let (mut timeout, mut propagation) = (secs(60), Duration::ZERO);
    table.set("dns_timeout", &mut timeout, duration(secs(1)..=secs(3600)));
    table.set("dns_propagation", &mut propagation, duration(Duration::ZERO..=secs(3600)));
    match how {
        How::TlsAlpn01 => plan.options.challenge = Challenge::TlsAlpn01,
        How::Http01 => plan.options.challenge = Challenge::Http01,
        How::Dns01 => {
            let words = hook.into_iter().flat_map(Spanned::into_inner).map(Spanned::into_inner);
            let mut words = words.collect::<Vec<_>>().into_iter();
            let program = words.next().unwrap_or_default();
            let mut hook = DnsHookPlan::new(program, words);
            (hook.timeout, hook.propagation) = (timeout, propagation);
            plan.dns_hook = Some(hook);
        }
    }
    how
}

fn on_demand(mut table: Table<'_, '_>) -> Option<OnDemandPlan> {
    let ask = table.need("ask", "\"http://127.0.0.1:3000/may-have-a-certificate\"", ask);
    let mut plan = OnDemandPlan::new("");
    table.set("max_issued", &mut plan.max_issued, integer(1..=100_000));
    table.set("per", &mut plan.per, duration(secs(1)..=secs(30 * 86_400)));
    table.set("max_names", &mut plan.max_names, integer(1..=1_000_000));
    table.set("wait", &mut plan.wait, duration(ms(100)..=secs(60)));
    table.finish();
    plan.ask = ask?.into_inner();
    Some(plan)
}

fn directory(value: &DeValue<'_>) -> Read<Directory> {
    let text = word(value, "an ACME directory", "letsencrypt")?;
    Ok(match text {
        "letsencrypt" => Directory::LetsEncrypt,
        "letsencrypt-staging" => Directory::LetsEncryptStaging,
        url if is_url(url, &["https://"]) => Directory::Url(url.to_owned()),
        other => {
            let wrong = Wrong::new(format!("wants an ACME directory, found \"{}\"", escape(other)));
            return Err(wrong.hint("\"letsencrypt\" or \"letsencrypt-staging\", or the https URL of another"));
        }
    })
}

fn ask(value: &DeValue<'_>) -> Read<String> {
    let text = word(value, "a URL", "http://127.0.0.1:3000/may-have-a-certificate")?;
    if is_url(text, &["http://", "https://"]) && !text.contains('#') {
        return Ok(text.to_owned());
    }
    let wrong = Wrong::new(format!("wants an http or https URL, found \"{}\"", escape(text)));
    Err(wrong.hint("it is asked with `?domain=NAME` added, and 200 means yes"))
}

fn is_url(text: &str, schemes: &[&str]) -> bool {
    schemes.iter().any(|scheme| text.starts_with(scheme))
        && text.parse::<http::Uri>().is_ok_and(|uri| uri.host().is_some_and(|host| !host.is_empty()))
}

fn contact(value: &DeValue<'_>) -> Read<String> {
    let text = word(value, "a mail address", "you@example.com")?;
    let address = text.strip_prefix("mailto:").unwrap_or(text);
    match address.split_once('@') {
        Some((user, host)) if !user.is_empty() && host.contains('.') && !address.contains(' ') => {
            Ok(text.to_owned())
        }
        _ => Err(Wrong::new(format!("wants a mail address, found \"{}\"", escape(text)))),
    }
}

fn text_owned(value: &DeValue<'_>) -> Read<String> {
    match text(value)? {
        "" => Err(Wrong::new("is empty")),
        text if text.contains('\0') => Err(Wrong::new("has a NUL character in it")),
        text => Ok(text.to_owned()),
    }
}
