//! What servers may take a path for.
//!
//! They differ in how often they decode it, and whether that leaves `%2F` as it is; in when they drop path parameters (`;x=1`): before a decoding, after it or
//! never; and in whether a `\` parts segments and a NUL ends the path. All of it together makes the [`READINGS`]: [`TEXTS`] by what is decoded and dropped,
//! and of each text itself and what is left of it without its dot segments, walked in the four ways of [`Walk`]. That a service keeps an encoded slash and decodes again is not among
//! them: then the second decoding is of all.

use std::{borrow::Cow, cell::OnceCell};

use crate::percent::triplet;

/// The path as it came, and one for each of [`STEPS`]. A proxy behind this one may decode before the application does, so they go two decodings deep.
const TEXTS: usize = 1 + STEPS.len();

/// How many readings a path has that is not plain, many of them the same in most. They are made once for a request, at a cost in memory and time of so many times the
/// path's length at most; so one that is longer than [`MAX_ODD`] has none.
pub(super) const READINGS: usize = TEXTS * (1 + WALKS);

/// The longest path that is read where it is not plain, in bytes. No application has such paths, and a head may be full of one.
pub(super) const MAX_ODD: usize = 8 << 10;

/// How one text is made of another.
struct Step {
    /// Which one, by its place.
    from: usize,
    /// Parameters are dropped before anything is decoded.
    cuts: bool,
    decodes: Octets,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Octets {
    /// What may be decoded without a change of meaning (RFC 3986 section 2.3).
    Unreserved,
    AllButSlash,
    All,
}

const fn step(from: usize, cuts: bool, decodes: Octets) -> Step {
    Step { from, cuts, decodes }
}

/// The first is the normal form of RFC 3986 section 6.2.2, but for its dot segments. Each that cuts stands behind the one that is the same but for that.
const STEPS: [Step; 9] = [
    step(0, false, Octets::Unreserved),
    step(0, false, Octets::AllButSlash),
    step(0, true, Octets::AllButSlash),
    step(0, false, Octets::All),
    step(0, true, Octets::All),
    step(4, false, Octets::All),
    step(4, true, Octets::All),
    step(5, false, Octets::All),
    step(5, true, Octets::All),
];

impl Octets {
    fn contain(self, octet: u8) -> bool {
        match self {
            Self::Unreserved => octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'.' | b'_' | b'~'),
            Self::AllButSlash => octet != b'/',
            Self::All => true,
        }
    }
}

/// Byte strings one after another, each different from those before it.
#[derive(Debug)]
struct Distinct {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Distinct {
    fn get(&self, index: usize) -> &[u8] {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..self.ends[index]]
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.ends.len()).map(|index| self.get(index))
    }

    /// The index of what is there, or is put there.
    fn index_of(&mut self, bytes: &[u8]) -> usize {
        let known = self.iter().position(|own| own == bytes);
        known.unwrap_or_else(|| {
            self.bytes.extend_from_slice(bytes);
            self.ends.push(self.bytes.len());
            self.ends.len() - 1
        })
    }
}

/// The texts of a path, before dot segments are looked for.
#[derive(Debug)]
pub(super) struct Texts {
    distinct: Distinct,
    /// Which it is, by place.
    places: [usize; TEXTS],
}

impl Texts {
    pub(super) fn of(path: &[u8]) -> Self {
        let mut distinct =
            Distinct { bytes: Vec::with_capacity(4 * path.len()), ends: Vec::with_capacity(READINGS) };
        let mut places = [0; TEXTS];
        let mut text = Vec::with_capacity(path.len());
        distinct.index_of(path);
        for (place, step) in (1..).zip(&STEPS) {
            let from = distinct.get(places[step.from]);
            places[place] = if step.cuts && !from.contains(&b';') {
                // as the one before it, which differs in that alone
                places[place - 1]
            } else if !step.cuts && !from.contains(&b'%') {
                places[step.from]
            } else {
                text.clear();
                decode(from, step, &mut text);
                distinct.index_of(&text)
            };
        }
        Self { distinct, places }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.distinct.iter()
    }

    /// Those that keep all that is written, the one in normal form first.
    pub(super) fn whole(&self) -> impl Iterator<Item = &[u8]> {
        let whole = (1..).zip(&STEPS).filter(|(_, step)| !step.cuts && step.from != 5);
        whole.map(|(place, _)| self.distinct.get(self.places[place]))
    }
}

fn decode(path: &[u8], step: &Step, out: &mut Vec<u8>) {
    let mut rest = path;
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, triplet(tail)) {
            (b';', _) if step.cuts => {
                rest = tail.iter().position(|byte| *byte == b'/').map_or(&[], |slash| &tail[slash..]);
            }
            (b'%', Some(octet)) => {
                if step.decodes.contain(octet) {
                    out.push(octet);
                } else {
                    // RFC 3986 section 6.2.2.1: with capital digits they compare equal
                    out.extend([b'%', tail[0].to_ascii_uppercase(), tail[1].to_ascii_uppercase()]);
                }
                rest = &tail[2..];
            }
            _ => out.push(*first),
        }
    }
}

/// How segments are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Walk {
    /// Parameters are no part of them.
    pub(super) drops_parameters: bool,
    /// A `\` parts them, too, and a NUL ends the path.
    pub(super) takes_backslashes: bool,
}

const WALKS: usize = 4;

impl Walk {
    /// By number: those that do less stand before those that do more.
    const fn number(number: usize) -> Self {
        Self { drops_parameters: number & 1 != 0, takes_backslashes: number & 2 != 0 }
    }

    /// For each walk by its number the least that comes to the same for this text.
    fn least(text: &[u8]) -> [usize; WALKS] {
        let parameters = usize::from(text.contains(&b';'));
        let backslashes = usize::from(text.iter().any(|byte| matches!(byte, b'\\' | 0)));
        let matter = parameters | backslashes << 1;
        std::array::from_fn(|number| number & matter)
    }

    /// All that differ for this text.
    pub(super) fn all(text: &[u8]) -> impl Iterator<Item = Self> {
        let least = Self::least(text);
        (0..WALKS).filter(move |number| least[*number] == *number).map(Self::number)
    }

    /// Walks the segments and keeps the path so far, each segment after a slash, in `normal`. Stops with `true` as
    /// soon as `covered` holds: for the root at first, then after each segment. What a later `..` takes away has
    /// counted, so that servers which keep dot segments are covered, too.
    pub(super) fn go(self, path: &[u8], normal: &mut Vec<u8>, covered: impl Fn(&[u8]) -> bool) -> bool {
        normal.clear();
        if covered(normal) {
            return true;
        }
        let backslashes = self.takes_backslashes;
        let end = path.iter().position(|byte| backslashes && *byte == 0).unwrap_or(path.len());
        for segment in path[..end].split(|byte| *byte == b'/' || (backslashes && *byte == b'\\')) {
            let parameters = segment.iter().position(|byte| self.drops_parameters && *byte == b';');
            match &segment[..parameters.unwrap_or(segment.len())] {
                b"" | b"." => {}
                b".." => {
                    let parent = normal.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                    normal.truncate(parent);
                }
                name => {
                    normal.push(b'/');
                    normal.extend_from_slice(name);
                    if covered(normal) {
                        return true;
                    }
                }
            }
        }
        false
    }
}

/// Whether all readings of the path are the path itself: it begins with a slash, has no empty segment but perhaps the
/// last, none that begins with a dot, and nothing to decode or to disagree about.
pub(super) fn is_plain(path: &[u8]) -> bool {
    path.first() == Some(&b'/')
        && !path.iter().any(|byte| matches!(byte, b'%' | b'\\' | b';' | 0))
        && !path.windows(2).any(|pair| matches!(pair, b"//" | b"/."))
}

/// All readings of a path, in a fixed order: each text, and what the walks make of it.
#[derive(Debug)]
pub(in crate::filter) enum Readings<'p> {
    /// All are this one.
    Plain(&'p [u8]),
    Odd(Box<Odd>),
    /// They are not made, and taken for whatever is on the strict side.
    TooLong,
}

/// The readings of a path that is not plain.
#[derive(Debug)]
pub(in crate::filter) struct Odd {
    pub(super) texts: Texts,
    /// Made when it is asked for: prefixes need the texts alone.
    walked: OnceCell<Walked>,
}

/// The texts, and what the walks make of them.
#[derive(Debug)]
struct Walked {
    all: Distinct,
    /// Which it is, by place.
    places: [usize; READINGS],
}

impl Odd {
    fn of(path: &[u8]) -> Self {
        Self { texts: Texts::of(path), walked: OnceCell::new() }
    }

    fn walked(&self) -> &Walked {
        self.walked.get_or_init(|| Walked::of(&self.texts))
    }
}

impl Walked {
    fn of(texts: &Texts) -> Self {
        let length = texts.distinct.get(0).len();
        let mut all = Distinct { bytes: Vec::with_capacity(4 * length), ends: Vec::with_capacity(READINGS) };
        let mut places = [0; READINGS];
        let mut normal = Vec::with_capacity(length + 1);
        for (text, index) in texts.places.iter().enumerate() {
            let own = text * (1 + WALKS);
            // a text that was there before has the readings that it had
            if let Some(before) = texts.places[..text].iter().position(|other| other == index) {
                places.copy_within(before * (1 + WALKS)..(before + 1) * (1 + WALKS), own);
                continue;
            }
            let bytes = texts.distinct.get(*index);
            places[own] = all.index_of(bytes);
            for (number, least) in Walk::least(bytes).into_iter().enumerate() {
                places[own + 1 + number] = if least < number {
                    places[own + 1 + least]
                } else {
                    Walk::number(number).go(bytes, &mut normal, |_| false);
                    all.index_of(&normal)
                };
            }
        }
        Self { all, places }
    }
}

impl<'p> Readings<'p> {
    pub(in crate::filter) fn of(path: &'p [u8]) -> Self {
        match path {
            _ if is_plain(path) => Self::Plain(path),
            _ if path.len() > MAX_ODD => Self::TooLong,
            _ => Self::Odd(Box::new(Odd::of(path))),
        }
    }

    /// Whether it holds for one of them.
    pub(in crate::filter) fn any(&self, holds: impl Fn(&[u8]) -> bool) -> bool {
        match self {
            Self::Plain(path) => holds(path),
            Self::Odd(odd) => odd.walked().all.iter().any(holds),
            Self::TooLong => true,
        }
    }

    /// Whether it holds for each of them.
    pub(in crate::filter) fn every(&self, holds: impl Fn(&[u8]) -> bool) -> bool {
        match self {
            Self::Plain(path) => holds(path),
            Self::Odd(odd) => odd.walked().all.iter().all(holds),
            Self::TooLong => false,
        }
    }

    /// Whether it holds for each of them and the same reading of what is written in a rule.
    pub(in crate::filter) fn agree(&self, written: &Written, holds: impl Fn(&[u8], &[u8]) -> bool) -> bool {
        match (self, &written.places) {
            (Self::TooLong, _) => false,
            (Self::Odd(odd), Some(places)) => {
                let Walked { all, places: own } = odd.walked();
                own.iter().zip(places.iter()).all(|(of, to)| holds(all.get(*of), &written.all[*to]))
            }
            (_, None) => self.every(|path| holds(path, &written.all[0])),
            (Self::Plain(path), Some(_)) => written.all.iter().all(|own| holds(path, own)),
        }
    }
}

/// The readings of a path in a rule, each without its trailing slash.
#[derive(Debug)]
pub(in crate::filter) struct Written {
    /// At least one.
    all: Box<[Box<[u8]>]>,
    /// Which it is, by place; `None` where there is only one.
    places: Option<Box<[usize; READINGS]>>,
}

impl Written {
    /// A leading slash is added.
    pub(in crate::filter) fn of(path: &str) -> Self {
        let slashed =
            if path.starts_with('/') { Cow::Borrowed(path) } else { Cow::Owned(format!("/{path}")) };
        let path = slashed.as_bytes();
        if is_plain(path) {
            return Self { all: Box::new([trimmed(path).into()]), places: None };
        }
        // however long: who writes rules means well
        let Walked { all, places } = Walked::of(&Texts::of(path));
        Self { all: all.iter().map(|path| trimmed(path).into()).collect(), places: Some(Box::new(places)) }
    }

    /// Whether it holds for one of them.
    pub(in crate::filter) fn any(&self, holds: impl Fn(&[u8]) -> bool) -> bool {
        self.all.iter().any(|own| holds(own))
    }
}

/// Whether a path is this prefix, which has no trailing slash, or below it.
pub(in crate::filter) fn is_under(path: &[u8], prefix: &[u8]) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// A trailing slash is no difference.
pub(in crate::filter) fn trimmed(path: &[u8]) -> &[u8] {
    path.strip_suffix(b"/").unwrap_or(path)
}
