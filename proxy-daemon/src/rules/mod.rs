//! When → then: which attempts are answered otherwise, and how.
//!
//! In: rule texts from the command line and rule files, then each attempt
//! whose response has come. Out: for each attempt at most one [`Decision`];
//! the first rule that matches makes it. A rule set never changes once made,
//! and a broken one is never made: all its errors are given at once. What is
//! counted lives beside it, in a bounded [`RuleState`].
mod error;
mod file;
mod state;
#[cfg(test)]
mod tests;
mod text;

use std::{collections::HashSet, fmt, path::PathBuf, sync::Arc};

use error::Source;
pub use error::{RuleError, RuleErrors};
pub use state::RuleState;

use crate::flow::{
    Attempt,
    filter::{Filter, View},
};

/// The most rules in a set.
pub const MAX_RULES: usize = 1000;
/// The longest name that is given to a rule, in bytes.
const MAX_NAME: usize = 128;
/// Where a name made of a rule's text is cut.
const SHORT_NAME: usize = 72;

/// All rules of an instance, in the order in which they are asked.
#[derive(Debug, Default)]
pub struct RuleSet {
    rules: Vec<Rule>,
}

/// One rule.
#[derive(Debug)]
pub struct Rule {
    /// Fit for a header's value as it is, and no other rule's.
    name: Arc<str>,
    /// As on the command line.
    text: String,
    filter: Filter,
    action: Action,
    times: Option<Times>,
    enabled: bool,
}

/// What a rule does to a response; its body and other headers stay.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Action {
    status: u16,
    reason: Option<Arc<str>>,
}

/// A rule acts on the first `count` attempts that it matches, for each `per`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Times {
    count: u32,
    per: Per,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Per {
    Call,
    Process,
    Operation,
    Rule,
}

impl Per {
    const ALL: [Per; 4] = [Per::Call, Per::Process, Per::Operation, Per::Rule];

    fn name(self) -> &'static str {
        match self {
            Per::Call => "call",
            Per::Process => "process",
            Per::Operation => "operation",
            Per::Rule => "rule",
        }
    }
}

/// A rule as read, before it has a name of its own.
#[derive(Debug)]
struct Draft {
    name: Option<String>,
    filter: Filter,
    text: String,
    action: Action,
    times: Option<Times>,
    enabled: bool,
}

/// What a rule says of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The rule's name: a valid header value, for `x-retryscope-rule`.
    pub rule: Arc<str>,
    /// The rule's place in its set.
    pub index: usize,
    /// 200 to 599. 204 and 304 cannot carry the body that the response has.
    pub status: u16,
    /// Printable ASCII; the status's usual phrase where none is given.
    pub reason: Option<Arc<str>>,
}

impl RuleSet {
    /// Reads the rules of the command line, then those of files (path and
    /// content), in this order. Everything that is wrong is told at once.
    pub fn parse(cli_rules: &[String], files: &[(PathBuf, String)]) -> Result<Self, RuleErrors> {
        let mut errors = Vec::new();
        let mut drafts = Vec::new();
        let mut names = Names::default();
        for text in cli_rules {
            let source = Source::command_line(text);
            match text::parse(text) {
                Ok(draft) => drafts.push(draft),
                Err(error) => errors.push(source.error(error)),
            }
        }
        for (path, content) in files {
            let source = Source::file(path, content);
            file::parse(content, &mut names, &mut drafts, &mut |error| errors.push(source.error(error)));
        }
        if drafts.len() > MAX_RULES {
            errors.push(RuleError::general(format!("there are {} rules; the most is {MAX_RULES}", drafts.len())));
        }
        if !errors.is_empty() {
            return Err(RuleErrors(errors));
        }
        Ok(Self { rules: drafts.into_iter().map(|draft| names.rule(draft)).collect() })
    }

    /// What becomes of an attempt whose response has come. Counts a hit.
    /// `state` is this set's own ([`RuleState::new`]).
    pub fn decide(&self, attempt: &Attempt, state: &RuleState) -> Option<Decision> {
        if self.rules.is_empty() || attempt.response.is_none() {
            return None;
        }
        let view = View::new(attempt);
        self.rules.iter().enumerate().find_map(|(index, rule)| {
            let hit = rule.enabled
                && rule.filter.matches_view(&view)
                && rule.times.is_none_or(|times| state.take(index, times, attempt));
            hit.then(|| {
                state.count(index);
                Decision {
                    rule: Arc::clone(&rule.name),
                    index,
                    status: rule.action.status,
                    reason: rule.action.reason.clone(),
                }
            })
        })
    }

    /// Names and hits, in order; names without hits too.
    pub fn rules<'a>(&'a self, state: &'a RuleState) -> impl Iterator<Item = (&'a Arc<str>, u64)> {
        self.rules.iter().enumerate().map(|(index, rule)| (&rule.name, state.hits(index)))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter()
    }

    pub fn len(&self) -> usize {
        self.rules.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }
}

impl Rule {
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub fn filter(&self) -> &Filter {
        &self.filter
    }

    pub fn status(&self) -> u16 {
        self.action.status
    }

    pub fn is_enabled(&self) -> bool {
        self.enabled
    }
}

/// One rule a line, as on the command line.
impl fmt::Display for RuleSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rules.iter().try_for_each(|rule| writeln!(f, "{rule}"))
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
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

    fn rule(&mut self, draft: Draft) -> Rule {
        let name = match &draft.name {
            // Taken as its file was read.
            Some(name) => header_value(name),
            None => self.make(&draft.text),
        };
        Rule {
            name: name.into(),
            text: draft.text,
            filter: draft.filter,
            action: draft.action,
            times: draft.times,
            enabled: draft.enabled,
        }
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
