//! The inference of retries against stories whose truth is known:
//! `tests/corpus`. Prints precision and recall for each story and for all.
use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
    time::Duration,
};

use retryscope::{
    flow::{Attempt, CallId, Failure, Moment, Request, Response},
    process::{Facts, Process, ProcessKey},
    retry::{BodyDigest, Fingerprint, Hint, Ledger, Limits},
};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Story {
    about: String,
    kind: Kind,
    calls: BTreeMap<String, Call>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    #[serde(rename = "retries")]
    Retries,
    #[serde(rename = "look-alike")]
    LookAlike,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Call {
    #[serde(default)]
    process: u32,
    request: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    body: Option<String>,
    attempts: Vec<Vec<Part>>,
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Part {
    Number(u64),
    Word(String),
}

impl Call {
    fn is_like(&self, other: &Self) -> bool {
        (self.process, &self.request, &self.headers, &self.body)
            == (other.process, &other.request, &other.headers, &other.body)
    }
}

impl Part {
    fn number(&self) -> u64 {
        match self {
            Part::Number(number) => *number,
            Part::Word(word) => panic!("`{word}` is no number"),
        }
    }
}

/// An attempt of a story, on the clock.
struct Event<'a> {
    call: &'a Call,
    /// From 0, within its call.
    place: usize,
    start: u64,
    end: u64,
    outcome: Part,
    asked: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Score {
    retries: u64,
    told: u64,
    right: u64,
}

impl Score {
    fn add(&mut self, other: Self) {
        self.retries += other.retries;
        self.told += other.told;
        self.right += other.right;
    }

    fn precision(self) -> f64 {
        if self.told == 0 { 1.0 } else { self.right as f64 / self.told as f64 }
    }

    fn recall(self) -> f64 {
        if self.retries == 0 { 1.0 } else { self.right as f64 / self.retries as f64 }
    }
}

fn events(story: &Story) -> Vec<Event<'_>> {
    let mut events: Vec<_> = story
        .calls
        .values()
        .flat_map(|call| {
            call.attempts.iter().enumerate().map(move |(place, parts)| {
                let start = parts[0].number();
                let (end, outcome) = (start + parts[1].number(), parts[2].clone());
                Event { call, place, start, end, outcome, asked: parts.get(3).map(Part::number) }
            })
        })
        .collect();
    events.sort_by_key(|event| event.start);
    events
}

fn request(event: &Event<'_>, number: usize) -> Request {
    let fill = |text: &str| text.replace("$N", &number.to_string());
    let (method, url) = event.call.request.split_once(' ').expect("a method and a URL");
    let url = fill(url.strip_prefix("https://").expect("https"));
    let at = url.find('/').expect("a path");
    let fields: Vec<(String, String)> =
        event.call.headers.iter().map(|(name, value)| (name.clone(), fill(value))).collect();
    Request {
        method: method.into(),
        authority: url[..at].into(),
        target: url[at..].into(),
        headers: fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
    }
}

fn moment(ms: u64) -> Moment {
    Moment(ms * 1_000_000)
}

fn begin(ledger: &mut Ledger, process: &Arc<Process>, event: &Event<'_>, number: usize) -> Attempt {
    let mut request = request(event, number);
    let refused = matches!(&event.outcome, Part::Word(word) if word == "refused");
    let (hint, digest, host) = if refused {
        let print = Fingerprint::of_connecting(process.key, request.host());
        ledger.connects(print, [192, 0, 2, 1].into(), moment(event.start), moment(event.end));
        request = Request {
            method: "CONNECT".into(),
            authority: request.host().into(),
            target: "".into(),
            headers: request.headers.clone(),
        };
        (Hint { signal: None, print: Some(print), bodiless: true }, None, String::new())
    } else {
        let hint = Hint::of(process.key, &request);
        let digest = (!hint.bodiless).then(|| BodyDigest::of(&request)).flatten().map(|mut digest| {
            digest.add(event.call.body.as_deref().unwrap_or_default().as_bytes());
            digest.finish()
        });
        let host = request.host().to_owned();
        (hint, digest, host)
    };
    let link = ledger.begin(process, &hint, &host, moment(event.start));
    let mut attempt = Attempt::new(Arc::clone(process), request, link, moment(event.start));
    attempt.print = hint.print.map(Fingerprint::number);
    attempt.body_digest = digest;
    attempt.complaint.wait = event.asked.map(Duration::from_millis);
    attempt.ended = Some(moment(event.end));
    attempt
}

fn end(ledger: &mut Ledger, mut attempt: Attempt, event: &Event<'_>) -> (CallId, u32) {
    match &event.outcome {
        Part::Number(status) => {
            let status = u16::try_from(*status).expect("a status");
            attempt.response =
                Some(Response { status, reason: String::new(), headers: attempt.request.headers.clone() });
        }
        Part::Word(word) => {
            attempt.failure = Some(match word.as_str() {
                "reset" => Failure::Reset,
                "closed" => Failure::Closed,
                "timeout" => Failure::TimedOut,
                "cancelled" => Failure::Cancelled,
                "refused" => Failure::Refused,
                other => panic!("`{other}` is no outcome"),
            });
        }
    }
    let link = ledger.finish(&attempt);
    (link.call, link.number)
}

/// Plays a story. A retry is told rightly if it is one, and goes with an
/// earlier attempt of its own call, or of one that nobody could tell from it.
fn play(story: &Story) -> Score {
    let events = events(story);
    let mut steps: Vec<(u64, bool, usize)> = Vec::new();
    for (index, event) in events.iter().enumerate() {
        // At one and the same moment ends come before beginnings.
        steps.push((event.start, true, index));
        steps.push((event.end, false, index));
    }
    steps.sort_unstable();
    let mut ledger = Ledger::new(Limits::default(), Moment(0));
    let mut processes: HashMap<u32, Arc<Process>> = HashMap::new();
    let mut open: HashMap<usize, Attempt> = HashMap::new();
    let mut told: HashMap<usize, (CallId, u32)> = HashMap::new();
    for (_, begins, index) in steps {
        let event = &events[index];
        if begins {
            let process = processes.entry(event.call.process).or_insert_with(|| {
                let key = ProcessKey { pid: 7, start_ticks: u64::from(event.call.process) };
                let facts = Facts { comm: "app".into(), command: "app".into(), ..Facts::default() };
                Arc::new(Process::new(key, 1, 0, facts))
            });
            let begun = begin(&mut ledger, process, event, index);
            open.insert(index, begun);
        } else if let Some(begun) = open.remove(&index) {
            told.insert(index, end(&mut ledger, begun, event));
        }
    }
    let mut score = Score::default();
    for (index, event) in events.iter().enumerate() {
        let (call, number) = told[&index];
        let own = (0..events.len())
            .filter(|other| *other != index && events[*other].end <= event.start)
            .any(|other| told[&other].0 == call && events[other].call.is_like(event.call));
        score.retries += u64::from(event.place > 0);
        score.told += u64::from(number > 1);
        score.right += u64::from(number > 1 && own);
    }
    // What the ledger counts is what it links.
    assert_eq!(ledger.snapshot(moment(1_000_000)).totals.retries_inferred, score.told, "{}", story.about);
    score
}

#[test]
fn precision_and_recall() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .expect("the corpus")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    let (mut all, mut look_alikes, mut truths) = (Score::default(), 0, 0);
    println!("{:24} {:>8} {:>6} {:>6} {:>10} {:>8}", "story", "retries", "told", "right", "precision", "recall");
    let line = |name: &str, score: Score| {
        println!(
            "{name:24} {:>8} {:>6} {:>6} {:>10.3} {:>8.3}",
            score.retries,
            score.told,
            score.right,
            score.precision(),
            score.recall()
        );
    };
    for path in &files {
        let text = std::fs::read_to_string(path).expect("a story");
        let story: Story = toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let score = play(&story);
        line(&path.file_stem().unwrap_or_default().to_string_lossy(), score);
        match story.kind {
            Kind::LookAlike => look_alikes += 1,
            Kind::Retries => truths += 1,
        }
        all.add(score);
    }
    line("all", all);
    assert!(look_alikes >= 10 && truths >= 10, "the corpus is too small to mean anything");
    assert!(all.precision() >= 0.99, "precision {:.4}", all.precision());
    assert!(all.recall() >= 0.97, "recall {:.4}", all.recall());
}
