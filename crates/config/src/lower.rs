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

/// What stands at the top level, with mistakes or without: some of what routes and rules say means nothing where it is not.
#[derive(Clone, Copy)]
struct There {
    access_log: bool,
    cache: bool,
    rate_limit_store: bool,
}

impl There {
    fn look(root: &Table<'_, '_>) -> Self {
        let [access_log, cache, rate_limit_store] =
            ["access_log", "cache", "rate_limit_store"].map(|key| root.key_span(key).is_some());
        Self { access_log, cache, rate_limit_store }
    }
}

/// Reads everything. What the plan lacks because it was wrong is in the sink.
pub(crate) fn plan(mut root: Table<'_, '_>, lines: &Lines<'_>) -> (Plan, ProcessOptions) {
    let mut plan = Plan::default();
    let there = There::look(&root);
    process::read(&mut root, &mut plan);
    let options = process::options(&mut root);
    let asked = chain::read(&mut root, &mut plan, there);
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
        .map(|table| route::read(table, plan.cache.as_ref(), there))
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
    root.finish();

    plan.listeners = listeners.into_iter().filter_map(|listener| listener.plan).collect();
    plan.acme = acme;
    plan.certificates = certificates.into_iter().filter_map(|certificate| certificate.source).collect();
    plan.routes = routes.into_iter().filter_map(|route| route.plan).collect();
    plan.clusters = clusters.into_iter().filter_map(|cluster| cluster.plan).collect();
    (plan, options)
}
