//! What a rule is, as a value: a filter, an action, limits. And what rules
//! make of one attempt, ready for the data path: a [`Ruling`].
use std::{num::NonZeroU32, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;

use super::{presets::Preset, template::Template};
use crate::flow::filter::Filter;

/// When a rule acts on an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Before the upstream sees the request. An answer given here is never
    /// known to it.
    Request,
    /// Once the upstream has answered: it did happen, and the client is told
    /// otherwise.
    Response,
}

/// One rule. Never changes; whether it is switched on is its set's to say.
#[derive(Debug)]
pub struct Rule {
    /// Fit for a header's value as it is, and no other rule's.
    pub name: Arc<str>,
    /// The canonical one-line form, as on the command line. Two rules with
    /// the same name and text are the same rule, also across reloads.
    pub text: String,
    pub source: Source,
    pub filter: Filter,
    pub phase: Phase,
    pub action: Action,
    pub limits: Limits,
    /// Later rules are asked as well, and their doings are joined to this
    /// one's; otherwise the first that acts is the last.
    pub go_on: bool,
}

/// Where a rule came from: a reload replaces what came from files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    CommandLine,
    File(PathBuf),
    /// Added to the running instance.
    Added,
}

/// What a rule does. With nothing in it the attempt passes, and no later rule
/// is asked (`pass`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Action {
    /// Comes first: the answer, the abort or the genuine traffic after it.
    pub delay: Option<Delay>,
    /// The rule acts only on what exceeds this.
    pub limit: Option<Rate>,
    pub answer: Option<Answer>,
    /// Only [`Abort::Truncate`] goes together with an answer.
    pub abort: Option<Abort>,
}

/// How long to wait, drawn anew for each attempt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Delay {
    pub of: Spread,
    /// No draw is longer than this, nor than [`MAX_DELAY`].
    pub cap: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Spread {
    Fixed(Duration),
    Uniform {
        from: Duration,
        to: Duration,
    },
    /// Draws below zero are zero.
    Normal {
        mean: Duration,
        deviation: Duration,
    },
}

/// The longest that a rule holds an attempt up.
pub const MAX_DELAY: Duration = Duration::from_secs(3600);

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Tokens that come in each `per`; above zero.
    pub count: f64,
    pub per: Duration,
    /// The most tokens there are; where not given, a tenth of a second's
    /// worth, and at least one.
    pub burst: Option<NonZeroU32>,
    pub key: RateKey,
}

/// What has a bucket of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RateKey {
    Rule,
    Host,
    Operation,
    Process,
    /// S3's: the bucket.
    Bucket,
    /// S3's: the bucket, and the key up to its last slash.
    Prefix,
}

/// Changes to a response (response phase), or a whole one (request phase:
/// there a status or a preset is needed).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    pub preset: Option<PresetChoice>,
    /// 200 to 599. What is given here wins over the preset's.
    pub status: Option<u16>,
    /// Printable ASCII.
    pub reason: Option<Arc<str>>,
    /// In order.
    pub headers: Vec<HeaderEdit>,
    pub body: Option<BodyEdit>,
    /// Request phase: the client's body is let in first (with `100 Continue`
    /// where the client waits for it), then comes the answer. Otherwise the
    /// answer comes in place of `100 Continue`.
    pub continue_then: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PresetChoice {
    Named(&'static Preset),
    /// The throttle that the attempt's own service would answer with.
    Throttle,
}

#[derive(Clone, Debug, PartialEq)]
pub enum HeaderEdit {
    /// In place of every field of this name.
    Set(Arc<str>, Template),
    Add(Arc<str>, Template),
    Remove(Arc<str>),
}

#[derive(Clone, Debug, PartialEq)]
pub enum BodyEdit {
    Text(Template),
    /// Bytes of a file, read when the rule was read.
    File(PathBuf, Bytes),
    /// An RFC 7396 merge patch to a JSON body. Response phase.
    Merge(serde_json::Value),
}

/// How an attempt is broken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Abort {
    /// The TCP connection is reset.
    Reset,
    /// The connection is closed, properly, without an answer.
    Close,
    /// The answer breaks off after so many bytes of its body.
    Truncate(u64),
    /// Neither an answer nor an end: until the client gives up, or this time
    /// has passed and the connection is closed.
    Stall(Option<Duration>),
    /// A fatal TLS alert.
    TlsAlert,
    /// HTTP/2: the connection ends with GOAWAY and this code. HTTP/1: as
    /// `Close`.
    GoAway(u32),
    /// HTTP/2: RST_STREAM with REFUSED_STREAM, which says that nothing was
    /// processed. HTTP/1: as `Reset`.
    RefusedStream,
    /// HTTP/2: RST_STREAM with this code. HTTP/1: as `Reset`.
    RstStream(u32),
}

impl Abort {
    /// As in rules, and in the report.
    pub fn name(self) -> &'static str {
        match self {
            Abort::Reset => "reset",
            Abort::Close => "close",
            Abort::Truncate(_) => "truncate",
            Abort::Stall(_) => "stall",
            Abort::TlsAlert => "tls-alert",
            Abort::GoAway(_) => "goaway",
            Abort::RefusedStream => "refused-stream",
            Abort::RstStream(_) => "rst-stream",
        }
    }
}

/// How often a rule acts. Asked in this order, after the filter: a limit that
/// says no leaves the attempt to the next rule.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// Not before the rule has been in force for so long.
    pub after: Option<Duration>,
    /// And then for so long.
    pub window: Option<Duration>,
    /// 0 to 1: drawn from (seed, rule, call, attempt).
    pub chance: Option<f64>,
    /// The N-th, the 2N-th … of the attempts that have come so far.
    pub every: Option<NonZeroU32>,
    pub times: Option<Times>,
    /// 0 to 1: never more than this share of the attempts that its filter
    /// has matched.
    pub max_share: Option<f64>,
    pub max_hits: Option<u64>,
}

/// A rule acts on the first `count` attempts that it matches, for each `per`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    pub count: u32,
    pub per: Per,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Per {
    Call,
    Process,
    Operation,
    Rule,
}

impl Per {
    pub const ALL: [Per; 4] = [Per::Call, Per::Process, Per::Operation, Per::Rule];

    pub fn name(self) -> &'static str {
        match self {
            Per::Call => "call",
            Per::Process => "process",
            Per::Operation => "operation",
            Per::Rule => "rule",
        }
    }
}

/// What holds for the whole instance; from rule files or options.
#[derive(Debug, Default)]
pub struct Guard {
    /// What chance is drawn from.
    pub seed: Option<u64>,
    /// No rule acts any more after so many injections.
    pub max_injections: Option<u64>,
    /// No rule acts any more once more than so many attempts have ended like
    /// this.
    pub stop_when: Option<StopWhen>,
    /// Whether an answer that a rule changed names the rule in a field of its
    /// head; it does unless told otherwise.
    pub rule_header: Option<bool>,
}

#[derive(Debug)]
pub struct StopWhen {
    pub filter: Filter,
    /// More than this many within `per` are too many.
    pub count: u32,
    pub per: Duration,
}

/// What rules make of one attempt in one phase.
#[derive(Clone, Debug, PartialEq)]
pub struct Ruling {
    /// The names of the rules that act: a valid header value.
    pub rule: Arc<str>,
    /// Comes first; zero for none.
    pub delay: Duration,
    pub reply: Option<Reply>,
    pub abort: Option<Abort>,
}

/// What the client is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// Names the rules in a field of the head: a valid value.
    pub signature: Option<Arc<str>>,
    /// 200 to 599; the genuine one again, where only other things change.
    pub status: u16,
    /// The status's usual phrase where none is given.
    pub reason: Option<Arc<str>>,
    /// In order. Values are valid header values; `content-length` and
    /// `transfer-encoding` are the data path's own and never among them.
    pub headers: Vec<Field>,
    /// `None`: the genuine body stays (response phase only). `Some`: fields
    /// that describe the genuine body go ([`describes_body`]).
    pub body: Option<Bytes>,
    pub continue_then: bool,
}

/// One change to a head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    Set(Arc<str>, Arc<str>),
    Add(Arc<str>, Arc<str>),
    Remove(Arc<str>),
}

impl Field {
    pub fn name(&self) -> &str {
        let (Field::Set(name, _) | Field::Add(name, _) | Field::Remove(name)) = self;
        name
    }
}

/// Whether a response field describes the body, and so goes when another body
/// takes its place.
pub fn describes_body(name: &[u8]) -> bool {
    const WHOLE: &[&str] = &[
        "accept-ranges",
        "content-digest",
        "content-encoding",
        "content-language",
        "content-length",
        "content-md5",
        "content-range",
        "content-type",
        "digest",
        "etag",
        "last-modified",
        "repr-digest",
        "trailer",
        "transfer-encoding",
        "x-amz-crc32",
        "x-goog-hash",
    ];
    const BEGINS: &[&str] = &["x-amz-checksum-", "x-goog-stored-content-"];
    let starts = |prefix: &&str| name.get(..prefix.len()).is_some_and(|it| it.eq_ignore_ascii_case(prefix.as_bytes()));
    WHOLE.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes())) || BEGINS.iter().any(starts)
}
