//! Families and calls as OTLP messages.
//!
//! Names follow OpenTelemetry's conventions for HTTP clients; what those do
//! not know is below `retryscope.`.
use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use opentelemetry_proto::tonic::{
    collector::{metrics::v1::ExportMetricsServiceRequest, trace::v1::ExportTraceServiceRequest},
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    metrics::v1::{
        AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
        ScopeMetrics, Sum, metric, number_data_point,
    },
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span::SpanKind, status::StatusCode},
};
use prost::Message;

use ::prometheus::proto::{Bucket, LabelPair, Metric as Row, MetricFamily, MetricType};

use super::{
    calls::Call,
    program::{program, value},
};
use crate::{
    flow::{Attempt, Clock, Evidence, Moment, Protocol, Wait, redact},
    process::{ProcessKey, container, in_pod, unit},
    retry::{Class, OperationName},
};

/// Longer URLs are cut, in characters.
const MAX_URL: usize = 2048;

pub(super) struct Encoder {
    clock: Clock,
    /// Ids are hashes with this: alike within an instance, and nowhere else.
    ids: RandomState,
    instance: String,
}

fn text(value: impl Into<String>) -> any_value::Value {
    any_value::Value::StringValue(value.into())
}

fn number(value: impl TryInto<i64>) -> any_value::Value {
    any_value::Value::IntValue(value.try_into().unwrap_or(i64::MAX))
}

fn attribute(key: impl Into<String>, value: any_value::Value) -> KeyValue {
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "retryscope".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        ..InstrumentationScope::default()
    }
}

impl Encoder {
    pub(super) fn new(clock: Clock) -> Self {
        let ids = RandomState::new();
        let instance = format!("{:016x}", ids.hash_one("instance"));
        Self { clock, ids, instance }
    }

    pub(super) fn now(&self) -> Moment {
        self.clock.now()
    }

    /// The message, and how many data points are in it.
    pub(super) fn metrics(&self, families: &[MetricFamily]) -> (Bytes, u64) {
        let now = self.clock.now();
        let metrics = families.iter().map(|family| self.metric(family, now)).collect();
        let items = families.iter().map(|family| family.get_metric().len() as u64).sum();
        let mut attributes = vec![
            attribute("service.name", text("retryscope")),
            attribute("service.version", text(env!("CARGO_PKG_VERSION"))),
            attribute("service.instance.id", text(&*self.instance)),
        ];
        attributes.extend(host());
        let request = ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(Resource { attributes, ..Resource::default() }),
                scope_metrics: vec![ScopeMetrics { scope: Some(scope()), metrics, schema_url: String::new() }],
                schema_url: String::new(),
            }],
        };
        (request.encode_to_vec().into(), items)
    }

    fn metric(&self, family: &MetricFamily, now: Moment) -> Metric {
        let temporality = AggregationTemporality::Cumulative.into();
        let rows = family.get_metric().iter();
        let data = match family.get_field_type() {
            MetricType::HISTOGRAM => metric::Data::Histogram(Histogram {
                data_points: rows.map(|row| self.histogram(row, now)).collect(),
                aggregation_temporality: temporality,
            }),
            MetricType::COUNTER => metric::Data::Sum(Sum {
                data_points: rows.map(|row| self.point(row, row.get_counter().get_value(), now)).collect(),
                aggregation_temporality: temporality,
                is_monotonic: true,
            }),
            _ => metric::Data::Gauge(Gauge {
                data_points: rows.map(|row| self.point(row, row.get_gauge().get_value(), now)).collect(),
            }),
        };
        let (name, unit) = named(family.name());
        Metric { name, description: family.help().into(), unit: unit.into(), metadata: Vec::new(), data: Some(data) }
    }

    fn point(&self, row: &Row, value: f64, now: Moment) -> NumberDataPoint {
        NumberDataPoint {
            attributes: labels(row),
            start_time_unix_nano: self.nanos(Moment::default()),
            time_unix_nano: self.nanos(now),
            value: Some(number_data_point::Value::AsDouble(value)),
            ..NumberDataPoint::default()
        }
    }

    fn histogram(&self, row: &Row, now: Moment) -> HistogramDataPoint {
        let histogram = row.get_histogram();
        let buckets = histogram.get_bucket();
        let mut before = 0;
        let mut own = |count: u64| count.saturating_sub(std::mem::replace(&mut before, count));
        let mut bucket_counts: Vec<u64> = buckets.iter().map(|bucket| own(bucket.cumulative_count())).collect();
        bucket_counts.push(own(histogram.get_sample_count()));
        HistogramDataPoint {
            attributes: labels(row),
            start_time_unix_nano: self.nanos(Moment::default()),
            time_unix_nano: self.nanos(now),
            count: histogram.get_sample_count(),
            sum: Some(histogram.get_sample_sum()),
            bucket_counts,
            explicit_bounds: buckets.iter().map(Bucket::upper_bound).collect(),
            ..HistogramDataPoint::default()
        }
    }

    fn nanos(&self, at: Moment) -> u64 {
        let since = self.clock.wall(at).duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    /// The message, and how many spans are in it. A process is a resource.
    pub(super) fn traces(&self, calls: &[Call]) -> (Bytes, u64) {
        let mut processes: BTreeMap<ProcessKey, (Vec<KeyValue>, Vec<Span>)> = BTreeMap::new();
        for call in calls {
            let Some(first) = call.attempts.first() else { continue };
            let process = &first.process;
            let (_, spans) = processes.entry(process.key).or_insert_with(|| (self.resource(first), Vec::new()));
            self.call(call, first, spans);
        }
        let items = processes.values().map(|(_, spans)| spans.len() as u64).sum();
        let resource_spans = processes.into_values().map(|(attributes, spans)| ResourceSpans {
            resource: Some(Resource { attributes, ..Resource::default() }),
            scope_spans: vec![ScopeSpans { scope: Some(scope()), spans, schema_url: String::new() }],
            schema_url: String::new(),
        });
        let request = ExportTraceServiceRequest { resource_spans: resource_spans.collect() };
        (request.encode_to_vec().into(), items)
    }

    fn resource(&self, attempt: &Attempt) -> Vec<KeyValue> {
        let process = &attempt.process;
        let facts = process.facts();
        let cgroup = facts.cgroup.as_deref();
        let mut attributes = vec![
            attribute("service.name", text(program(&facts))),
            attribute("process.pid", number(process.key.pid)),
            attribute("process.executable.name", text(&*facts.comm)),
            attribute("retryscope.instance.id", text(&*self.instance)),
        ];
        let pod = facts.container_name.as_deref().and_then(in_pod);
        let known = [
            ("retryscope.unit", cgroup.and_then(unit)),
            ("container.id", cgroup.and_then(container)),
            ("container.name", facts.container_name.as_deref()),
            ("k8s.namespace.name", pod.map(|[namespace, ..]| namespace)),
            ("k8s.pod.name", pod.map(|[_, pod, _]| pod)),
            ("k8s.container.name", pod.map(|[.., container]| container)),
        ];
        attributes.extend(known.into_iter().filter_map(|(key, known)| Some(attribute(key, text(value(known?))))));
        attributes.extend(host());
        attributes
    }

    fn id(&self, of: (u64, &str, u64)) -> u64 {
        // Ids of zeros are none.
        self.ids.hash_one(of).max(1)
    }

    fn call(&self, call: &Call, first: &Attempt, spans: &mut Vec<Span>) {
        let id = first.link.call.0;
        let trace: Vec<u8> =
            [self.id((id, "trace", 0)), self.id((id, "trace", 1))].iter().flat_map(|half| half.to_be_bytes()).collect();
        // A call that goes on after all gets another root in the same trace.
        let root = self.id((id, "call", first.started.0));
        let from = call.attempts.iter().map(|attempt| attempt.started).min().unwrap_or_default();
        let to = call.attempts.iter().map(|attempt| attempt.ended.unwrap_or(attempt.started)).max().unwrap_or_default();
        let span = |id: u64, parent: Option<u64>, name: String, kind: SpanKind, (from, to): (Moment, Moment)| Span {
            trace_id: trace.clone(),
            span_id: id.to_be_bytes().to_vec(),
            parent_span_id: parent.map(|id| id.to_be_bytes().to_vec()).unwrap_or_default(),
            name,
            kind: kind.into(),
            start_time_unix_nano: self.nanos(from),
            end_time_unix_nano: self.nanos(to),
            ..Span::default()
        };
        let (service, operation) = what(first);
        let name = match &service {
            None => operation.clone(),
            Some(service) => format!("{service}.{operation}"),
        };
        let mut whole = span(root, None, name, SpanKind::Internal, (from, to));
        whole.attributes = of_call(call, service, operation);
        let failed = call.attempts.iter().all(|attempt| Class::of(attempt).is_failure());
        whole.status = failed.then(error);
        spans.push(whole);
        for attempt in &call.attempts {
            if let Some(wait) = attempt.link.waited {
                let id = self.id((id, "wait", wait.to.0));
                let mut waited = span(id, Some(root), "backoff".into(), SpanKind::Internal, (wait.from, wait.to));
                waited.attributes = of_wait(attempt, &wait);
                spans.push(waited);
            }
            let (from, to) = (attempt.started, attempt.ended.unwrap_or(attempt.started));
            // Side by side, two attempts may begin at once, but not end.
            let id = self.id((id, "attempt", from.0 ^ to.0.rotate_left(32)));
            let mut made = span(id, Some(root), attempt.request.method.to_string(), SpanKind::Client, (from, to));
            made.attributes = of_attempt(attempt);
            made.status = Class::of(attempt).is_failure().then(error);
            spans.push(made);
        }
    }
}

fn error() -> Status {
    Status { message: String::new(), code: StatusCode::Error.into() }
}

fn host() -> Option<KeyValue> {
    let name = nix::unistd::gethostname().ok()?.into_string().ok()?;
    Some(attribute("host.name", text(name)))
}

/// The service, where it is known, and the operation.
fn what(attempt: &Attempt) -> (Option<String>, String) {
    let name = OperationName::of(attempt).unwrap_or_else(OperationName::other);
    (name.service.as_deref().map(value), value(&name.operation))
}

/// The name and the unit by OpenTelemetry's conventions, which leave both out
/// of names that Prometheus' have in them.
fn named(name: &str) -> (String, &'static str) {
    let name = name.strip_prefix("retryscope_").unwrap_or(name);
    let name = name.strip_suffix("_total").unwrap_or(name);
    match name.strip_suffix("_seconds") {
        Some(name) => (format!("retryscope.{name}"), "s"),
        None => (format!("retryscope.{name}"), if name.ends_with("bytes") { "By" } else { "1" }),
    }
}

fn labels(row: &Row) -> Vec<KeyValue> {
    let known = row.get_label().iter().filter(|label| !label.value().is_empty());
    let label = |label: &LabelPair| match label.name() {
        // An id, unless a pod's container is known by its name.
        "container" if is_id(label.value()) => attribute("container.id", text(label.value())),
        "container" => attribute("k8s.container.name", text(label.value())),
        "pod" => attribute("k8s.pod.name", text(label.value())),
        "namespace" => attribute("k8s.namespace.name", text(label.value())),
        name => attribute(format!("retryscope.{name}"), text(label.value())),
    };
    known.map(label).collect()
}

fn is_id(container: &str) -> bool {
    container.len() == 64 && container.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn of_call(call: &Call, service: Option<String>, operation: String) -> Vec<KeyValue> {
    let attempts = call.attempts.len() as u64 + u64::from(call.more);
    let mut attributes =
        vec![attribute("retryscope.operation", text(operation)), attribute("retryscope.attempts", number(attempts))];
    attributes.extend(service.map(|service| attribute("retryscope.service", text(service))));
    let evidence = call.attempts.iter().map(|attempt| match attempt.link.evidence {
        Evidence::Alone => 0,
        Evidence::Exact => 1,
        Evidence::Inferred => 2,
    });
    let evidence = ["alone", "exact", "inferred"][evidence.max().unwrap_or(0)];
    attributes.push(attribute("retryscope.evidence", text(evidence)));
    attributes
}

fn of_wait(attempt: &Attempt, wait: &Wait) -> Vec<KeyValue> {
    vec![
        attribute("retryscope.attempt", number(attempt.link.number)),
        attribute("retryscope.injected", any_value::Value::BoolValue(wait.injected)),
    ]
}

fn of_attempt(attempt: &Attempt) -> Vec<KeyValue> {
    let request = &attempt.request;
    let class = Class::of(attempt);
    let version = match attempt.protocol {
        Protocol::Http10 => "1.0",
        Protocol::Http11 => "1.1",
        Protocol::Http2 => "2",
    };
    let mut attributes = vec![
        attribute("http.request.method", text(&*request.method)),
        attribute("url.full", text(shown(&request.url()))),
        attribute("server.address", text(value(request.host().trim_matches(['[', ']'])))),
        attribute("server.port", number(attempt.origin.port())),
        attribute("network.peer.address", text(attempt.origin.ip().to_string())),
        attribute("network.protocol.version", text(version)),
        attribute("http.request.body.size", number(attempt.sent)),
        attribute("http.response.body.size", number(attempt.received)),
        attribute("retryscope.attempt", number(attempt.link.number)),
        attribute("retryscope.outcome", text(class.name())),
    ];
    if attempt.link.number > 1 {
        attributes.push(attribute("http.request.resend_count", number(attempt.link.number - 1)));
    }
    let status = attempt.status();
    if let Some(status) = status {
        attributes.push(attribute("http.response.status_code", number(status)));
    }
    if class.is_failure() {
        let abort = attempt.injected.as_ref().and_then(|told| told.abort);
        let kind = match (abort, status, attempt.failure) {
            (Some(abort), ..) => abort.to_owned(),
            (None, Some(status), _) => status.to_string(),
            (None, None, Some(failure)) => failure.name().to_owned(),
            (None, None, None) => "_OTHER".to_owned(),
        };
        attributes.push(attribute("error.type", text(kind)));
    }
    if let Some(code) = &attempt.complaint.code {
        attributes.push(attribute("retryscope.error_code", text(value(code))));
    }
    if let Some(told) = &attempt.injected {
        attributes.push(attribute("retryscope.rule", text(value(&told.rule))));
        if let Some(genuine) = &attempt.response {
            attributes.push(attribute("retryscope.genuine_status", number(genuine.status)));
        }
    }
    if !attempt.held.is_zero() {
        attributes.push(attribute("retryscope.held", any_value::Value::DoubleValue(attempt.held.as_secs_f64())));
    }
    attributes
}

/// The URL without a user's name and password and what else lets somebody in,
/// and not too long.
fn shown(url: &str) -> String {
    let url = redact::url(url);
    match url.char_indices().nth(MAX_URL) {
        Some((at, _)) => url[..at].to_owned(),
        None => url.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_by_conventions() {
        for (name, expected) in [
            ("retryscope_calls_total", ("retryscope.calls", "1")),
            ("retryscope_backoff_seconds", ("retryscope.backoff", "s")),
            ("retryscope_stalled_seconds_total", ("retryscope.stalled", "s")),
            ("retryscope_failed_bytes_total", ("retryscope.failed_bytes", "By")),
            ("retryscope_build_info", ("retryscope.build_info", "1")),
        ] {
            assert_eq!(named(name), (expected.0.to_owned(), expected.1));
        }
    }

    #[test]
    fn urls_keep_no_secrets() {
        for (url, expected) in [
            ("https://api.test/a?b=c", "https://api.test/a?b=c"),
            (
                "https://s3.test/b/k?X-Amz-Signature=abc&X-Amz-Date=1&X-Amz-Credential=me&list-type=2",
                "https://s3.test/b/k?X-Amz-Signature=REDACTED&X-Amz-Date=1&X-Amz-Credential=REDACTED&list-type=2",
            ),
            ("https://blob.test/c?sv=1&sig=a%2Bb", "https://blob.test/c?sv=1&sig=REDACTED"),
            ("https://user:pass@api.test/a", "https://REDACTED@api.test/a"),
            ("https://api.test/a@b?ACCESS_TOKEN=x&keyword=y", "https://api.test/a@b?ACCESS_TOKEN=REDACTED&keyword=y"),
        ] {
            assert_eq!(shown(url), expected);
        }
        assert_eq!(shown(&format!("https://api.test/{}", "é".repeat(9_000))).chars().count(), MAX_URL);
    }
}
