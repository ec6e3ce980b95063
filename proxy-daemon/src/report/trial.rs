//! What rules would have made of recorded attempts.
//!
//! In: rules and attempts. Out: a line for each attempt that a rule would
//! have acted on, and how often each rule would have. The record cannot show
//! what clients would have done next: attempts that followed are those that
//! happened.
use super::words::plain;
use crate::{
    flow::{Moment, record::Recorded},
    retry::{Fingerprint, Hint, Ledger, Limits},
    rules::{Guard, Phase, Progress, RuleSet, Rules, Settings},
};

pub fn run(set: RuleSet, seed: Option<u64>, attempts: Vec<Recorded>) -> String {
    let seed = seed.or(set.guard.seed).unwrap_or_default();
    let settings = Settings { guard: Guard { seed: Some(seed), ..Guard::default() }, ..Settings::default() };
    let rules = Rules::new(set, settings, Moment::default());
    let mut ledger = Ledger::new(Limits::default(), Moment::default());
    let total = attempts.len();
    let mut text = String::new();
    let mut acted = 0;
    for Recorded { mut attempt, linked, .. } in attempts {
        // What retryscope has recorded knows it already.
        if !linked {
            let hint = Hint::of(attempt.process.key, &attempt.request);
            attempt.link = ledger.begin(&attempt.process, &hint, attempt.request.host(), attempt.started);
            attempt.print = hint.print.map(Fingerprint::number);
        }
        let active = rules.load();
        attempt.call_key = active.call_key(&attempt);
        let mut progress = Progress::default();
        let (response, ended) = (attempt.response.take(), attempt.ended.take());
        let mut rulings = Vec::new();
        rulings.extend(active.rule(Phase::Request, &attempt, &mut progress, attempt.started));
        let answered = rulings.iter().any(|ruling| ruling.reply.is_some() || ruling.abort.is_some());
        attempt.response = response;
        let at = ended.unwrap_or(attempt.started);
        if !answered && attempt.response.is_some() {
            rulings.extend(active.rule(Phase::Response, &attempt, &mut progress, at));
        }
        attempt.ended = Some(at);
        if !linked {
            ledger.finish(&attempt);
        }
        rules.ended(&attempt, at);
        acted += usize::from(!rulings.is_empty());
        for ruling in rulings {
            let genuine = attempt.response.as_ref().map_or_else(|| "-".to_owned(), |it| it.status.to_string());
            let mut told = Vec::new();
            if !ruling.delay.is_zero() {
                told.push(format!("after {}", humantime::format_duration(ruling.delay)));
            }
            if let Some(reply) = &ruling.reply {
                told.push(reply.status.to_string());
            }
            told.extend(ruling.abort.map(|abort| abort.name().to_owned()));
            text.push_str(&plain(&format!(
                "{} {} attempt {}: {genuine} -> {}  by {}",
                attempt.request.method,
                attempt.request.url(),
                attempt.link.number,
                told.join(" "),
                ruling.rule
            )));
            text.push('\n');
        }
    }
    text.push_str(&format!("{acted} of {total} attempts would have been acted on; seed {seed}\n"));
    if acted > 0 {
        text.push_str(
            "What clients would have done next is not in a recording: later attempts are those that happened.\n",
        );
    }
    for rule in rules.list() {
        text.push_str(&plain(&format!("{:>8}  {}", rule.hits, rule.name)));
        text.push('\n');
    }
    text
}
