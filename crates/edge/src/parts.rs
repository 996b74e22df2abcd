//! What the chains of a plan are made of that reads files or holds a state of its own: made once for each plan, whichever routes have it.

use std::{path::Path, sync::Arc};

use http::{HeaderName, header};
use portcullis_middleware::{
    basic_auth::{BasicAuthLayer, UserStore, Users},
    filter::{ClientSet, Countries, FilterLayer, FilterRules, FilterSets},
    identity::IdentityFields,
    jwt::{JwtLayer, KeySet},
};
use portcullis_proxy::FieldEdits;

use crate::{
    EdgeError, PlanFault,
    followed::{Content, Followed},
    keys::{self, Fetched},
    plan::{BasicAuthPlan, ChainPlan, FilterPlan, JwtKeys, JwtPlan, Plan},
};

/// Each with the plan that it was made of. What has the same plan as before is the same.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    files: Vec<Arc<Followed>>,
    fetched: Vec<Arc<Fetched>>,
    filters: Vec<(FilterPlan, FilterLayer)>,
    basic_auth: Vec<(BasicAuthPlan, BasicAuthLayer)>,
    jwt: Vec<(JwtPlan, JwtLayer)>,
    /// Fields that only the edge may set, on whichever route.
    pub(crate) identity: Option<Arc<IdentityFields>>,
}

fn known<P: PartialEq, L: Clone>(list: &[(P, L)], plan: &P) -> Option<L> {
    list.iter().find(|(own, _)| own == plan).map(|(_, layer)| layer.clone())
}

impl Parts {
    /// Blocks while it reads files.
    pub(crate) fn build(plan: &Plan, before: Option<&Self>) -> Result<Self, EdgeError> {
        let nothing = Self::default();
        let before = before.unwrap_or(&nothing);
        let mut parts = Self { identity: identity(plan), ..Self::default() };
        for chain in chains(plan) {
            if let Some(own) = chain.filter.own()
                && known(&parts.filters, own).is_none()
            {
                // the files first: they stay followed if the layer goes on
                let sets = parts.sets(own, before)?;
                let layer = match known(&before.filters, own) {
                    Some(layer) => layer,
                    None => FilterLayer::new(
                        FilterRules::compile(&own.options, &sets).map_err(PlanFault::Filter)?,
                    ),
                };
                parts.filters.push((own.clone(), layer));
            }
            if let Some(own) = chain.basic_auth.own()
                && known(&parts.basic_auth, own).is_none()
            {
                let users = || UserStore::new(Users::default());
                let file = parts.file(&own.users, before, || Content::Users(users()))?;
                let Content::Users(users) = &file.content else { return Err(two_kinds(&own.users)) };
                let made = || BasicAuthLayer::new(&own.options, users.clone());
                let layer = known(&before.basic_auth, own).unwrap_or_else(made);
                parts.basic_auth.push((own.clone(), layer));
            }
            if let Some(own) = chain.jwt.own()
                && known(&parts.jwt, own).is_none()
            {
                let keys = parts.keys(plan, &own.keys, before)?;
                let layer = match known(&before.jwt, own) {
                    Some(layer) => layer,
                    None => JwtLayer::new(&own.options, keys).map_err(PlanFault::Jwt)?,
                };
                parts.jwt.push((own.clone(), layer));
            }
        }
        Ok(parts)
    }

    pub(crate) fn filter(&self, plan: &FilterPlan) -> FilterLayer {
        known(&self.filters, plan).expect(MADE)
    }

    pub(crate) fn basic_auth(&self, plan: &BasicAuthPlan) -> BasicAuthLayer {
        known(&self.basic_auth, plan).expect(MADE)
    }

    pub(crate) fn jwt(&self, plan: &JwtPlan) -> JwtLayer {
        known(&self.jwt, plan).expect(MADE)
    }

    /// What is to be followed.
    pub(crate) fn files(&self) -> &[Arc<Followed>] {
        &self.files
    }

    /// What is to be fetched.
    pub(crate) fn fetched(&self) -> &[Arc<Fetched>] {
        &self.fetched
    }

    /// How many requests filters denied.
    pub(crate) fn denied(&self) -> u64 {
        self.filters.iter().map(|(_, layer)| layer.denied()).sum()
    }

    fn sets(&mut self, plan: &FilterPlan, before: &Self) -> Result<FilterSets, EdgeError> {
        let mut sets = FilterSets::default();
        for name in plan.options.rules.iter().flat_map(|rule| &rule.client_sets) {
            let path = Path::new(name);
            let file = self.file(path, before, || Content::Clients(ClientSet::default()))?;
            let Content::Clients(set) = &file.content else { return Err(two_kinds(path)) };
            sets = sets.with_clients(name, set.clone());
        }
        if let Some(path) = &plan.countries {
            let file = self.file(path, before, || Content::Countries(Countries::default()))?;
            let Content::Countries(countries) = &file.content else { return Err(two_kinds(path)) };
            sets = sets.with_countries(countries.clone());
        }
        Ok(sets)
    }

    fn keys(&mut self, plan: &Plan, keys: &JwtKeys, before: &Self) -> Result<KeySet, EdgeError> {
        let (path, content): (_, fn() -> Content) = match keys {
            JwtKeys::Secret(path) => (path, || Content::Secret(KeySet::default())),
            JwtKeys::Pem(path) => (path, || Content::Pem(KeySet::default())),
            JwtKeys::Set(path) => (path, || Content::KeySet(KeySet::default())),
            JwtKeys::Fetch { .. } => return Ok(self.fetch(plan, keys, before)),
        };
        let file = self.file(path, before, content)?;
        match (&file.content, keys) {
            (Content::Secret(keys), JwtKeys::Secret(_))
            | (Content::Pem(keys), JwtKeys::Pem(_))
            | (Content::KeySet(keys), JwtKeys::Set(_)) => Ok(keys.clone()),
            _ => Err(two_kinds(path)),
        }
    }

    /// Keys that are asked for. The set goes on where it is asked for as before, also under another `Host`.
    fn fetch(&mut self, plan: &Plan, keys: &JwtKeys, before: &Self) -> KeySet {
        let same = |fetched: &&Arc<Fetched>| fetched.plan == *keys;
        if let Some(fetched) = self.fetched.iter().find(same) {
            return fetched.keys.clone();
        }
        let host = keys::host(plan, keys);
        let fetched = match before.fetched.iter().find(same) {
            Some(fetched) if fetched.host == host => Arc::clone(fetched),
            known => {
                let set = known.map(|fetched| fetched.keys.clone()).unwrap_or_default();
                Arc::new(Fetched { plan: keys.clone(), host, keys: set })
            }
        };
        let set = fetched.keys.clone();
        self.fetched.push(fetched);
        set
    }

    /// A file that is known by now, that was known before, or a new one.
    fn file(
        &mut self,
        path: &Path,
        before: &Self,
        content: impl FnOnce() -> Content,
    ) -> Result<Arc<Followed>, EdgeError> {
        let same = |file: &&Arc<Followed>| file.path == path;
        if let Some(file) = self.files.iter().find(same) {
            return Ok(Arc::clone(file));
        }
        let content = content();
        let is_of_kind = |file: &&Arc<Followed>| {
            same(file) && std::mem::discriminant(&file.content) == std::mem::discriminant(&content)
        };
        let file = match before.files.iter().find(is_of_kind) {
            Some(file) => {
                file.look();
                Arc::clone(file)
            }
            None => Followed::open(path, content)
                .map_err(|source| EdgeError::File { path: path.to_owned(), source })?,
        };
        self.files.push(Arc::clone(&file));
        Ok(file)
    }
}

const MADE: &str = "what every chain of the plan has is made before its chains are";

fn two_kinds(path: &Path) -> EdgeError {
    EdgeError::File { path: path.to_owned(), source: "it is named for two different things".into() }
}

/// Every chain that the plan has.
pub(crate) fn chains(plan: &Plan) -> impl Iterator<Item = &ChainPlan> {
    std::iter::once(&plan.chain).chain(plan.routes.iter().map(|route| &route.chain))
}

/// What any chain tells the services behind: on a route without that chain nobody may say it either. Fields that clients have a use for
/// stay, but on the routes themselves.
fn identity(plan: &Plan) -> Option<Arc<IdentityFields>> {
    let names = identity_names(plan);
    (!names.is_empty()).then(|| Arc::new(IdentityFields::new(names)))
}

/// Their names, each once.
pub(crate) fn identity_names(plan: &Plan) -> Vec<&HeaderName> {
    let mut names: Vec<&HeaderName> = Vec::new();
    for name in chains(plan).flat_map(told) {
        if ![header::AUTHORIZATION, header::COOKIE].contains(name) && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// What a chain puts into requests.
fn told(chain: &ChainPlan) -> impl Iterator<Item = &HeaderName> {
    let user = chain.basic_auth.own().and_then(|own| own.options.user_field.as_ref());
    let claims = chain.jwt.own().into_iter().flat_map(|own| &own.options.claims).map(|(_, field)| field);
    let asked = chain.forward_auth.own().into_iter().flat_map(|own| &own.options.request_fields);
    user.into_iter().chain(claims).chain(asked)
}

/// Fields of a message's frame are neither taken away as somebody's name nor set from one (RFC 9110 section 7.6.1, RFC 9112 section 6).
fn check_fields(chain: &ChainPlan) -> Result<(), PlanFault> {
    let answered = chain.forward_auth.own().into_iter().flat_map(|own| &own.options.response_fields);
    for name in told(chain).chain(answered) {
        let fault = |_| PlanFault::ProtectedField(name.clone());
        FieldEdits::default().remove(name.clone()).map_err(fault)?;
    }
    Ok(())
}

/// Finds what is wrong with it before any file is read.
pub(crate) fn check(plan: &Plan) -> Result<(), PlanFault> {
    let known = |name: &str| match plan.clusters.iter().any(|cluster| cluster.name == name) {
        true => Ok(()),
        false => Err(PlanFault::UnknownCluster(name.to_owned())),
    };
    for chain in chains(plan) {
        check_fields(chain)?;
        if let Some(filter) = chain.filter.own() {
            let names = filter.options.rules.iter().flat_map(|rule| &rule.client_sets);
            let sets =
                names.fold(FilterSets::default(), |sets, name| sets.with_clients(name, ClientSet::default()));
            let sets = match &filter.countries {
                Some(_) => sets.with_countries(Countries::default()),
                None => sets,
            };
            FilterRules::compile(&filter.options, &sets).map_err(PlanFault::Filter)?;
        }
        if let Some(jwt) = chain.jwt.own() {
            jwt.options.check().map_err(PlanFault::Jwt)?;
            if let JwtKeys::Fetch { cluster, .. } = &jwt.keys {
                known(cluster)?;
            }
        }
        if let Some(forward) = chain.forward_auth.own() {
            known(&forward.cluster)?;
        }
        if let Some(cors) = chain.cors.own() {
            crate::admission::check_cors(cors)?;
        }
        if let Some(csrf) = chain.csrf.own() {
            crate::admission::csrf(csrf).map(drop)?;
        }
    }
    Ok(())
}
