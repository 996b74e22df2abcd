//! Picking an endpoint.

use std::{
    cell::OnceCell,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use super::{
    BalanceOptions, Load, Policy,
    consistent::{Consistent, Seat},
    hash::{mix, stable_hash},
};

/// Candidates that are tried by chance before all are looked at.
const PROBES: u64 = 8;
/// Turns of a schedule: past it small differences of weights are rounded.
const MAX_TURNS: u64 = 1 << 16;
/// Groups up to this size are judged anew at each pick that needs it, larger ones once in [`JUDGED_FOR`].
const SMALL: usize = 64;
/// Milliseconds.
const JUDGED_FOR: u64 = 10;

/// An endpoint as it is configured.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    /// What it is known as, in every process.
    pub(crate) name: Arc<str>,
    /// From 1 to 1000.
    pub(crate) weight: u32,
    /// 0 first.
    pub(crate) priority: u8,
    pub(crate) zone: Option<Arc<str>>,
}

/// What changes about the endpoints.
pub(crate) trait Endpoints {
    /// The load of an endpoint.
    fn load(&self, index: usize) -> &Load;
    /// Whether requests may go to it.
    fn is_available(&self, index: usize, now: Instant) -> bool;
}

/// What is asked of a pick.
pub(crate) struct Ask<'a> {
    /// Of the request, for a hashing policy.
    pub(crate) hash: Option<u64>,
    /// Endpoints that were tried for this request.
    pub(crate) tried: &'a Tried,
}

/// A small set of endpoints. It allocates from the ninth on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tried {
    first: [u32; 8],
    count: usize,
    more: Vec<u32>,
}

impl Tried {
    pub(crate) fn insert(&mut self, index: usize) {
        if self.contains(index) {
            return;
        }
        let index = index as u32;
        match self.first.get_mut(self.count) {
            Some(place) => *place = index,
            None => self.more.push(index),
        }
        self.count += 1;
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn contains(&self, index: usize) -> bool {
        self.count != 0
            && (self.first[..self.count.min(8)].contains(&(index as u32))
                || self.more.contains(&(index as u32)))
    }
}

/// Endpoints that are taken together: the own zone's or all of one priority, or all.
#[derive(Debug)]
struct Group {
    members: Vec<(u32, u32, u64)>,
    weight: u64,
    /// Percent of the weight that has to be available.
    threshold: u64,
    /// Each member as often as its weight says.
    turns: Vec<u32>,
    consistent: Option<Consistent>,
}

/// The members of a cluster, ready for picking.
#[derive(Debug)]
pub(crate) struct Table {
    options: BalanceOptions,
    /// In order of preference; the last one takes all when none has enough.
    groups: Vec<Group>,
    count: usize,
    seed: u64,
    base: Instant,
    next: AtomicU64,
    panics: AtomicU64,
    /// Of many endpoints: the milliseconds until which the judgement holds, and above them the judgement.
    judged: AtomicU64,
}

/// The place of one pick in the sequence of all.
struct Turn<'a, E> {
    table: &'a Table,
    endpoints: &'a E,
    now: Instant,
    ask: &'a Ask<'a>,
    number: u64,
    panic: bool,
}

impl Table {
    pub(crate) fn new(options: &BalanceOptions, members: &[Member]) -> Self {
        Self::with_seed(options, members, RandomState::new().hash_one(0_u8))
    }

    pub(crate) fn with_seed(options: &BalanceOptions, members: &[Member], seed: u64) -> Self {
        let threshold = u64::from(options.panic_threshold.min(100));
        let mut priorities: Vec<u8> = members.iter().map(|member| member.priority).collect();
        priorities.sort_unstable();
        priorities.dedup();
        let mut groups = Vec::new();
        for priority in &priorities {
            let level = |member: &Member| member.priority == *priority;
            if options.zone.is_some() {
                let own = |member: &Member| level(member) && member.zone == options.zone;
                if members.iter().any(own) && members.iter().any(|member| level(member) && !own(member)) {
                    let threshold = u64::from(options.zone_threshold.min(100));
                    groups.push(Group::new(options, members, own, threshold));
                }
            }
            groups.push(Group::new(options, members, level, threshold));
        }
        if priorities.len() > 1 {
            // nobody has more than all of it: it is never preferred, and only left over
            groups.push(Group::new(options, members, |_| true, 101));
        }
        Self {
            options: options.clone(),
            groups,
            count: members.len(),
            seed,
            base: Instant::now(),
            next: AtomicU64::new(0),
            panics: AtomicU64::new(0),
            judged: AtomicU64::new(0),
        }
    }

    /// Picks that ignored who is available, since too few were.
    pub(crate) fn panics(&self) -> u64 {
        self.panics.load(Relaxed)
    }

    /// The endpoint for a request's next attempt; none only if there are no endpoints. One that is available and was
    /// not tried comes first, of the preferred group and then of any; then one that was not tried; then any.
    pub(crate) fn pick<E: Endpoints>(&self, endpoints: &E, now: Instant, ask: &Ask<'_>) -> Option<usize> {
        if self.count <= 1 {
            return (self.count == 1).then_some(0);
        }
        let number = self.next.fetch_add(1, Relaxed);
        let mut turn = Turn { table: self, endpoints, now, ask, number, panic: false };
        let group = if let [group] = &*self.groups {
            // the usual: who comes first is there, and how many others are does not matter
            if let Some(index) = turn.first(group) {
                return Some(index as usize);
            }
            turn.panic = self.judge(endpoints, now).is_none();
            group
        } else {
            match self.judge(endpoints, now) {
                Some(at) => &self.groups[at],
                None => {
                    turn.panic = true;
                    self.groups.last()?
                }
            }
        };
        if turn.panic {
            self.panics.fetch_add(1, Relaxed);
        }
        turn.choose(group).or_else(|| turn.leftover()).map(|index| index as usize)
    }

    /// Which group has enough that are available.
    fn judge<E: Endpoints>(&self, endpoints: &E, now: Instant) -> Option<usize> {
        let judge = || self.groups.iter().position(|group| group.has_enough(endpoints, now));
        if self.count <= SMALL {
            return judge();
        }
        const NONE: u64 = 0xffff;
        let passed = u64::try_from(now.saturating_duration_since(self.base).as_millis()).unwrap_or(0);
        let held = self.judged.load(Relaxed);
        let judgement = if held >> 16 > passed {
            held & NONE
        } else {
            let judgement = judge().map_or(NONE, |at| at as u64);
            self.judged.store((passed + JUDGED_FOR) << 16 | judgement, Relaxed);
            judgement
        };
        (judgement != NONE).then_some(judgement as usize)
    }
}

impl Group {
    fn new(
        options: &BalanceOptions,
        members: &[Member],
        belongs: impl Fn(&Member) -> bool,
        threshold: u64,
    ) -> Self {
        let mut seats: Vec<(&str, Seat)> = members
            .iter()
            .enumerate()
            .filter(|(_, member)| belongs(member))
            .map(|(index, member)| {
                let hash = stable_hash(member.name.as_bytes());
                (&*member.name, Seat { index: index as u32, weight: member.weight.clamp(1, 1000), hash })
            })
            .collect();
        let turns = turns(seats.iter().map(|(_, seat)| (seat.index, seat.weight)));
        let members: Vec<_> = seats.iter().map(|(_, seat)| (seat.index, seat.weight, seat.hash)).collect();
        seats.sort_by_key(|(name, _)| *name);
        let seats: Vec<Seat> = seats.into_iter().map(|(_, seat)| seat).collect();
        let consistent = match options.policy {
            Policy::Maglev { table_size } => Some(Consistent::maglev(&seats, table_size)),
            Policy::RingHash { replicas } => Some(Consistent::ring(&seats, replicas)),
            _ => None,
        };
        let weight = members.iter().map(|(_, weight, _)| u64::from(*weight)).sum();
        Self { members, weight, threshold, turns, consistent }
    }

    fn has_enough<E: Endpoints>(&self, endpoints: &E, now: Instant) -> bool {
        let available =
            self.members.iter().filter(|(index, ..)| endpoints.is_available(*index as usize, now));
        let available: u64 = available.map(|(_, weight, _)| u64::from(*weight)).sum();
        available > 0 && available * 100 >= self.weight * self.threshold
    }
}

/// An order in which each member comes as often as its weight says, and its turns are spread evenly.
fn turns(members: impl Iterator<Item = (u32, u32)>) -> Vec<u32> {
    let members: Vec<(u32, u32)> = members.collect();
    let divisor = members.iter().fold(0, |divisor, (_, weight)| gcd(divisor, *weight)).max(1);
    let wanted: u64 = members.iter().map(|(_, weight)| u64::from(weight / divisor)).sum();
    let mut turns = Vec::new();
    for (index, weight) in members {
        let weight = u64::from(weight / divisor);
        let own = if wanted > MAX_TURNS { (weight * MAX_TURNS / wanted).max(1) } else { weight };
        turns.extend((0..own).map(|turn| (((2 * turn + 1) << 32) / own, index)));
    }
    turns.sort_unstable();
    turns.into_iter().map(|(_, index)| index).collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// A number below `bound`, evenly from a random one.
fn below(random: u64, bound: u64) -> u64 {
    ((u128::from(random) * u128::from(bound)) >> 64) as u64
}

impl<E: Endpoints> Turn<'_, E> {
    fn random(&self, draw: u64) -> u64 {
        let step = self.number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mix(self.table.seed.wrapping_add(step).wrapping_add(draw.wrapping_mul(0xd1b5_4a32_d192_ed03)))
    }

    fn will_do(&self, index: u32) -> bool {
        (self.panic || self.endpoints.is_available(index as usize, self.now))
            && !self.ask.tried.contains(index as usize)
    }

    /// Whether one that starts slowly takes this request.
    fn is_warm(&self, index: u32, draw: u64) -> bool {
        let options = &self.table.options;
        if options.slow_start.is_zero() {
            return true;
        }
        let load = self.endpoints.load(index as usize);
        let whole = load.effective_weight(self.now, &BalanceOptions::default());
        let weight = load.effective_weight(self.now, options);
        weight >= whole || below(self.random(draw ^ 0x5157), whole) < weight
    }

    fn in_turn(&self, group: &Group, offset: usize) -> u32 {
        let at = (self.number as u32).wrapping_add(offset as u32);
        group.turns[(at % group.turns.len() as u32) as usize]
    }

    fn drawn(&self, group: &Group, draw: u64) -> u32 {
        group.turns[below(self.random(draw), group.turns.len() as u64) as usize]
    }

    /// What the policy says, if the first that it names will do.
    fn first(&self, group: &Group) -> Option<u32> {
        if let (Some(consistent), Some(hash)) = (&group.consistent, self.ask.hash) {
            let limit = self.limit();
            return consistent.find(hash, |index| limit.allows(self, group, index)).filter(|_| {
                // only if that is its owner: else the others have to be counted
                consistent.find(hash, |_| true).is_some_and(|owner| self.will_do(owner))
            });
        }
        let drawn = matches!(self.table.options.policy, Policy::Random | Policy::PeakEwma);
        let first = if drawn { self.drawn(group, 0) } else { self.in_turn(group, 0) };
        (self.will_do(first) && self.is_warm(first, 0)).then(|| self.rival(group, first))
    }

    fn choose(&self, group: &Group) -> Option<u32> {
        if let (Some(consistent), Some(hash)) = (&group.consistent, self.ask.hash) {
            let limit = self.limit();
            return consistent
                .find(hash, |index| limit.allows(self, group, index))
                .or_else(|| self.closest(group, hash, &limit))
                .or_else(|| self.closest(group, hash, &Limit::default()));
        }
        if let Some(first) = self.first(group) {
            return Some(first);
        }
        for draw in 1..=PROBES {
            let candidate = self.drawn(group, draw);
            if self.will_do(candidate) && self.is_warm(candidate, draw) {
                return Some(self.rival(group, candidate));
            }
        }
        self.any(group, |index| self.will_do(index)).map(|candidate| self.rival(group, candidate))
    }

    /// The better of the candidate and, where the policy compares, another one.
    fn rival(&self, group: &Group, first: u32) -> u32 {
        let options = &self.table.options;
        let drawn = match options.policy {
            Policy::RoundRobin | Policy::Random => return first,
            Policy::PeakEwma => true,
            _ => false,
        };
        let second = (1..=PROBES).find_map(|step| {
            let index = if drawn { self.drawn(group, 32 + step) } else { self.in_turn(group, step as usize) };
            (index != first && self.will_do(index) && self.is_warm(index, 32 + step)).then_some(index)
        });
        let Some(second) = second else { return first };
        let (a, b) = (self.endpoints.load(first as usize), self.endpoints.load(second as usize));
        let second_is_better = if drawn {
            b.cost(self.now) < a.cost(self.now)
        } else {
            let weight = |load: &Load| load.effective_weight(self.now, options);
            (b.busy() as u64).saturating_mul(weight(a)) < (a.busy() as u64).saturating_mul(weight(b))
        };
        if second_is_better { second } else { first }
    }

    /// One of those that pass, by chance and weight.
    fn any(&self, group: &Group, passes: impl Fn(u32) -> bool) -> Option<u32> {
        let (mut chosen, mut total) = (None, 0);
        for (index, weight, hash) in &group.members {
            if passes(*index) {
                total += u64::from(*weight);
                if below(mix(self.random(64) ^ hash), total) < u64::from(*weight) {
                    chosen = Some(*index);
                }
            }
        }
        chosen
    }

    /// When the first positions have none: the one whose name goes best with the hash, which is the same everywhere.
    fn closest(&self, group: &Group, hash: u64, limit: &Limit) -> Option<u32> {
        let candidates = group.members.iter().filter(|(index, ..)| limit.allows(self, group, *index));
        candidates.max_by_key(|(.., name)| mix(hash ^ name)).map(|(index, ..)| *index)
    }

    /// Nothing in the group will do.
    fn leftover(&self) -> Option<u32> {
        let groups = &self.table.groups;
        let tried = |index: u32| self.ask.tried.contains(index as usize);
        let available = |index: u32| self.endpoints.is_available(index as usize, self.now);
        groups
            .iter()
            .find_map(|group| self.any(group, |index| available(index) && !tried(index)))
            .or_else(|| groups.iter().find_map(|group| self.any(group, |index| !tried(index))))
            .or_else(|| groups.iter().find_map(|group| self.any(group, available)))
            .or_else(|| groups.iter().find_map(|group| self.any(group, |_| true)))
    }

    fn limit(&self) -> Limit {
        match u64::from(self.table.options.hash_balance_factor) {
            0 => Limit::default(),
            factor => Limit { percent: factor.max(100), share: OnceCell::new() },
        }
    }

    /// The requests under way and the weight of those alone that may take some: the average must not sink by the others.
    fn share(&self, group: &Group) -> Share {
        let mut share = Share::default();
        for (index, own, _) in &group.members {
            if self.panic || self.endpoints.is_available(*index as usize, self.now) {
                share.busy += self.endpoints.load(*index as usize).busy() as u64;
                share.weight += u64::from(*own);
            }
        }
        share
    }
}

/// How many requests under way an endpoint may have, itself included: `percent / 100` over all, by weight.
#[derive(Default)]
struct Limit {
    percent: u64,
    /// Of all, looked up when the first busy candidate is judged: an idle one is always within the limit.
    share: OnceCell<Share>,
}

#[derive(Default)]
struct Share {
    busy: u64,
    weight: u64,
}

impl Limit {
    fn allows<E: Endpoints>(&self, turn: &Turn<'_, E>, group: &Group, index: u32) -> bool {
        if !turn.will_do(index) {
            return false;
        }
        if self.percent == 0 {
            return true;
        }
        let busy = turn.endpoints.load(index as usize).busy() as u64;
        if busy == 0 {
            return true;
        }
        let share = self.share.get_or_init(|| turn.share(group));
        // members are in the order of their indices
        let own = group
            .members
            .binary_search_by_key(&index, |(member, ..)| *member)
            .map_or(1, |place| group.members[place].1);
        let most = self
            .percent
            .saturating_mul(share.busy + 1)
            .saturating_mul(u64::from(own))
            .div_ceil((share.weight * 100).max(1));
        busy < most
    }
}
