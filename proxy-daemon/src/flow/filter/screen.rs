//! Which of many filters may match: one pass over each text for all of them.
//!
//! Rules come by the hundred, and hardly any is about the attempt at hand. Of
//! each filter one thing is kept without which it cannot match: a word that a
//! text must hold, the service's name, a number. The words of all filters are
//! looked for together (Aho-Corasick), once in each text; what is left of a
//! filter that cannot match is a bit that is not set. Bodies are not looked
//! at: whether one has been read yet is not for the screen to know.
use std::{cell::RefCell, collections::HashMap};

use aho_corasick::{AhoCorasick, AhoCorasickKind};

use super::{
    Filter,
    matcher::Matcher,
    pattern::NameGlob,
    syntax::Numbers,
    view::{Form, Text, View},
};
use crate::flow::Attempt;

/// A filter that could match by more different words than these is asked.
const MAX_WORDS: usize = 8;

/// What a filter needs.
#[derive(Clone, Copy, Debug)]
enum Guard {
    /// Nothing that is known here: it has to be asked.
    Open,
    /// One of these bits, a range of `Screen::choices`.
    Bits(u32, u32),
    Fact(fn(&Attempt) -> bool),
    Number(fn(&Attempt) -> Option<u32>, Numbers),
}

/// The words to look for in one text. Their bits are `from..to`.
#[derive(Debug)]
struct Words {
    text: Text,
    search: AhoCorasick,
    from: u32,
    to: u32,
}

/// Many filters, in order.
#[derive(Debug, Default)]
pub struct Screen {
    guards: Box<[Guard]>,
    choices: Box<[u32]>,
    words: Box<[Words]>,
    /// Names that are asked once for all filters, each with its bit.
    names: Box<[(NameGlob, u32)]>,
    bits: usize,
}

thread_local! {
    /// Used again by the next attempt on this thread.
    static FOUND: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

impl Screen {
    pub fn new<'a>(filters: impl IntoIterator<Item = &'a Filter>) -> Self {
        let mut plan = Plan::default();
        let needs: Vec<Need<'a>> = filters.into_iter().map(|filter| need(&filter.matcher)).collect();
        for need in &needs {
            plan.enter(need);
        }
        plan.build(&needs)
    }

    /// Calls `then` with the place of every filter that may match, in order,
    /// until it answers false.
    pub fn each(&self, view: &View<'_>, mut then: impl FnMut(usize) -> bool) {
        let taken = FOUND.try_with(|found| std::mem::take(&mut *found.borrow_mut()));
        let mut found = taken.unwrap_or_default();
        found.clear();
        found.resize(self.bits.div_ceil(64), 0);
        self.look(view, &mut found);
        for (place, guard) in self.guards.iter().enumerate() {
            if self.may_match(*guard, view, &found) && !then(place) {
                break;
            }
        }
        // A thread that is ending has nowhere to keep it.
        let _ = FOUND.try_with(|kept| *kept.borrow_mut() = found);
    }

    fn look(&self, view: &View<'_>, found: &mut [u64]) {
        for words in &self.words {
            // A text that is not there holds nothing.
            let Some(hay) = view.text(words.text) else { continue };
            if hay.ascii {
                for word in words.search.find_overlapping_iter(&hay.lower) {
                    set(found, words.from + word.pattern().as_u32());
                }
            } else {
                (words.from..words.to).for_each(|bit| set(found, bit));
            }
        }
        for (name, bit) in &self.names {
            if name.is_match(&view.attempt.operation) {
                set(found, *bit);
            }
        }
    }

    fn may_match(&self, guard: Guard, view: &View<'_>, found: &[u64]) -> bool {
        match guard {
            Guard::Open => true,
            Guard::Bits(from, to) => self
                .choices
                .get(from as usize..to as usize)
                .is_none_or(|choices| choices.iter().any(|bit| is_set(found, *bit))),
            Guard::Fact(fact) => fact(view.attempt),
            Guard::Number(of, within) => of(view.attempt).is_some_and(|number| within.contains(number)),
        }
    }
}

fn set(found: &mut [u64], bit: u32) {
    if let Some(word) = found.get_mut(bit as usize / 64) {
        *word |= 1 << (bit % 64);
    }
}

fn is_set(found: &[u64], bit: u32) -> bool {
    found.get(bit as usize / 64).is_none_or(|word| word >> (bit % 64) & 1 == 1)
}

/// As [`Guard`], before the bits are given out.
#[derive(Debug)]
enum Need<'a> {
    Nothing,
    /// One of the words, in one of the texts.
    Words(&'a [Text], Vec<&'a [u8]>),
    Name(&'a NameGlob),
    Fact(fn(&Attempt) -> bool),
    Number(fn(&Attempt) -> Option<u32>, Numbers),
}

impl Need<'_> {
    /// Which of several to keep: what tells most attempts apart for least.
    fn worth(&self) -> usize {
        match self {
            Need::Nothing => 0,
            Need::Fact(_) => 1,
            Need::Words(_, words) if words.iter().any(|word| word.len() < 3) => 2,
            Need::Number(..) => 3,
            Need::Name(_) => 4,
            Need::Words(_, words) => 5 + words.iter().map(|word| word.len()).min().unwrap_or(0),
        }
    }
}

/// What every attempt that matches has.
fn need(matcher: &Matcher) -> Need<'_> {
    match matcher {
        Matcher::All(parts) => {
            parts.iter().map(need).reduce(|best, next| if next.worth() > best.worth() { next } else { best })
        }
        Matcher::Search { texts, pattern } if texts.iter().all(|text| text.form() != Form::Body) => {
            pattern.words().filter(|words| words.len() <= MAX_WORDS).map(|words| Need::Words(texts, words))
        }
        Matcher::Name(glob) => Some(Need::Name(glob)),
        Matcher::Fact { fact, .. } => Some(Need::Fact(*fact)),
        Matcher::Number { of, within, .. } => Some(Need::Number(*of, *within)),
        Matcher::Any(_) | Matcher::Not(_) | Matcher::Time { .. } | Matcher::Search { .. } => None,
    }
    .unwrap_or(Need::Nothing)
}

/// Who is looked for where, each word of a text once.
#[derive(Debug, Default)]
struct Plan<'a> {
    texts: Vec<(Text, HashMap<&'a [u8], u32>)>,
    names: HashMap<&'a NameGlob, u32>,
}

impl<'a> Plan<'a> {
    fn enter(&mut self, need: &Need<'a>) {
        match need {
            Need::Words(texts, words) => {
                for text in *texts {
                    let known = self.words(*text);
                    for word in words {
                        let next = index(known.len());
                        known.entry(word).or_insert(next);
                    }
                }
            }
            Need::Name(name) => {
                let next = index(self.names.len());
                self.names.entry(name).or_insert(next);
            }
            Need::Nothing | Need::Fact(_) | Need::Number(..) => {}
        }
    }

    fn words(&mut self, text: Text) -> &mut HashMap<&'a [u8], u32> {
        let at = self.texts.iter().position(|(known, _)| *known == text).unwrap_or_else(|| {
            self.texts.push((text, HashMap::new()));
            self.texts.len() - 1
        });
        &mut self.texts[at].1
    }

    fn build(mut self, needs: &[Need<'a>]) -> Screen {
        let mut bits = 0;
        let mut words = Vec::new();
        for (text, known) in &self.texts {
            let mut list = vec![&b""[..]; known.len()];
            known.iter().for_each(|(word, place)| list[*place as usize] = word);
            let from = bits;
            bits += index(list.len());
            // Compact, as it is cold whenever it is needed. It fails for what
            // is too large: such a text is not looked at.
            let search = AhoCorasick::builder().kind(Some(AhoCorasickKind::ContiguousNFA)).build(list);
            words.push((*text, from, bits, search.ok()));
        }
        let first_name = bits;
        bits += index(self.names.len());
        let mut choices = Vec::new();
        let mut guards = Vec::new();
        for need in needs {
            let before = index(choices.len());
            guards.push(match need {
                Need::Nothing => Guard::Open,
                Need::Fact(fact) => Guard::Fact(*fact),
                Need::Number(of, within) => Guard::Number(*of, *within),
                Need::Name(name) => {
                    choices.extend(self.names.get(name).map(|place| first_name + place));
                    Guard::Bits(before, index(choices.len()))
                }
                Need::Words(texts, wanted) => {
                    let mut searched = true;
                    for text in *texts {
                        let known = words.iter().find(|(other, ..)| other == text);
                        let Some((_, from, _, Some(_))) = known else {
                            searched = false;
                            continue;
                        };
                        let from = *from;
                        let places = self.words(*text);
                        choices.extend(wanted.iter().filter_map(|word| places.get(word).map(|place| from + place)));
                    }
                    if searched { Guard::Bits(before, index(choices.len())) } else { Guard::Open }
                }
            });
        }
        let words =
            words.into_iter().filter_map(|(text, from, to, search)| Some(Words { text, search: search?, from, to }));
        let names = self.names.into_iter().map(|(name, place)| (name.clone(), first_name + place));
        Screen {
            guards: guards.into(),
            choices: choices.into(),
            words: words.collect(),
            names: names.collect(),
            bits: bits as usize,
        }
    }
}

fn index(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
