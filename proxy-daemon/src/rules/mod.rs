//! When → then: which attempts are answered otherwise, and how.
//!
//! In: rule texts from the command line and rule files, then each attempt
//! whose response has come. Out: for each attempt at most one [`Decision`];
//! the first rule that matches makes it. A rule set never changes once made,
//! and a broken one is never made: all its errors are given at once. What is
//! counted lives beside it, in a bounded [`RuleState`].
mod bucket;
mod draw;
mod error;
mod file;
mod guard;
mod live;
mod model;
pub mod presets;
mod schema;
mod state;
mod template;
#[cfg(test)]
mod tests;
mod text;
pub(crate) mod tree;

use std::{collections::HashSet, fmt, path::PathBuf, sync::Arc};

use error::Source as Origin;
pub use error::{RuleError, RuleErrors};
pub use guard::GuardState;
pub use live::{Active, Progress, RuleStatus, Rules, Settings};
pub use model::{
    Abort, Action, Answer, BodyEdit, Delay, Field, Guard, HeaderEdit, Limits, MAX_DELAY, Per, Phase, PresetChoice,
    Rate, RateKey, Reply, Rule, Ruling, Source, Spread, StopWhen, Times, describes_body,
};
pub use schema::schema;
pub use template::Template;

use crate::flow::filter::Filter;

/// The most rules in a set.
pub const MAX_RULES: usize = 1000;
/// The longest name that is given to a rule, in bytes.
const MAX_NAME: usize = 128;
/// Where a name made of a rule's text is cut.
const SHORT_NAME: usize = 72;

/// All rules of an instance, in the order in which they are asked.
#[derive(Clone, Debug, Default)]
pub struct RuleSet {
    entries: Vec<Entry>,
    pub guard: Arc<Guard>,
}

/// A rule, and whether it is switched on.
#[derive(Clone, Debug)]
pub struct Entry {
    pub rule: Arc<Rule>,
    pub enabled: bool,
}

/// A rule as read, before it has a name of its own.
#[derive(Debug)]
struct Draft {
    name: Option<String>,
    /// As it was typed, for a name; where it was not, `text`.
    typed: Option<String>,
    filter: Filter,
    text: String,
    phase: Phase,
    action: Action,
    limits: Limits,
    go_on: bool,
    enabled: bool,
    source: Source,
}

impl RuleSet {
    /// Reads the rules of the command line, then those of files (path and
    /// content), in this order. Everything that is wrong is told at once.
    pub fn parse(cli_rules: &[String], files: &[(PathBuf, String)]) -> Result<Self, RuleErrors> {
        let mut errors = Vec::new();
        let mut drafts = Vec::new();
        let mut names = Names::default();
        for text in cli_rules {
            let source = Origin::command_line(text);
            match text::parse(text) {
                Ok(draft) if draft.name.as_deref().is_some_and(|name| !names.take(name)) => {
                    errors.push(RuleError::general(format!("there are two rules with the same name in `{text}`")));
                }
                Ok(draft) => drafts.push(draft),
                Err(error) => errors.push(source.error(error)),
            }
        }
        let mut guard = Guard::default();
        for (path, content) in files {
            let source = Origin::file(path, content);
            let from = drafts.len();
            let mut wrong = |error| errors.push(source.error(error));
            file::parse(content, path.parent(), &mut names, &mut drafts, &mut guard, &mut wrong);
            drafts[from..].iter_mut().for_each(|draft| draft.source = Source::File(path.clone()));
        }
        Self::bounded(drafts.len(), &mut errors);
        if !errors.is_empty() {
            return Err(RuleErrors(errors));
        }
        let entries = drafts.into_iter().map(|draft| names.rule(draft)).collect();
        Ok(Self { entries, guard: Arc::new(guard) })
    }

    fn bounded(rules: usize, errors: &mut Vec<RuleError>) {
        if rules > MAX_RULES {
            errors.push(RuleError::general(format!("there are {rules} rules; the most is {MAX_RULES}")));
        }
    }

    fn names(&self) -> Names {
        Names { taken: self.entries.iter().map(|entry| entry.rule.name.to_string()).collect() }
    }

    /// With another rule at the end, and the name it was given.
    pub fn with_added(&self, text: &str) -> Result<(Self, String), RuleErrors> {
        let mut errors = Vec::new();
        let mut names = self.names();
        let mut set = self.clone();
        match text::parse(text) {
            Ok(draft) if draft.name.as_deref().is_some_and(|name| !names.take(name)) => {
                errors.push(RuleError::general("another rule has this name; remove that one first".into()));
            }
            Ok(mut draft) => {
                draft.source = Source::Added;
                set.entries.push(names.rule(draft));
            }
            Err(error) => errors.push(Origin::command_line(text).error(error)),
        }
        Self::bounded(set.entries.len(), &mut errors);
        match set.entries.last() {
            Some(last) if errors.is_empty() => {
                let name = last.rule.name.to_string();
                Ok((set, name))
            }
            _ => Err(RuleErrors(errors)),
        }
    }

    /// `None` if no rule has this name.
    pub fn without(&self, name: &str) -> Option<Self> {
        let mut set = self.clone();
        set.entries.retain(|entry| &*entry.rule.name != name);
        (set.entries.len() < self.entries.len()).then_some(set)
    }

    /// `None` if no rule has this name.
    pub fn switched(&self, name: &str, on: bool) -> Option<Self> {
        let mut set = self.clone();
        set.entries.iter_mut().find(|entry| &*entry.rule.name == name)?.enabled = on;
        Some(set)
    }

    /// With the rules of these files (path and content) in place of all that
    /// came from files; they decide which are on.
    pub fn with_files(&self, files: &[(PathBuf, String)]) -> Result<Self, RuleErrors> {
        let fresh = Self::parse(&[], files)?;
        let from_file = |entry: &&Entry| matches!(entry.rule.source, Source::File(_));
        let (typed, added): (Vec<&Entry>, Vec<&Entry>) = self
            .entries
            .iter()
            .filter(|entry| !from_file(entry))
            .partition(|entry| entry.rule.source == Source::CommandLine);
        let mut entries: Vec<Entry> = typed.into_iter().cloned().collect();
        let mut errors = Vec::new();
        let taken: HashSet<_> =
            entries.iter().chain(added.iter().copied()).map(|entry| &entry.rule.name).cloned().collect();
        for entry in &fresh.entries {
            if taken.contains(&entry.rule.name) {
                let message = format!("another rule in force has the name `{}`", entry.rule.name);
                errors.push(RuleError::general(message));
            }
        }
        entries.extend(fresh.entries);
        entries.extend(added.into_iter().cloned());
        Self::bounded(entries.len(), &mut errors);
        if errors.is_empty() { Ok(Self { entries, guard: fresh.guard }) } else { Err(RuleErrors(errors)) }
    }

    /// Another set in this one's place, with what was added to this one while
    /// it was in force.
    pub fn succeeded_by(&self, mut fresh: Self) -> Result<Self, RuleErrors> {
        let added = self.entries.iter().filter(|entry| entry.rule.source == Source::Added);
        let mut errors = Vec::new();
        for entry in added {
            if fresh.entries.iter().any(|other| other.rule.name == entry.rule.name) {
                let message = format!("a rule that was added while running has the name `{}`", entry.rule.name);
                errors.push(RuleError::general(message));
            }
            fresh.entries.push(entry.clone());
        }
        Self::bounded(fresh.entries.len(), &mut errors);
        if errors.is_empty() { Ok(fresh) } else { Err(RuleErrors(errors)) }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// One rule a line, as on the command line.
impl fmt::Display for RuleSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.entries.iter().try_for_each(|entry| writeln!(f, "{entry}"))
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rule.text)?;
        if self.enabled { Ok(()) } else { f.write_str("  (disabled)") }
    }
}

/// Names already given.
#[derive(Debug, Default)]
struct Names {
    taken: HashSet<String>,
}

impl Names {
    /// False if a rule of this name is there already.
    fn take(&mut self, name: &str) -> bool {
        self.taken.insert(header_value(name))
    }

    fn rule(&mut self, draft: Draft) -> Entry {
        let name = match &draft.name {
            // Taken as its file was read.
            Some(name) => header_value(name),
            None => self.make(draft.typed.as_deref().unwrap_or(&draft.text)),
        };
        let rule = Rule {
            name: name.into(),
            text: draft.text,
            source: draft.source,
            filter: draft.filter,
            phase: draft.phase,
            action: draft.action,
            limits: draft.limits,
            go_on: draft.go_on,
        };
        Entry { rule: Arc::new(rule), enabled: draft.enabled }
    }

    /// A name from a rule's text, numbered if it must be.
    fn make(&mut self, text: &str) -> String {
        let mut name = header_value(&text.split_whitespace().collect::<Vec<_>>().join(" "));
        if name.len() > SHORT_NAME {
            name.truncate(SHORT_NAME - 3);
            name.truncate(name.trim_end().len());
            name.push_str("...");
        }
        let first = name.clone();
        let mut number = 1_u32;
        while !self.taken.insert(name.clone()) {
            number += 1;
            name = format!("{first} #{number}");
        }
        name
    }
}

/// The text with everything percent-encoded that a header's value cannot hold
/// or that clients read differently. ASCII.
fn header_value(text: &str) -> String {
    let mut value = String::with_capacity(text.len());
    for char in text.trim().chars() {
        if char == ' ' || char.is_ascii_graphic() {
            value.push(char);
        } else {
            let mut bytes = [0; 4];
            for byte in char.encode_utf8(&mut bytes).bytes() {
                value.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    value
}
