//! `[maintenance]`, `[body_limit]`, `[deadline]`, `[compression]`, `[request_decompression]` and `[concurrency]`; `[request_id]` at the top level.

use http::StatusCode;
use portcullis_edge::{
    middleware::{
        coding::Coding,
        compression::CompressionOptions,
        concurrency::{AdaptiveOptions, ConcurrencyOptions},
        deadline::DeadlineOptions,
        maintenance::{Maintenance, MaintenancePage},
        request_decompression::RequestDecompressionOptions,
    },
    plan::{ChainPlan, MaintenancePlan, RequestIdPlan, TrustIds},
};
use toml::de::DeValue;

use super::or_off;
use crate::{
    disk,
    errors::escape,
    net::{network, path},
    reader::{Read, Spanned, Table, Wrong, items},
    values::{boolean, choice, duration, integer, ms, secs, size, text, whole_seconds, word},
};

/// How messages call the tables.
pub(super) struct Names {
    pub(super) maintenance: &'static str,
    pub(super) body_limit: &'static str,
    pub(super) deadline: &'static str,
    pub(super) compression: &'static str,
    pub(super) request_decompression: &'static str,
    pub(super) concurrency: &'static str,
}

pub(super) const EDGE: Names = Names {
    maintenance: "`[maintenance]`",
    body_limit: "`[body_limit]`",
    deadline: "`[deadline]`",
    compression: "`[compression]`",
    request_decompression: "`[request_decompression]`",
    concurrency: "`[concurrency]`",
};

pub(super) const ROUTE: Names = Names {
    maintenance: "`[route.maintenance]`",
    body_limit: "`[route.body_limit]`",
    deadline: "`[route.deadline]`",
    compression: "`[route.compression]`",
    request_decompression: "`[route.request_decompression]`",
    concurrency: "`[route.concurrency]`",
};

pub(super) fn read(table: &mut Table<'_, '_>, names: &Names, chain: &mut ChainPlan) {
    chain.maintenance = table.setting("maintenance", names.maintenance, |table| Some(maintenance(table)));
    chain.body_limit = table.setting("body_limit", names.body_limit, body_limit);
    chain.deadline = table.setting("deadline", names.deadline, deadline);
    chain.compression = table.setting("compression", names.compression, |table| Some(compression(table)));
    chain.request_decompression =
        table.setting("request_decompression", names.request_decompression, |table| {
            Some(request_decompression(table))
        });
    chain.concurrency = table.setting("concurrency", names.concurrency, concurrency);
}

pub(super) fn request_id(mut table: Table<'_, '_>) -> RequestIdPlan {
    let mut plan = RequestIdPlan::default();
    let trust = [
        ("trusted-proxies", TrustIds::TrustedProxies),
        ("nobody", TrustIds::Nobody),
        ("everybody", TrustIds::Everybody),
    ];
    table.set("trust", &mut plan.trust, choice(&trust));
    table.set("respond", &mut plan.respond, boolean);
    table.finish();
    plan
}

/// The most bytes of a page that stands in the file.
const LONGEST_TEXT: usize = 64 << 10;

fn maintenance(mut table: Table<'_, '_>) -> MaintenancePlan {
    let mut maintenance = Maintenance::default();
    table.set("status", &mut maintenance.status, |value| {
        let code: u16 = integer(200..=599)(value)?;
        // RFC 9110: these have no content, or mean something with fields that are not there
        let sound = !matches!(code, 204 | 205 | 206 | 304 | 401 | 407);
        StatusCode::from_u16(code).ok().filter(|_| sound).ok_or_else(|| Wrong::new("is no status of a page"))
    });
    table.set(
        "retry_after",
        &mut maintenance.retry_after,
        or_off(whole_seconds(secs(1)..=secs(30 * 86_400))),
    );
    let page = table.get("text", |value| {
        let text = text(value)?;
        let short = text.len() <= LONGEST_TEXT;
        short.then(|| text.to_owned()).ok_or_else(|| Wrong::new("is too long").hint("name a `file`"))
    });
    let file = table.get("file", disk::path).map(Spanned::into_inner);
    if let Some(page) = page {
        let kind = http::HeaderValue::from_static("text/plain; charset=utf-8");
        maintenance.pages = vec![MaintenancePage::new(kind, page.into_inner())];
    }
    if let Some(networks) = table.list("allow_clients", "\"10.0.0.0/8\"", network) {
        maintenance.allow = items(Some(networks));
    }
    if let Some(paths) = table.list("allow_paths", "\"/status\"", path) {
        maintenance.allow_paths = items(Some(paths));
    }
    table.finish();
    MaintenancePlan::new(maintenance).with_file(file)
}

fn body_limit(mut table: Table<'_, '_>) -> Option<u64> {
    let most = table.need("max_size", "\"10MiB\"", size(0..=1 << 50));
    table.finish();
    most.map(Spanned::into_inner)
}

fn deadline(mut table: Table<'_, '_>) -> Option<DeadlineOptions> {
    let at = table.span();
    let mut options = DeadlineOptions::default();
    table.set("head", &mut options.head, |value| duration(ms(1)..=secs(86_400))(value).map(Some));
    table.set("total", &mut options.total, |value| duration(ms(1)..=secs(30 * 86_400))(value).map(Some));
    if let Some(code) = table.get("status", integer::<u16>(503..=504)) {
        options.status = match code.into_inner() {
            503 => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::GATEWAY_TIMEOUT,
        };
    }
    if options.head.is_none() && options.total.is_none() {
        let wrong = Wrong::new("a deadline needs `head` or `total`").hint("add `head = \"30s\"`");
        table.sink().absent(at, wrong);
    }
    table.finish();
    Some(options)
}

pub(crate) const CODINGS: [(&str, Coding); 3] =
    [("zstd", Coding::Zstd), ("br", Coding::Brotli), ("gzip", Coding::Gzip)];

pub(crate) fn codings(table: &mut Table<'_, '_>, key: &'static str, to: &mut Vec<Coding>) {
    if let Some(codings) = table.list(key, "\"gzip\"", choice(&CODINGS)) {
        *to = items(Some(codings));
    }
}

fn compression(mut table: Table<'_, '_>) -> CompressionOptions {
    let mut options = CompressionOptions::default();
    codings(&mut table, "codings", &mut options.codings);
    table.set("min_size", &mut options.min_size, size(0..=1 << 30));
    table.set("max_at_once", &mut options.max_at_once, integer(1..=1_000_000));
    if let Some(types) = table.list("types", "\"text/*\"", content_type) {
        options.types = items(Some(types));
    }
    table.set("gzip_level", &mut options.gzip_level, integer(0..=9));
    table.set("brotli_level", &mut options.brotli_level, integer(0..=11));
    table.set("zstd_level", &mut options.zstd_level, integer(1..=19));
    table.finish();
    options
}

/// `text/html`, `text/*` or `*+json`.
fn content_type(value: &DeValue<'_>) -> Read<String> {
    let text = word(value, "a content type", "text/*")?;
    let of_type = |b: u8| b.is_ascii_alphanumeric() || b"!#$&-^_.+*/".contains(&b);
    let sound = text.bytes().all(of_type)
        && text.matches('*').count() <= 1
        && text.matches('/').count() <= 1
        && (text.contains('/') || text.starts_with('*'));
    sound.then(|| text.to_owned()).ok_or_else(|| {
        Wrong::new(format!("is no content type: \"{}\"", escape(text)))
            .hint("\"text/html\", all of \"text/*\", or by suffix \"*+json\"")
    })
}

fn request_decompression(mut table: Table<'_, '_>) -> RequestDecompressionOptions {
    let mut options = RequestDecompressionOptions::default();
    table.set("max_size", &mut options.max_bytes, size(1 << 10..=1 << 50));
    table.set("max_ratio", &mut options.max_ratio, integer(1..=1_000_000));
    table.set("max_at_once", &mut options.max_at_once, integer(1..=1_000_000));
    codings(&mut table, "codings", &mut options.codings);
    table.set("pass_others", &mut options.pass_others, boolean);
    table.finish();
    options
}

/// Keys that say more about `adaptive`.
const ADAPTIVE_KEYS: [&str; 4] = ["min", "tolerance", "window", "probe_every"];

fn concurrency(mut table: Table<'_, '_>) -> Option<ConcurrencyOptions> {
    let max = table.need("max", "200", integer(1..=1_000_000));
    let mut options = ConcurrencyOptions::new(1);
    table.set("queue", &mut options.queue, integer(0..=1_000_000));
    table.set("wait", &mut options.wait, duration(ms(1)..=secs(600)));
    table.set("retry_after", &mut options.retry_after, whole_seconds(secs(1)..=secs(86_400)));
    let mut follows = false;
    table.set("adaptive", &mut follows, boolean);
    if !follows {
        for key in ADAPTIVE_KEYS {
            if let Some(at) = table.key_span(key) {
                let wrong = Wrong::new(format!("`{key}` goes only with `adaptive = true`"));
                table.sink().error(at, wrong.hint("remove it, or let the limit follow latency"));
            }
        }
    }
    let mut adaptive = AdaptiveOptions::default();
    let min = table.get("min", integer(1..=1_000_000));
    if let (Some(min), Some(max)) = (&min, &max)
        && min.get_ref() > max.get_ref()
    {
        let wrong = Wrong::new("`min` is larger than `max`");
        table.sink().error(min.span(), wrong);
    }
    if let Some(min) = min {
        adaptive.min = min.into_inner();
    }
    table.set("tolerance", &mut adaptive.tolerance, integer(110..=10_000));
    table.set("window", &mut adaptive.window, duration(ms(10)..=secs(60)));
    table.set("probe_every", &mut adaptive.probe_every, duration(secs(1)..=secs(3600)));
    table.finish();
    options.adaptive = follows.then_some(adaptive);
    options.max = max?.into_inner();
    Some(options)
}
