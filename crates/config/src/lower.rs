//! From the top level of the file to a [`Plan`]; one module for each kind of section.

mod acme;
mod certificate;
mod chain;
mod check;
mod cluster;
mod connect;
mod http;
mod listener;
mod log;
mod process;
mod quic;
mod route;
mod socket;
mod tls;

use portcullis_edge::plan::Plan;

use crate::{
    ProcessOptions,
    errors::Lines,
    reader::{Table, Wrong},
};

/// Reads everything. What the plan lacks because it was wrong is in the sink.
pub(crate) fn plan(mut root: Table<'_, '_>, lines: &Lines<'_>) -> (Plan, ProcessOptions) {
    let mut plan = Plan::default();
    // one with mistakes is there too
    let is_log = root.key_span("access_log").is_some();
    process::read(&mut root, &mut plan);
    let options = process::options(&mut root);
    let asked = chain::read(&mut root, &mut plan);
    plan.connect = connect::read(&mut root, &plan);

    quic::read(&mut root, &mut plan);
    plan.paths = route::paths(&mut root);
    let timeouts = process::timeouts(&mut root);
    let listeners: Vec<_> = root
        .tables("listener", "`[[listener]]`")
        .into_iter()
        .map(|table| listener::read(table, &timeouts))
        .collect();
    let certificates: Vec<_> =
        root.tables("certificate", "`[[certificate]]`").into_iter().map(certificate::read).collect();
    let routes: Vec<_> = root
        .tables("route", "`[[route]]`")
        .into_iter()
        .map(|table| route::read(table, plan.cache.as_ref()))
        .collect();
    let clusters: Vec<_> = root.tables("cluster", "`[[cluster]]`").into_iter().map(cluster::read).collect();

    let acme = acme::read(&mut root, &certificates);

    let sink = root.sink();
    check::listeners(sink, lines, &listeners, &certificates, acme.is_some(), plan.admin.as_ref());
    check::routes(sink, lines, &routes, &asked, &clusters);
    chain::rate_limit::alike(sink, lines, &plan.chain, &routes);
    if routes.is_empty() && plan.connect.is_none() && listeners.iter().any(|listener| !listener.is_redirect())
    {
        let wrong = Wrong::new("the file has no `[[route]]`: every request is answered 404");
        sink.warn(root.span(), wrong);
    }
    for route in routes.iter().filter(|_| plan.cache.is_none()) {
        if route.plan.as_ref().is_some_and(|plan| plan.chain.cache.own().is_some()) {
            let wrong = Wrong::new("`[route.cache]` has no cache to put anything into");
            sink.error(route.span.clone(), wrong.hint("add a `[cache]` at the top level"));
        }
    }
    for route in routes.iter().filter(|_| !is_log) {
        if route.plan.as_ref().is_some_and(|plan| plan.access_log.own().is_some()) {
            let wrong = Wrong::new("`[route.access_log]` samples a log that is not there");
            sink.error(route.span.clone(), wrong.hint("add an `[access_log]` at the top level"));
        }
    }
    root.finish();

    plan.listeners = listeners.into_iter().filter_map(|listener| listener.plan).collect();
    plan.acme = acme;
    plan.certificates = certificates.into_iter().filter_map(|certificate| certificate.source).collect();
    plan.routes = routes.into_iter().filter_map(|route| route.plan).collect();
    plan.clusters = clusters.into_iter().filter_map(|cluster| cluster.plan).collect();
    (plan, options)
}
