//! The store's content: tables that are never changed, only built anew.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::AtomicU64},
};

use rustls::{SignatureAlgorithm, SignatureScheme, sign::CertifiedKey};

use crate::pair::{Added, Pair};

/// The part of those who add certificates one by one.
pub(super) const OWN: u64 = 0;

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: Arc<CertifiedKey>,
    pub(super) about: Added,
    kind: usize,
    pub(super) resolutions: Arc<AtomicU64>,
}

/// Kinds of keys, the preferred one first: ECDSA signs fastest and is the shortest.
const KINDS: usize = 3;

fn kind(key: &CertifiedKey) -> usize {
    match key.key.algorithm() {
        SignatureAlgorithm::ECDSA => 0,
        SignatureAlgorithm::ED25519 | SignatureAlgorithm::ED448 => 1,
        _ => 2,
    }
}

/// What a name has: one certificate of each kind.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    kinds: [Option<Arc<Entry>>; KINDS],
    /// Which of them is the first that is there.
    first: usize,
}

impl Slot {
    fn of(entry: &Arc<Entry>) -> Self {
        let mut kinds = [const { None }; KINDS];
        kinds[entry.kind] = Some(Arc::clone(entry));
        Self { kinds, first: entry.kind }
    }

    fn put(&mut self, entry: &Arc<Entry>) {
        self.kinds[entry.kind] = Some(Arc::clone(entry));
        self.first = self.first.min(entry.kind);
    }

    pub(super) fn first(&self) -> &Arc<Entry> {
        self.kinds[self.first].as_ref().expect("a slot is made with an entry, and keeps it")
    }

    /// The first that the client can verify; the first of all when there is none, and the handshake tells it why.
    pub(super) fn choose(&self, schemes: &[SignatureScheme]) -> &Arc<Entry> {
        let mut there = self.kinds.iter().flatten();
        if there.clone().nth(1).is_none() {
            return self.first();
        }
        there.find(|entry| entry.key.key.choose_scheme(schemes).is_some()).unwrap_or_else(|| self.first())
    }

    fn has(&self, entry: &Entry) -> bool {
        self.kinds.iter().flatten().any(|found| std::ptr::eq(&**found, entry))
    }
}

/// A part's owner and what it has.
type Part = (u64, Vec<Arc<Entry>>);

#[derive(Debug, Default)]
pub(super) struct Content {
    /// What each part has, the parts in the order of their making, but for [`OWN`], which is the first.
    pub(super) parts: Vec<Part>,
    pub(super) exact: HashMap<Box<str>, Slot>,
    /// By parent: `*.example.com` stands under `example.com`.
    pub(super) wildcard: HashMap<Box<str>, Slot>,
    /// The answer to an unknown name, unless the store is strict.
    default: Option<Slot>,
    /// The answer to a client without a name.
    nameless: Option<Slot>,
}

impl Content {
    /// The same parts, without tables.
    pub(super) fn of_parts(parts: Vec<Part>) -> Self {
        Self { parts, ..Self::default() }
    }

    /// The slot for a name, and whether the name was known.
    pub(super) fn pick(&self, name: Option<&str>, strict: bool) -> (Option<&Slot>, bool) {
        let Some(name) = name else { return (self.nameless.as_ref(), self.nameless.is_some()) };
        let lower;
        let mut name = name.strip_suffix('.').unwrap_or(name);
        if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            lower = name.to_ascii_lowercase();
            name = &lower;
        }
        if let Some(slot) = self.exact.get(name) {
            return (Some(slot), true);
        }
        let parent = name.split_once('.').filter(|(label, _)| !label.is_empty());
        if let Some(slot) = parent.and_then(|(_, parent)| self.wildcard.get(parent)) {
            return (Some(slot), true);
        }
        (if strict { None } else { self.default.as_ref() }, false)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.parts.iter().flat_map(|(_, entries)| entries)
    }

    /// Adds to what was added one by one. One that has all names of another with the same kind of key takes its place.
    pub(super) fn add(&mut self, pairs: Vec<Pair>) {
        let known = self.counts();
        let own = self.part(OWN);
        for pair in pairs {
            let entry = entry(pair, &known);
            let replaced =
                own.iter().position(|old| old.kind == entry.kind && covers(&entry.about, &old.about));
            match replaced {
                Some(place) => own[place] = entry,
                None => own.push(entry),
            }
        }
        drop_unreachable(own);
    }

    pub(super) fn set_part(&mut self, id: u64, pairs: Vec<Pair>) {
        let known = self.counts();
        *self.part(id) = pairs.into_iter().map(|pair| entry(pair, &known)).collect();
    }

    /// Takes all certificates that have this name out of every part.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        let before = self.all().count();
        for (_, entries) in &mut self.parts {
            entries.retain(|entry| entry.about.names.iter().all(|found| found != name));
        }
        self.all().count() < before
    }

    fn part(&mut self, id: u64) -> &mut Vec<Arc<Entry>> {
        let place = self.parts.partition_point(|(other, _)| *other < id);
        if self.parts.get(place).is_none_or(|(other, _)| *other != id) {
            self.parts.insert(place, (id, Vec::new()));
        }
        &mut self.parts[place].1
    }

    /// The counters of what is there, by first name and kind of key: a successor goes on from them.
    fn counts(&self) -> HashMap<(String, usize), Arc<AtomicU64>> {
        let named = |entry: &Arc<Entry>| {
            let name = entry.about.names.first()?.clone();
            Some(((name, entry.kind), Arc::clone(&entry.resolutions)))
        };
        self.all().filter_map(named).collect()
    }

    /// Builds the tables.
    pub(super) fn settle(&mut self) {
        let (mut exact, mut wildcard) = (HashMap::new(), HashMap::new());
        for entry in self.all() {
            for name in &entry.about.names {
                let (table, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut wildcard, parent),
                    None => (&mut exact, name.as_str()),
                };
                match table.get_mut(name) {
                    None => drop(table.insert(Box::from(name), Slot::of(entry))),
                    Some(slot) => slot.put(entry),
                }
            }
        }
        let slot = |entry: &Arc<Entry>| {
            let name = entry.about.names.first()?;
            let found: &Slot = match name.strip_prefix("*.") {
                Some(parent) => wildcard.get(parent)?,
                None => exact.get(name.as_str())?,
            };
            found.has(entry).then(|| found.clone())
        };
        let answer = |entry: &Arc<Entry>| slot(entry).unwrap_or_else(|| Slot::of(entry));
        let default = self.all().next().map(answer);
        let by_address = self.all().find(|entry| !entry.about.addresses.is_empty()).map(answer);
        self.nameless = by_address.or_else(|| default.clone());
        (self.default, self.exact, self.wildcard) = (default, exact, wildcard);
    }
}

fn entry(pair: Pair, known: &HashMap<(String, usize), Arc<AtomicU64>>) -> Arc<Entry> {
    let Pair { key, about } = pair;
    let kind = kind(&key);
    let before = about.names.first().and_then(|name| known.get(&(name.clone(), kind)));
    let resolutions = before.cloned().unwrap_or_default();
    Arc::new(Entry { key, about, kind, resolutions })
}

/// Whether all that could be asked of the old one can be asked of the new one.
fn covers(new: &Added, old: &Added) -> bool {
    new.names.is_empty() == old.names.is_empty()
        && old.names.iter().all(|name| new.names.contains(name))
        && old.addresses.iter().all(|address| new.addresses.contains(address))
}

/// Those all of whose names went to later ones, to several of them, can't be asked for any more.
fn drop_unreachable(entries: &mut Vec<Arc<Entry>>) {
    let mut taken: HashSet<(&str, usize)> = HashSet::new();
    let mut keep: Vec<bool> = entries
        .iter()
        .rev()
        .map(|entry| {
            // every name is looked at, so that it counts as taken
            let free =
                entry.about.names.iter().filter(|name| taken.insert((name.as_str(), entry.kind))).count();
            free > 0 || entry.about.names.is_empty()
        })
        .collect();
    keep.reverse();
    let mut keep = keep.into_iter();
    entries.retain(|_| keep.next().unwrap_or(true));
}
