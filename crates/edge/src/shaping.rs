//! The layers of a chain that few routes have, by where they stand: who has none of them there pays for none.

use std::{collections::HashMap, fs, io::Read, path::PathBuf};

use bytes::Bytes;
use http::HeaderValue;
use portcullis_middleware::{
    body_limit::{BodyLimitLayer, LimitedBody},
    compression::{CompressedBody, CompressionLayer},
    concurrency::{ConcurrencyLayer, PlaceBody},
    deadline::{DeadlineBody, DeadlineLayer},
    maintenance::{MaintenanceLayer, MaintenancePage},
    request_decompression::{DecompressedBody, RequestDecompressionLayer},
};
use tower::{ServiceBuilder, util::option_layer};
use tower_http::{map_request_body::MapRequestBodyLayer, map_response_body::MapResponseBodyLayer};

use crate::{
    Body, EdgeError,
    chain::layer,
    explain::Step,
    parts::chains,
    plan::{ChainPlan, MaintenancePlan, Plan, Setting},
    service::EdgeService,
};

/// What is `None` costs nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shaping {
    pub(crate) maintenance: Option<MaintenanceLayer>,
    pub(crate) body_limit: Option<BodyLimitLayer>,
    pub(crate) deadline: Option<DeadlineLayer>,
    pub(crate) compression: Option<CompressionLayer>,
    pub(crate) request_decompression: Option<RequestDecompressionLayer>,
    pub(crate) concurrency: Option<ConcurrencyLayer>,
}

impl Shaping {
    /// As for [`crate::chain::Chain`].
    pub(crate) fn build(
        plan: &ChainPlan,
        default: &Self,
        before: Option<(&ChainPlan, &Self)>,
        pages: &Pages,
    ) -> Self {
        let maintenance = match &plan.maintenance {
            Setting::Inherit => default.maintenance.clone(),
            Setting::Off => None,
            Setting::Own(own) => Some(pages.maintenance(own)),
        };
        Self {
            maintenance,
            body_limit: layer(&plan.body_limit, &default.body_limit, |limit| {
                Some(BodyLimitLayer::new(*limit))
            }),
            deadline: layer(&plan.deadline, &default.deadline, |options| {
                Some(DeadlineLayer::new(options.clone()))
            }),
            compression: layer(&plan.compression, &default.compression, |options| {
                Some(CompressionLayer::new(options.clone()))
            }),
            request_decompression: layer(
                &plan.request_decompression,
                &default.request_decompression,
                |options| Some(RequestDecompressionLayer::new(options.clone())),
            ),
            concurrency: concurrency(plan, default, before),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        let Self { maintenance, body_limit, deadline, compression, request_decompression, concurrency } =
            self;
        maintenance.is_none()
            && body_limit.is_none()
            && deadline.is_none()
            && compression.is_none()
            && request_decompression.is_none()
            && concurrency.is_none()
    }

    /// What stands inside the cache, around the program's own layers and what the route does.
    pub(crate) fn inside_cache(&self, service: EdgeService) -> EdgeService {
        let Self { request_decompression, concurrency, .. } = self;
        if request_decompression.is_none() && concurrency.is_none() {
            return service;
        }
        let coding = request_decompression.clone();
        let coding = coding.map(|layer| (layer, MapRequestBodyLayer::new(decompressed)));
        let places = concurrency.clone().map(|layer| (MapResponseBodyLayer::new(placed), layer));
        let layers = ServiceBuilder::new().layer(option_layer(coding)).layer(option_layer(places));
        EdgeService::new(layers.service(service))
    }

    /// What stands between who may pass and the cache.
    pub(crate) fn behind_admission(&self, service: EdgeService) -> EdgeService {
        let Self { body_limit, deadline, compression, .. } = self;
        if body_limit.is_none() && deadline.is_none() && compression.is_none() {
            return service;
        }
        let limit = body_limit.map(|layer| (layer, MapRequestBodyLayer::new(limited)));
        let deadline = deadline.clone().map(|layer| (MapResponseBodyLayer::new(timed), layer));
        let compression = compression.clone().map(|layer| (MapResponseBodyLayer::new(compressed), layer));
        let layers = ServiceBuilder::new().layer(option_layer(limit)).layer(option_layer(deadline));
        EdgeService::new(layers.layer(option_layer(compression)).service(service))
    }

    /// What stands between the filter and who may pass.
    pub(crate) fn before_admission(&self, service: EdgeService) -> EdgeService {
        match &self.maintenance {
            Some(layer) => EdgeService::new(ServiceBuilder::new().layer(layer.clone()).service(service)),
            None => service,
        }
    }
}

// bodies that their layer had nothing to do to go on as they are, unboxed

fn placed(body: PlaceBody<Body>) -> Body {
    match body.into_placeless() {
        Ok(body) => body,
        Err(body) => Body::new(body),
    }
}

fn decompressed(body: DecompressedBody<Body>) -> Body {
    match body.into_plain() {
        Ok(body) => body,
        Err(body) => Body::new(body),
    }
}

fn compressed(body: CompressedBody<Body>) -> Body {
    match body.into_plain() {
        Ok(body) => body,
        Err(body) => Body::new(body),
    }
}

fn timed(body: DeadlineBody<Body>) -> Body {
    match body.into_timeless() {
        Ok(body) => body,
        Err(body) => Body::new(body),
    }
}

fn limited(body: LimitedBody<Body>) -> Body {
    match body.into_short() {
        Ok(body) => body,
        Err(body) => Body::new(body),
    }
}

/// The places go on over a reload, also with other options: who is inside still counts.
fn concurrency(
    plan: &ChainPlan,
    default: &Shaping,
    before: Option<(&ChainPlan, &Shaping)>,
) -> Option<ConcurrencyLayer> {
    let options = match &plan.concurrency {
        Setting::Inherit => return default.concurrency.clone(),
        Setting::Off => return None,
        Setting::Own(options) => options.clone(),
    };
    match before {
        Some((old, Shaping { concurrency: Some(layer), .. })) if old.concurrency.own().is_some() => {
            if old.concurrency != plan.concurrency {
                layer.limit().set(options);
            }
            Some(layer.clone())
        }
        _ => Some(ConcurrencyLayer::new(options)),
    }
}

/// The longest page, in bytes: it is kept in memory.
const LONGEST_PAGE: u64 = 1 << 20;

/// The files of maintenance pages.
pub(crate) struct Pages(HashMap<PathBuf, Bytes>);

impl Pages {
    /// Reads all that a plan names. Blocks.
    pub(crate) fn read(plan: &Plan) -> Result<Self, EdgeError> {
        let mut pages = HashMap::new();
        for path in chains(plan).filter_map(|chain| chain.maintenance.own()?.file.as_ref()) {
            let unread = |source| EdgeError::MaintenancePage { path: path.clone(), source };
            let mut body = Vec::new();
            let file = fs::File::open(path).map_err(unread)?;
            file.take(LONGEST_PAGE + 1).read_to_end(&mut body).map_err(unread)?;
            if body.len() as u64 > LONGEST_PAGE {
                return Err(unread(std::io::Error::other("it is longer than 1 MiB")));
            }
            pages.insert(path.clone(), body.into());
        }
        Ok(Self(pages))
    }

    fn maintenance(&self, plan: &MaintenancePlan) -> MaintenanceLayer {
        maintenance(plan, plan.file.as_ref().and_then(|path| self.0.get_key_value(path)))
    }
}

fn maintenance(plan: &MaintenancePlan, page: Option<(&PathBuf, &Bytes)>) -> MaintenanceLayer {
    let mut maintenance = plan.maintenance.clone();
    if let Some((path, body)) = page {
        let kind = match path.extension().and_then(|ending| ending.to_str()) {
            Some("html" | "htm") => "text/html; charset=utf-8",
            Some("json") => "application/json",
            _ => "text/plain; charset=utf-8",
        };
        maintenance.pages.insert(0, MaintenancePage::new(HeaderValue::from_static(kind), body.clone()));
    }
    MaintenanceLayer::new(maintenance)
}

type Steps = [Option<Step>; 3];

/// In words, what stands between the filter and the cache.
pub(crate) fn step_before_admission(edge: &ChainPlan, route: &ChainPlan) -> Option<Step> {
    Step::of("maintenance", &edge.maintenance, &route.maintenance, |plan| {
        format!("{} for all but those who are let in", plan.maintenance.status.as_u16())
    })
}

/// The same for what stands behind it, outside of the cache.
pub(crate) fn steps_outside_cache(edge: &ChainPlan, route: &ChainPlan) -> Steps {
    [
        Step::of("body limit", &edge.body_limit, &route.body_limit, |limit| {
            format!("413 past {limit} bytes")
        }),
        Step::of("deadline", &edge.deadline, &route.deadline, |options| {
            let part = |name, time: Option<_>| time.map(|time| format!("{name} within {time:?}"));
            let parts = [part("head", options.head), part("all", options.total)];
            format!(
                "{}, or {}",
                parts.into_iter().flatten().collect::<Vec<_>>().join(", "),
                options.status.as_u16()
            )
        }),
        Step::of("compression", &edge.compression, &route.compression, |options| {
            options.codings.iter().map(|coding| coding.name()).collect::<Vec<_>>().join(", ")
        }),
    ]
}

/// And what stands inside of it.
pub(crate) fn steps_inside_cache(edge: &ChainPlan, route: &ChainPlan) -> [Option<Step>; 2] {
    [
        Step::of(
            "request decompression",
            &edge.request_decompression,
            &route.request_decompression,
            |options| {
                format!("413 past {} bytes or {} times what came", options.max_bytes, options.max_ratio)
            },
        ),
        Step::of("concurrency", &edge.concurrency, &route.concurrency, |options| {
            let follows = if options.adaptive.is_some() { ", following latency" } else { "" };
            format!(
                "{} at once{follows}, {} wait up to {:?}, else 503",
                options.max, options.queue, options.wait
            )
        }),
    ]
}
