//! What a run must hold to: `--assert 'p99(backoff) < 5s'`.
//!
//! ```text
//! METRIC [{label=GLOB, …}] OPERATOR VALUE
//! METRIC    a count: calls, attempts, retries, give_ups, throttled, …
//!           amplification, stalled_share, …
//!           max(backoff), sum(backoff), avg(backoff), pNN(backoff)
//! label     op, svc, comm, command, unit, container, pid; origin=genuine|injected
//! OPERATOR  <=  <  >=  >  ==  !=
//! VALUE     3, 1.2, 40%, 200ms, 5s, 10MiB
//! ```
//!
//! In: text, and the ledger's [`Snapshot`]. Out: a [`Verdict`] that tells what
//! was measured and where most of it comes from. Everything is taken over all
//! rows that the labels select, as one: `amplification{svc=s3}` is all
//! attempts over all calls of S3.
use std::{fmt, time::Duration};

use super::words::{number, plain};
use crate::{
    flow::filter::{FilterError, Glob},
    process::{container, unit},
    retry::{Class, Connections, Folded, HerdCount, OperationName, ProcessShare, Snapshot, Tally},
};

/// The longest assertion, in bytes.
const MAX_LENGTH: usize = 1024;

/// One condition on a run.
#[derive(Clone, Debug)]
pub struct Assertion {
    text: String,
    metric: Metric,
    labels: Vec<(Label, Glob, String)>,
    origin: Option<Origin>,
    operator: Operator,
    value: f64,
    /// How `value` was given, for explanations.
    shown: String,
}

/// What came of an assertion.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// As it was typed.
    pub assertion: String,
    pub holds: bool,
    /// Nothing was there that the labels select: it holds of nothing.
    pub empty: bool,
    /// One sentence: what was measured, and where most of it comes from.
    pub explanation: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Number,
    /// Milliseconds inside.
    Time,
    /// A part of a whole, 0 to 1.
    Share,
    Bytes,
}

/// What a metric is taken from.
#[derive(Clone, Copy, Debug)]
enum Metric {
    /// A sum over operations.
    Sum(fn(&Tally) -> f64, Unit),
    Class(Class),
    /// A quotient of two sums; the default where the second is 0.
    Quotient(fn(&Tally) -> f64, fn(&Tally) -> f64, Unit, f64),
    Longest,
    Quantile(f64),
    /// A sum over processes.
    Process(fn(&Whole) -> f64, Unit),
    /// Of time observed.
    Stalled,
}

/// What is told of a process as a whole, or of all that were folded.
#[derive(Clone, Copy, Debug)]
struct Whole {
    stalled: Duration,
    observed: Duration,
    herds: HerdCount,
    connections: Connections,
}

impl Whole {
    fn of(share: &ProcessShare) -> Self {
        let ProcessShare { stalled, herds, connections, .. } = *share;
        Self { stalled, observed: share.observed(), herds, connections }
    }

    fn of_folded(folded: &Folded) -> Self {
        let Folded { stalled, observed, herds, connections, .. } = *folded;
        Self { stalled, observed, herds, connections }
    }
}

const METRICS: &[(&str, Metric)] = &[
    ("calls", Metric::Sum(|tally| tally.calls as f64, Unit::Number)),
    ("calls_retried", Metric::Sum(|tally| tally.calls_retried as f64, Unit::Number)),
    ("attempts", Metric::Sum(|tally| tally.attempts as f64, Unit::Number)),
    ("retries", Metric::Sum(|tally| tally.retries() as f64, Unit::Number)),
    ("retries_exact", Metric::Sum(|tally| tally.retries_exact as f64, Unit::Number)),
    ("retries_inferred", Metric::Sum(|tally| tally.retries_inferred as f64, Unit::Number)),
    ("give_ups", Metric::Sum(|tally| tally.give_ups as f64, Unit::Number)),
    ("successes", Metric::Class(Class::Success)),
    ("throttled", Metric::Class(Class::Throttled)),
    ("server_errors", Metric::Class(Class::ServerError)),
    ("timeouts", Metric::Class(Class::Timeout)),
    ("connection_errors", Metric::Class(Class::Connection)),
    ("client_errors", Metric::Class(Class::ClientError)),
    ("cancelled", Metric::Class(Class::Cancelled)),
    ("repeated_writes", Metric::Sum(|tally| tally.repeated as f64, Unit::Number)),
    ("amplification", Metric::Quotient(|tally| tally.attempts as f64, |tally| tally.calls as f64, Unit::Number, 1.0)),
    (
        "retried_share",
        Metric::Quotient(|tally| tally.calls_retried as f64, |tally| tally.calls as f64, Unit::Share, 0.0),
    ),
    (
        "ignored_retry_after",
        Metric::Sum(|tally| tally.asked.followed.saturating_sub(tally.asked.honoured) as f64, Unit::Number),
    ),
    ("wasted_time", Metric::Sum(|tally| ms(tally.wasted.time), Unit::Time)),
    ("wasted_bytes", Metric::Sum(|tally| (tally.wasted.sent + tally.wasted.received) as f64, Unit::Bytes)),
    ("stalled", Metric::Process(|whole| ms(whole.stalled), Unit::Time)),
    ("stalled_share", Metric::Stalled),
    ("synchronised_retries", Metric::Process(|whole| whole.herds.retries as f64, Unit::Number)),
    ("tunnelled", Metric::Process(|whole| whole.connections.tunnelled as f64, Unit::Number)),
    ("refused", Metric::Process(|whole| whole.connections.refused as f64, Unit::Number)),
];

/// What is taken of all waits: `max(backoff)`.
const FUNCTIONS: &[&str] = &["max", "sum", "avg", "p50", "p90", "p95", "p99"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Label {
    Op,
    Svc,
    Comm,
    Command,
    Unit,
    Container,
    Pid,
}

const LABELS: &[(&str, Label)] = &[
    ("op", Label::Op),
    ("svc", Label::Svc),
    ("comm", Label::Comm),
    ("command", Label::Command),
    ("unit", Label::Unit),
    ("container", Label::Container),
    ("pid", Label::Pid),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Genuine,
    Injected,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    AtMost,
    Below,
    AtLeast,
    Above,
    Equal,
    Unequal,
}

/// Longer ones first: `<` begins `<=`.
const OPERATORS: &[(&str, Operator)] = &[
    ("<=", Operator::AtMost),
    (">=", Operator::AtLeast),
    ("==", Operator::Equal),
    ("!=", Operator::Unequal),
    ("<", Operator::Below),
    (">", Operator::Above),
    ("=", Operator::Equal),
];

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Text with places.
struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    fn eat(&mut self, what: &str) -> bool {
        self.space();
        let found = self.rest().starts_with(what);
        self.at += if found { what.len() } else { 0 };
        found
    }

    /// Letters, digits and `_`.
    fn word(&mut self) -> (usize, &'a str) {
        self.space();
        let start = self.at;
        let rest = self.rest();
        let length = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        self.at += length;
        (start, &self.text[start..self.at])
    }

    fn wrong(&self, start: usize, message: impl Into<String>) -> FilterError {
        let end = self.at.max(self.text[start..].chars().next().map_or(start, |c| start + c.len_utf8()));
        FilterError { span: start..end, message: message.into(), help: None }
    }
}

impl Assertion {
    /// Errors know their place, as a filter's do.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        if text.len() > MAX_LENGTH {
            let message = format!("an assertion has at most {MAX_LENGTH} bytes");
            return Err(FilterError { span: 0..text.len(), message, help: None });
        }
        let mut reader = Reader { text, at: 0 };
        let metric = metric(&mut reader)?;
        let (labels, origin) = labels(&mut reader, metric)?;
        reader.space();
        let start = reader.at;
        let operator = OPERATORS.iter().find(|(sign, _)| reader.eat(sign)).map(|(_, operator)| *operator);
        let operator = operator.ok_or_else(|| {
            let mut error = reader.wrong(start, "an operator is missing here");
            error.help = Some("write <=, <, >=, >, == or !=".into());
            error
        })?;
        reader.space();
        let start = reader.at;
        let shown = reader.rest().trim().to_owned();
        reader.at = text.len();
        let value = value(&shown, unit_of(metric)).map_err(|message| reader.wrong(start, message))?;
        Ok(Self { text: text.trim().to_owned(), metric, labels, origin, operator, value, shown })
    }

    /// Whether it holds of the run, and why.
    pub fn check(&self, snapshot: &Snapshot) -> Verdict {
        let measured = self.measure(snapshot, None);
        let holds = match self.operator {
            Operator::AtMost => measured.value <= self.value,
            Operator::Below => measured.value < self.value,
            Operator::AtLeast => measured.value >= self.value,
            Operator::Above => measured.value > self.value,
            Operator::Equal => (measured.value - self.value).abs() < 1e-9,
            Operator::Unequal => (measured.value - self.value).abs() >= 1e-9,
        };
        let unit = unit_of(self.metric);
        let mut explanation = format!("it is {}", show(measured.value, unit));
        if measured.rows == 0 && !self.labels.is_empty() {
            explanation = format!("nothing matched its labels, so {explanation}");
        } else if !holds && matches!(self.operator, Operator::AtMost | Operator::Below | Operator::Equal) {
            explanation = format!("{explanation}, not {} {}", self.sign(), self.shown);
            if let Some(most) = self.most(snapshot) {
                explanation.push_str(&format!("; most of it {most}"));
            }
        } else if !holds {
            explanation = format!("{explanation}, not {} {}", self.sign(), self.shown);
        }
        Verdict { assertion: self.text.clone(), holds, empty: measured.rows == 0, explanation }
    }

    fn sign(&self) -> &'static str {
        OPERATORS.iter().find(|(_, operator)| *operator == self.operator).map_or("", |(sign, _)| sign)
    }

    /// The row that contributes most, where there are several.
    fn most(&self, snapshot: &Snapshot) -> Option<String> {
        let mut most: Option<(f64, String)> = None;
        let mut rows = 0;
        for share in &snapshot.processes {
            let who = || {
                let facts = share.process.facts();
                match share.process.key.pid {
                    0 => format!("in {}", plain(&facts.command)),
                    pid => format!("in {} ({pid})", plain(&facts.command)),
                }
            };
            let by_operation = !matches!(self.metric, Metric::Process(..) | Metric::Stalled);
            let names = share.operations.iter().map(|(name, _)| Some(name)).filter(|_| by_operation);
            for name in names.chain((!by_operation).then_some(None)) {
                let of = self.measure(snapshot, Some((share, name)));
                if of.rows == 0 || of.value <= 0.0 {
                    continue;
                }
                rows += 1;
                if most.as_ref().is_none_or(|most| of.value > most.0) {
                    let what = name.map(|name| format!("{} ", full(name))).unwrap_or_default();
                    most = Some((of.value, format!("{what}{}", who())));
                }
            }
        }
        let (value, name) = most.filter(|_| rows > 1)?;
        Some(format!("{name}: {}", show(value, unit_of(self.metric))))
    }

    /// Over all rows that the labels select; `only`: of these, one process and
    /// perhaps one operation.
    fn measure(&self, snapshot: &Snapshot, only: Option<(&ProcessShare, Option<&OperationName>)>) -> Measured {
        let mut rows = 0;
        let mut sum = Tally::default();
        let (mut of_processes, mut observed) = (0.0, 0.0);
        for share in &snapshot.processes {
            let chosen = only.is_none_or(|(one, _)| one.process.key == share.process.key);
            if !chosen || !self.selects_process(share) {
                continue;
            }
            if let Some(value) = self.of_process(&Whole::of(share)) {
                of_processes += value;
                observed += ms(share.observed());
                rows += 1;
                continue;
            }
            for (name, tally) in &share.operations {
                let chosen = only.and_then(|(_, only)| only).is_none_or(|only| only == name);
                if chosen && self.selects_operation(name) {
                    sum.add_all(tally);
                    rows += 1;
                }
            }
        }
        // Rows that were folded have no names any more.
        if only.is_none() && self.labels.is_empty() && snapshot.folded.processes > 0 {
            let whole = Whole::of_folded(&snapshot.folded);
            sum.add_all(&snapshot.folded.tally);
            of_processes += self.of_process(&whole).unwrap_or(0.0);
            observed += ms(whole.observed);
            rows += 1;
        }
        Measured { rows, value: self.value_of(&sum, of_processes, observed) }
    }

    /// `None` for what is told per operation.
    fn of_process(&self, whole: &Whole) -> Option<f64> {
        match self.metric {
            Metric::Process(of, _) => Some(of(whole)),
            Metric::Stalled => Some(ms(whole.stalled)),
            _ => None,
        }
    }

    fn value_of(&self, sum: &Tally, of_processes: f64, observed: f64) -> f64 {
        match self.metric {
            Metric::Sum(of, _) => of(sum),
            Metric::Class(class) => {
                let count = match self.origin {
                    None => sum.classes.all(class),
                    Some(Origin::Genuine) => sum.classes.genuine(class),
                    Some(Origin::Injected) => sum.classes.injected(class),
                };
                count as f64
            }
            Metric::Quotient(of, by, _, none) => {
                if by(sum) > 0.0 {
                    of(sum) / by(sum)
                } else {
                    none
                }
            }
            Metric::Longest => ms(sum.backoff.max),
            Metric::Quantile(q) => ms(sum.backoff.quantiles.at(q).unwrap_or_default().min(sum.backoff.max)),
            Metric::Process(..) => of_processes,
            Metric::Stalled if observed > 0.0 => of_processes / observed,
            Metric::Stalled => 0.0,
        }
    }

    fn selects_process(&self, share: &ProcessShare) -> bool {
        let facts = share.process.facts();
        self.labels.iter().all(|(label, glob, _)| match label {
            Label::Op | Label::Svc => true,
            Label::Comm => glob.is_match(&facts.comm),
            Label::Command => glob.is_match(&facts.command),
            Label::Pid => glob.is_match(&share.process.key.pid.to_string()),
            Label::Unit => facts.cgroup.as_deref().and_then(unit).is_some_and(|unit| glob.is_match(unit)),
            Label::Container => {
                let id = facts.cgroup.as_deref().and_then(container);
                id.into_iter().chain(facts.container_name.as_deref()).any(|text| glob.is_match(text))
            }
        })
    }

    fn selects_operation(&self, name: &OperationName) -> bool {
        self.labels.iter().all(|(label, glob, text)| match label {
            Label::Svc => name.service.as_deref().is_some_and(|service| glob.is_match(service)),
            // `s3.PutObject`, or `PutObject` of any service.
            Label::Op => glob.is_match(&full(name)) || (!text.contains('.') && glob.is_match(&name.operation)),
            _ => true,
        })
    }
}

#[derive(Clone, Copy, Debug)]
struct Measured {
    rows: usize,
    value: f64,
}

fn full(name: &OperationName) -> String {
    match &name.service {
        Some(service) => format!("{service}.{}", name.operation),
        None => name.operation.to_string(),
    }
}

fn unit_of(metric: Metric) -> Unit {
    match metric {
        Metric::Sum(_, unit) | Metric::Quotient(_, _, unit, _) | Metric::Process(_, unit) => unit,
        Metric::Class(_) => Unit::Number,
        Metric::Longest | Metric::Quantile(_) => Unit::Time,
        Metric::Stalled => Unit::Share,
    }
}

fn metric(reader: &mut Reader<'_>) -> Result<Metric, FilterError> {
    let (start, name) = reader.word();
    if reader.eat("(") {
        let (of, argument) = reader.word();
        if argument != "backoff" {
            let mut error = reader.wrong(of, format!("{name}() is taken of backoff alone"));
            error.help = Some(format!("write {name}(backoff)"));
            return Err(error);
        }
        if !reader.eat(")") {
            return Err(reader.wrong(reader.at, "a closing parenthesis is missing here"));
        }
        return function(name).ok_or_else(|| {
            reader.at = start + name.len();
            let mut error = reader.wrong(start, format!("there is no function {name}()"));
            error.help = Some(format!("there are {}, and any other pNN", FUNCTIONS.join(", ")));
            error
        });
    }
    // `backoff` alone is its sum.
    if name == "backoff" {
        return Ok(Metric::Sum(|tally| ms(tally.backoff.total), Unit::Time));
    }
    METRICS.iter().find(|(known, _)| *known == name).map(|(_, metric)| *metric).ok_or_else(|| {
        reader.at = start + name.len();
        let message = if name.is_empty() { "a metric is missing here".into() } else { format!("there is no {name}") };
        let mut error = reader.wrong(start, message);
        let names = METRICS.iter().map(|(known, _)| *known);
        let near = names.clone().max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
        error.help = match near.filter(|near| strsim::jaro_winkler(near, name) > 0.8) {
            Some(near) => Some(format!("did you mean {near}?")),
            None => Some(format!("there are {}, and max(backoff) and its like", names.collect::<Vec<_>>().join(", "))),
        };
        error
    })
}

fn function(name: &str) -> Option<Metric> {
    Some(match name {
        "max" => Metric::Longest,
        "sum" => Metric::Sum(|tally| ms(tally.backoff.total), Unit::Time),
        "avg" => Metric::Quotient(|tally| ms(tally.backoff.total), |tally| tally.backoff.count as f64, Unit::Time, 0.0),
        _ => {
            // p99 is 0.99, p999 is 0.999.
            let digits = name.strip_prefix('p').filter(|digits| (1..=4).contains(&digits.len()))?;
            let number: u32 = digits.parse().ok()?;
            Metric::Quantile(f64::from(number) / 10_f64.powi(digits.len() as i32))
        }
    })
}

type Labels = (Vec<(Label, Glob, String)>, Option<Origin>);

fn labels(reader: &mut Reader<'_>, metric: Metric) -> Result<Labels, FilterError> {
    let (mut labels, mut origin) = (Vec::new(), None);
    if !reader.eat("{") {
        return Ok((labels, origin));
    }
    while !reader.eat("}") {
        let (start, name) = reader.word();
        if !reader.eat("=") {
            return Err(reader.wrong(start, "a label is written name=value"));
        }
        let at = reader.at;
        let text = label_value(reader);
        if text.is_empty() {
            return Err(reader.wrong(at, "the label's value is missing here"));
        }
        let of_process = matches!(metric, Metric::Process(..) | Metric::Stalled);
        match LABELS.iter().find(|(known, _)| *known == name).map(|(_, label)| *label) {
            Some(Label::Op | Label::Svc) if of_process => {
                return Err(reader.wrong(start, "this is told per process: it has no op and no svc"));
            }
            Some(label) => labels.push((label, Glob::new(&text), text)),
            None if name == "origin" && matches!(metric, Metric::Class(_)) => {
                origin = Some(match text.as_str() {
                    "genuine" => Origin::Genuine,
                    "injected" => Origin::Injected,
                    _ => return Err(reader.wrong(at, "origin is genuine or injected")),
                });
            }
            None if name == "origin" => {
                return Err(reader.wrong(start, "only kinds of outcomes (throttled, timeouts, …) have an origin"));
            }
            None => {
                let mut error = reader.wrong(start, format!("there is no label {name}"));
                let names: Vec<_> = LABELS.iter().map(|(known, _)| *known).collect();
                error.help = Some(format!("there are {} and origin", names.join(", ")));
                return Err(error);
            }
        }
        if !reader.eat(",") && !reader.rest().trim_start().starts_with('}') {
            return Err(reader.wrong(reader.at, "a comma or a closing brace is missing here"));
        }
    }
    Ok((labels, origin))
}

/// Up to a comma or the closing brace, or within quotes.
fn label_value(reader: &mut Reader<'_>) -> String {
    reader.space();
    for quote in ['"', '\''] {
        if let Some(rest) = reader.rest().strip_prefix(quote)
            && let Some(end) = rest.find(quote)
        {
            reader.at += end + 2;
            return rest[..end].to_owned();
        }
    }
    let rest = reader.rest();
    let end = rest.find([',', '}']).unwrap_or(rest.len());
    reader.at += end;
    rest[..end].trim().to_owned()
}

fn value(text: &str, unit: Unit) -> Result<f64, String> {
    let number = |text: &str| text.trim().parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
    let wrong = |example: &str| Err(format!("`{text}` is no such value; write it as in {example}"));
    match unit {
        Unit::Number => number(text).map_or_else(|| wrong("3 or 1.2"), Ok),
        Unit::Share => match text.strip_suffix('%') {
            Some(percent) => number(percent).map_or_else(|| wrong("40%"), |percent| Ok(percent / 100.0)),
            None => number(text).filter(|share| *share <= 1.0).map_or_else(|| wrong("40% or 0.4"), Ok),
        },
        Unit::Time => match (number(text), humantime::parse_duration(text)) {
            (Some(0.0), _) => Ok(0.0),
            (None, Ok(time)) => Ok(ms(time)),
            _ => fractional(text).map_or_else(|| wrong("200ms, 5s or 1m 30s"), Ok),
        },
        Unit::Bytes => {
            let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
            let (digits, suffix) = text.split_at(split);
            let factor = match suffix.trim() {
                "" | "B" => 1.0,
                "kB" | "KB" => 1e3,
                "MB" => 1e6,
                "GB" => 1e9,
                "KiB" => 1024.0,
                "MiB" => 1024.0 * 1024.0,
                "GiB" => 1024.0 * 1024.0 * 1024.0,
                _ => return wrong("10MiB"),
            };
            number(digits).map_or_else(|| wrong("10MiB"), |number| Ok(number * factor))
        }
    }
}

/// `1.5s`, which humantime does not read.
fn fractional(text: &str) -> Option<f64> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (digits, suffix) = text.split_at(split);
    let factor = match suffix.trim() {
        "ms" => 1.0,
        "s" => 1e3,
        "m" | "min" => 6e4,
        "h" => 3.6e6,
        _ => return None,
    };
    Some(digits.parse::<f64>().ok()? * factor)
}

fn show(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Number if value.fract() == 0.0 => number(value as u64),
        Unit::Number => format!("{value:.3}"),
        Unit::Share => format!("{:.1} %", value * 100.0),
        Unit::Time => super::words::duration(value).replace(super::words::GLUE, " "),
        Unit::Bytes => super::words::bytes(value as u64),
    }
}

impl fmt::Display for Assertion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The verdicts as JUnit's XML, for whatever shows test results.
pub fn junit(verdicts: &[Verdict], name: &str, took: Duration) -> Result<String, quick_junit::SerializeError> {
    use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
    let mut report = Report::new("retryscope");
    let mut suite = TestSuite::new(name);
    for verdict in verdicts {
        let status = if verdict.holds {
            TestCaseStatus::success()
        } else {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            status.set_message(format!("{}: {}", verdict.assertion, verdict.explanation)).set_type("assertion");
            status
        };
        let mut case = TestCase::new(verdict.assertion.as_str(), status);
        case.set_classname("retryscope").set_system_out(verdict.explanation.as_str());
        suite.add_test_case(case);
    }
    suite.set_time(took);
    report.add_test_suite(suite);
    report.to_string()
}

#[cfg(test)]
mod tests;
