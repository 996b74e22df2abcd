//! `[[route]]`.

use std::ops::Range;

use http::StatusCode;
use portcullis_edge::plan::{EarlyPlan, RouteAction, RoutePlan};
use toml::de::DeValue;

use crate::{
    net::{final_status, host_pattern, path, redirect_status, redirect_target},
    reader::{Read, Spanned, Table, Wrong},
    values::{choice, text},
};

/// A route with what the checks point at.
pub(crate) struct Route {
    pub(crate) host: Option<Spanned<String>>,
    pub(crate) path: Option<Spanned<String>>,
    pub(crate) cluster: Option<Spanned<String>>,
    pub(crate) span: Range<usize>,
    /// Whether host and path were read without an error.
    pub(crate) matches: bool,
    pub(crate) plan: Option<RoutePlan>,
}

/// The three actions, each by its key.
const ACTIONS: &[&str] = &["cluster", "redirect", "respond"];

/// The most bytes of a fixed answer. It is held in memory once and goes out in one write.
const LONGEST_ANSWER: usize = 64 << 10;

pub(crate) fn read(mut table: Table<'_, '_>) -> Route {
    let span = table.span();
    let asked = ["host", "path"].map(|key| table.key_span(key).is_some());
    let host = table.get("host", host_pattern);
    let path = table.get("path", path);
    let matches = asked == [host.is_some(), path.is_some()];

    let actions: Vec<_> = ACTIONS.iter().filter_map(|key| Some((*key, table.key_span(key)?))).collect();
    match &actions[..] {
        [] => {
            let wrong = Wrong::new("the `[[route]]` does nothing").hint(
                "add `cluster = \"app\"`, `redirect = \"https://example.com\"` or `respond = \"text\"`",
            );
            table.sink().absent(span.clone(), wrong);
        }
        [(first, _), rest @ ..] => {
            for (key, at) in rest {
                let wrong = Wrong::new(format!("`{key}` does not go with `{first}`"));
                table.sink().error(at.clone(), wrong.hint("a route does one thing"));
            }
        }
    }
    let first = actions.first().map(|(key, _)| *key);
    let cluster = table.get("cluster", |value| text(value).map(str::to_owned));
    let redirect = table.get("redirect", redirect_target);
    let respond = table.get("respond", answer);
    let status = status(&mut table, first, respond.as_ref());
    let mut early_data = EarlyPlan::default();
    let early = [
        ("by-method", EarlyPlan::ByMethod),
        ("serve", EarlyPlan::Serve),
        ("hold", EarlyPlan::Hold),
        ("refuse", EarlyPlan::Refuse),
    ];
    table.set("early_data", &mut early_data, choice(&early));
    table.finish();

    let action = match first {
        Some("cluster") => {
            cluster.as_ref().map(|name| RouteAction::Forward { cluster: name.get_ref().clone() })
        }
        Some("redirect") => redirect.map(|to| RouteAction::Redirect {
            to: to.into_inner(),
            status: status.unwrap_or(StatusCode::PERMANENT_REDIRECT),
        }),
        Some("respond") => respond.map(|body| RouteAction::Respond {
            status: status.unwrap_or(StatusCode::OK),
            body: body.into_inner(),
        }),
        _ => None,
    };
    let plan = action.map(|action| {
        let mut plan = RoutePlan::new(host.as_ref().map(|host| host.get_ref().as_str()), action);
        plan.early_data = early_data;
        match &path {
            Some(path) => plan.with_path(path.get_ref()),
            None => plan,
        }
    });
    Route { host, path, cluster, span, matches, plan }
}

fn answer(value: &DeValue<'_>) -> Read<String> {
    let text = text(value)?;
    if text.len() > LONGEST_ANSWER {
        return Err(Wrong::new(format!("has {} bytes, more than {LONGEST_ANSWER}", text.len()))
            .hint("serve it from a cluster"));
    }
    Ok(text.to_owned())
}

fn status(
    table: &mut Table<'_, '_>,
    action: Option<&str>,
    body: Option<&Spanned<String>>,
) -> Option<StatusCode> {
    match action {
        Some("redirect") => table.get("status", redirect_status).map(Spanned::into_inner),
        Some("cluster") => {
            if let Some(at) = table.key_span("status") {
                let wrong = Wrong::new("`status` goes only with `redirect` and `respond`");
                table.sink().error(at, wrong.hint("a cluster's endpoints choose the status"));
            }
            table.get("status", final_status).map(Spanned::into_inner)
        }
        _ => {
            let status = table.get("status", final_status)?;
            let code = status.get_ref().as_u16();
            // RFC 9110 sections 15.3.5, 15.3.6 and 15.4.5: these have no content
            if matches!(code, 204 | 205 | 304) && body.is_some_and(|body| !body.get_ref().is_empty()) {
                let wrong = Wrong::new(format!("`status` {code} is sent without a body"));
                table.sink().error(status.span(), wrong.hint("write `respond = \"\"`, or another status"));
            }
            Some(status.into_inner())
        }
    }
}
