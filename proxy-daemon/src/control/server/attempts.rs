//! Ended attempts: pages of them, one in full, calls, charts, and what comes
//! from now on.
//!
//! Questions are answered on threads of their own, two at a time, so that
//! those who look never hold up the connections.
use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::stream;
use serde::Deserialize;
use tokio::sync::Semaphore;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Shared,
    extract::{Absent, Asked, Named, Problem, Wrong},
};
use crate::{
    control::{Completed, Controlled, Offer, Refused},
    flow::filter::{self, Filter},
    history::{
        AttemptDetail, AttemptEntry, CallsPage, Curl, Followed, Follower, History, MAX_BUCKETS, MAX_LIMIT, Page, Query,
        Series, Span,
    },
};

/// How many questions are answered at once.
static TURNS: Semaphore = Semaphore::const_new(2);
/// A follower's connection is used at least this often, so that either side
/// sees the other's end.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// The longest text to be completed, in bytes.
const MAX_TEXT: usize = 8 * 1024;

pub(super) fn routes() -> OpenApiRouter<Arc<Controlled>> {
    OpenApiRouter::new()
        .routes(routes!(attempts))
        .routes(routes!(attempt))
        .routes(routes!(curl))
        .routes(routes!(calls))
        .routes(routes!(timeline))
        .routes(routes!(follow))
        .routes(routes!(complete))
}

/// Which attempts.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Which {
    /// Those that this filter takes, in the language of rules.
    #[param(example = "~svc s3 & ~retry")]
    filter: Option<String>,
    /// At most so many.
    #[serde(default = "limit")]
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: usize,
    /// Only those that ended before the attempt of this number: `next` of the
    /// page before.
    #[param(minimum = 1, maximum = 9_007_199_254_740_991_i64)]
    before: Option<u64>,
    /// Only those that ended after the attempt of this number.
    #[param(maximum = 9_007_199_254_740_991_i64)]
    after: Option<u64>,
    /// Only those that were under way, or waited for, from this moment on: in
    /// ms since the instance's start.
    #[param(minimum = 0)]
    from: Option<f64>,
    /// The same, up to this moment.
    #[param(minimum = 0)]
    to: Option<f64>,
}

/// A time has to begin before it ends.
fn time(from: Option<f64>, to: Option<f64>) -> Result<(), Problem> {
    for (name, moment) in [("from", from), ("to", to)] {
        if moment.is_some_and(|moment| !moment.is_finite() || moment < 0.0) {
            return Err(Problem::parameter(name, "a time is a number of ms from 0"));
        }
    }
    if from.zip(to).is_some_and(|(from, to)| from >= to) {
        return Err(Problem::parameter("to", "it has to be later than `from`"));
    }
    Ok(())
}

fn limit() -> usize {
    100
}

impl Which {
    fn check(&self) -> Result<Option<Filter>, Problem> {
        within("limit", self.limit, MAX_LIMIT)?;
        before(self.before)?;
        number("after", self.after)?;
        time(self.from, self.to)?;
        parsed(self.filter.as_deref())
    }

    fn query<'a>(&self, filter: Option<&'a Filter>) -> Query<'a> {
        let Self { limit, before, after, from: from_ms, to: to_ms, .. } = *self;
        Query { filter, limit, before, after, from_ms, to_ms }
    }
}

fn within(name: &str, number: usize, most: usize) -> Result<(), Problem> {
    if (1..=most).contains(&number) {
        return Ok(());
    }
    Err(Problem::parameter(name, format_args!("{number} is not within 1 and {most}")))
}

fn before(number: Option<u64>) -> Result<(), Problem> {
    match number {
        Some(0) => Err(Problem::parameter("before", "attempts are numbered from 1")),
        _ => self::number("before", number),
    }
}

/// JSON keeps numbers exactly up to here.
const MAX_NUMBER: u64 = (1 << 53) - 1;

fn number(name: &str, number: Option<u64>) -> Result<(), Problem> {
    if number.is_none_or(|number| number <= MAX_NUMBER) {
        return Ok(());
    }
    Err(Problem::parameter(name, format_args!("attempts are numbered up to {MAX_NUMBER}")))
}

fn parsed(text: Option<&str>) -> Result<Option<Filter>, Problem> {
    let Some(text) = text.filter(|text| !text.trim().is_empty()) else { return Ok(None) };
    Filter::parse(text).map(Some).map_err(|error| {
        let at = text.get(..error.span.start).map_or(0, |before| before.chars().count()) + 1;
        Problem::parameter("filter", format_args!("{error} (at character {at})"))
    })
}

/// The answer to a question, in its turn.
async fn ask<T: Send + 'static>(
    it: &Controlled,
    question: impl FnOnce(&History) -> T + Send + 'static,
) -> Result<T, Problem> {
    let _turn = TURNS.acquire().await.map_err(Problem::fault)?;
    let history = Arc::clone(&it.history);
    tokio::task::spawn_blocking(move || question(&history)).await.map_err(Problem::fault)
}

/// Ended attempts, newest first.
#[utoipa::path(get, path = "/v1/attempts", params(Which), responses((status = 200, body = Page), Wrong))]
async fn attempts(State(it): Shared, Asked(which): Asked<Which>) -> Result<Json<Page>, Problem> {
    let filter = which.check()?;
    Ok(Json(ask(&it, move |history| history.attempts(&which.query(filter.as_ref()))).await?))
}

fn gone(id: u64) -> Problem {
    Problem::absent(format!("attempt {id} is not kept; /v1/attempts tells from where to where attempts are"))
}

/// One attempt in full.
#[utoipa::path(
    get,
    path = "/v1/attempts/{id}",
    params(("id" = u64, Path, description = "The attempt's number.")),
    responses((status = 200, body = AttemptDetail), Wrong, Absent)
)]
async fn attempt(State(it): Shared, Named(id): Named<u64>) -> Result<Json<AttemptDetail>, Problem> {
    ask(&it, move |history| history.attempt(id)).await?.map(Json).ok_or_else(|| gone(id))
}

/// One attempt as a command for a shell; credentials read `REDACTED`.
#[utoipa::path(
    get,
    path = "/v1/attempts/{id}/curl",
    params(("id" = u64, Path, description = "The attempt's number.")),
    responses((status = 200, body = Curl), Wrong, Absent)
)]
async fn curl(State(it): Shared, Named(id): Named<u64>) -> Result<Json<Curl>, Problem> {
    ask(&it, move |history| history.curl(id)).await?.map(Json).ok_or_else(|| gone(id))
}

/// Calls with their attempts, the one whose latest attempt ended last first.
///
/// A call is told of if the filter takes any of its attempts. `before`,
/// `after` and `next` are numbers of calls' latest attempts.
#[utoipa::path(get, path = "/v1/calls", params(Which), responses((status = 200, body = CallsPage), Wrong))]
async fn calls(State(it): Shared, Asked(which): Asked<Which>) -> Result<Json<CallsPage>, Problem> {
    let filter = which.check()?;
    Ok(Json(ask(&it, move |history| history.calls(&which.query(filter.as_ref()))).await?))
}

/// Which time.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct When {
    /// From this moment on, in ms since the instance's start; otherwise from
    /// the oldest attempt that is kept.
    #[param(minimum = 0)]
    from: Option<f64>,
    /// Up to this moment; otherwise until now.
    #[param(minimum = 0)]
    to: Option<f64>,
    /// Into how many parts the time is divided.
    #[serde(default = "buckets")]
    #[param(minimum = 1, maximum = 1000, default = 60)]
    buckets: usize,
    /// Those that this filter takes, in the language of rules.
    filter: Option<String>,
    /// `next` of the answer before.
    #[param(minimum = 1, maximum = 9_007_199_254_740_991_i64)]
    before: Option<u64>,
    /// Whether each process is told of on its own, too; without it the answer
    /// comes much sooner where much is kept.
    #[serde(default = "processes")]
    #[param(default = true)]
    processes: bool,
}

fn processes() -> bool {
    true
}

fn buckets() -> usize {
    60
}

/// Counts over time, of everything and of each process.
#[utoipa::path(get, path = "/v1/timeline", params(When), responses((status = 200, body = Series), Wrong))]
async fn timeline(State(it): Shared, Asked(when): Asked<When>) -> Result<Json<Series>, Problem> {
    within("buckets", when.buckets, MAX_BUCKETS)?;
    before(when.before)?;
    time(when.from, when.to)?;
    let filter = parsed(when.filter.as_deref())?;
    let When { from: from_ms, to: to_ms, buckets, before, processes, .. } = when;
    let span = Span { from_ms, to_ms, buckets, before, processes };
    Ok(Json(ask(&it, move |history| history.series(&span, filter.as_ref())).await?))
}

/// What is followed.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct From {
    /// Those that this filter takes, in the language of rules.
    filter: Option<String>,
    /// From after the attempt of this number; otherwise from now on. The
    /// field `Last-Event-ID` has precedence.
    #[param(maximum = 9_007_199_254_740_991_i64)]
    after: Option<u64>,
}

/// Attempts as they end, as server-sent events.
///
/// An event `attempt` for each, with its number as the event's id and the
/// shape of `/v1/attempts` as data. An event `skipped`, with `{"skipped": N}`,
/// where N attempts came faster than they were read: they are not told of. An
/// event `end` when the instance ends.
#[utoipa::path(
    get,
    path = "/v1/follow",
    params(From),
    responses(
        (status = 200, content_type = "text/event-stream", body = String),
        Wrong,
        (status = 409, description = "Nothing is kept, so nothing can be followed.", body = Refused),
        (status = 503, description = "Too many follow already.", body = Refused),
    )
)]
async fn follow(State(it): Shared, headers: HeaderMap, Asked(from): Asked<From>) -> Result<Response, Problem> {
    number("after", from.after)?;
    let filter = parsed(from.filter.as_deref())?;
    if !it.history.is_kept() {
        let error = "this instance keeps no attempts (--keep 0), so that none can be followed";
        return Err(Problem::new(StatusCode::CONFLICT, error));
    }
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let follower = it.history.follow(filter, last.or(from.after)).ok_or_else(|| {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many follow this instance already; end one of them")
    })?;
    let events = stream::unfold((Some(follower), Vec::new().into_iter()), tell);
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

type Telling = (Option<Follower>, std::vec::IntoIter<Followed>);

/// The next event, and what is left to tell.
async fn tell((mut follower, mut left): Telling) -> Option<(Result<Event, Infallible>, Telling)> {
    loop {
        if let Some(next) = left.next() {
            return Some((Ok(event(&next)), (follower, left)));
        }
        match follower.as_mut()?.next().await {
            Some(told) => left = told.into_iter(),
            None => return Some((Ok(Event::default().event("end").data("{}")), (None, left))),
        }
    }
}

fn event(told: &Followed) -> Event {
    let text = |value: &AttemptEntry| serde_json::to_string(value).unwrap_or_default();
    match told {
        Followed::Attempt(attempt) => Event::default().event("attempt").id(attempt.id.to_string()).data(text(attempt)),
        Followed::Skipped(skipped) => Event::default().event("skipped").data(format!("{{\"skipped\":{skipped}}}")),
    }
}

/// What is typed.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Typed {
    /// A filter, up to the cursor.
    #[serde(default)]
    text: String,
}

/// What may come next in a filter: operators, and values that attempts have
/// had.
#[utoipa::path(get, path = "/v1/filters/complete", params(Typed), responses((status = 200, body = Completed), Wrong))]
async fn complete(State(it): Shared, Asked(typed): Asked<Typed>) -> Result<Json<Completed>, Problem> {
    if typed.text.len() > MAX_TEXT {
        return Err(Problem::parameter("text", format_args!("it is longer than {MAX_TEXT} bytes")));
    }
    let found = ask(&it, move |history| filter::complete(&typed.text, &history.known())).await?;
    let offer = |item: filter::Completion| Offer { text: item.text, help: item.help.to_owned() };
    Ok(Json(Completed { replace: found.replace, items: found.items.into_iter().map(offer).collect() }))
}
