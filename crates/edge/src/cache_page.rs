//! The cache, as the admin service shows it and purges it.

use std::sync::Arc;

use arc_swap::ArcSwap;
use http::Uri;
use portcullis_cache::{CacheLayer, Purge};
use portcullis_proxy::PathRules;
use portcullis_telemetry::admin::{AdminService, Fields};
use serde_json::json;

use crate::live::Live;

/// `GET /cache` and `POST /cache/purge`.
pub(crate) fn add(service: AdminService, live: &Arc<ArcSwap<Live>>) -> AdminService {
    let (shown, purged) = (Arc::clone(live), Arc::clone(live));
    service.with_page("/cache", "application/json", move || page(shown.load().cache.as_ref())).with_action(
        "/cache/purge",
        move |fields| {
            let live = purged.load();
            let (cache, paths) = (live.cache.clone(), live.plan.paths);
            async move {
                let wanted = Wanted::read(&fields)?;
                let cache = cache.ok_or("there is no cache")?;
                // it may look at every key
                let purged = tokio::task::spawn_blocking(move || wanted.purge(&cache, paths)).await;
                let purged = purged.map_err(|_| "the purge was broken off")??;
                Ok(json!({ "purged": purged }).to_string() + "\n")
            }
        },
    )
}

/// `null` where there is none.
fn page(cache: Option<&CacheLayer>) -> String {
    let page = cache.map(|cache| {
        let (stats, options) = (cache.stats(), cache.options());
        json!({
            "entries": stats.entries,
            "bytes": stats.bytes,
            "max_bytes": options.max_bytes,
            "filling": stats.filling,
            "max_filling": options.max_fill_bytes,
            "hits": stats.hits,
            "stale": stats.stale,
            "misses": stats.misses,
            "revalidated": stats.revalidated,
            "collapsed": stats.collapsed,
            "bypassed": stats.bypassed,
            "stored": stats.stored,
            "abandoned": stats.abandoned,
            "evicted": stats.evicted,
            "purged": stats.purged,
            "invalidated": stats.invalidated,
            "disk_writes": stats.disk_writes,
            "disk_hits": stats.disk_hits,
        })
    });
    json!(page).to_string() + "\n"
}

/// What a request wants purged.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    what: What,
    how: Purge,
}

#[derive(Debug, PartialEq, Eq)]
enum What {
    Url(Uri),
    Prefix(Uri),
    Tag(String),
    All,
}

impl Wanted {
    /// One of `url`, `prefix`, `tag` and `all=true`, and `soft`. What is not known or said twice is refused: who misspells `tag` did not mean
    /// everything.
    fn read(fields: &Fields) -> Result<Self, String> {
        let (mut what, mut how) = (None, None);
        for (name, value) in fields.iter() {
            let uri = || value.parse::<Uri>().map_err(|error| format!("{name}: {error}"));
            let found = match (name, value) {
                ("url", _) => What::Url(uri()?),
                ("prefix", _) => What::Prefix(uri()?),
                ("tag", "") => return Err("tag: it is empty".to_owned()),
                ("tag", tag) => What::Tag(tag.to_owned()),
                ("all", "true") => What::All,
                ("soft", "true" | "false") => {
                    let soft = if value == "true" { Purge::Soft } else { Purge::Hard };
                    if how.replace(soft).is_some() {
                        return Err("soft stands there twice".to_owned());
                    }
                    continue;
                }
                ("all" | "soft", _) => {
                    return Err(format!("{name}: `{value}` is not a truth value that fits"));
                }
                _ => return Err(format!("`{name}` is not known: url, prefix, tag, all=true, soft=true")),
            };
            if what.replace(found).is_some() {
                return Err("more than one of url, prefix, tag and all".to_owned());
            }
        }
        let what = what.ok_or("what is to be purged? url, prefix, tag or all=true")?;
        Ok(Self { what, how: how.unwrap_or_default() })
    }

    /// `paths`: what the edge does to paths before it looks anything up.
    fn purge(&self, cache: &CacheLayer, paths: PathRules) -> Result<u64, String> {
        match &self.what {
            What::Url(uri) => {
                cache.purge(&settled(uri, paths)?, self.how).map_err(|error| format!("url: {error}"))
            }
            What::Prefix(uri) => {
                let uri = settled(uri, paths)?;
                cache.purge_prefix(&uri, self.how).map_err(|error| format!("prefix: {error}"))
            }
            What::Tag(tag) => Ok(cache.purge_tag(tag, self.how)),
            What::All => Ok(cache.purge_all(self.how)),
        }
    }
}

/// With its path in the form that requests have when they are looked up.
fn settled(uri: &Uri, paths: PathRules) -> Result<Uri, String> {
    let mut parts = uri.clone().into_parts();
    if let Some(target) = &parts.path_and_query {
        let settled = paths.apply(target).map_err(|error| format!("the path is refused: {error}"))?;
        parts.path_and_query = Some(settled.into_owned());
    }
    Uri::from_parts(parts).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fields: &[(&str, &str)]) -> Result<Wanted, String> {
        let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Wanted::read(&fields.collect())
    }

    #[test]
    fn one_thing_is_wanted() {
        let url = || Uri::from_static("https://a.test/x");
        for (fields, what, how) in [
            (&[("url", "https://a.test/x")][..], What::Url(url()), Purge::Hard),
            (&[("soft", "true"), ("prefix", "https://a.test/x")], What::Prefix(url()), Purge::Soft),
            (&[("tag", "t"), ("soft", "false")], What::Tag("t".to_owned()), Purge::Hard),
            (&[("all", "true")], What::All, Purge::Hard),
        ] {
            assert_eq!(read(fields), Ok(Wanted { what, how }), "{fields:?}");
        }
        for fields in [
            &[][..],
            &[("soft", "true")],
            &[("all", "false")],
            &[("all", "")],
            &[("tag", "")],
            &[("tag", "a"), ("tag", "b")],
            &[("all", "true"), ("soft", "true"), ("soft", "true")],
            &[("all", "true"), ("soft", "1")],
            &[("all", "true"), ("host", "a.test")],
            &[("url", "https://a test/")],
        ] {
            assert!(read(fields).is_err(), "{fields:?}");
        }
    }
}
