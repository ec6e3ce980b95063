//! What a bench found, told: tables for a person, JSON for a program, and
//! whether each target was met.
use std::fs;

use serde_json::{Value, json};

use super::{
    Findings, Kind, Memory, Sample,
    table::{markdown, median, number},
};

/// The route that targets are for, and those it is compared with.
const SUBJECT: &str = "retryscope";
const DIRECT: usize = 0;
const RELAY: usize = 1;

/// A number that has a target.
#[derive(Debug)]
pub(super) struct Verdict {
    what: String,
    value: f64,
    unit: &'static str,
    target: f64,
    at_least: bool,
}

impl Verdict {
    fn at_most(what: impl Into<String>, value: f64, unit: &'static str, target: f64) -> Self {
        Self { what: what.into(), value, unit, target, at_least: false }
    }

    pub(super) fn pass(&self) -> bool {
        if self.at_least { self.value >= self.target } else { self.value <= self.target }
    }
}

/// One route of one case, over all rounds.
struct Row {
    requests_per_s: f64,
    bytes_per_s: f64,
    p50_us: f64,
    p99_us: f64,
    /// Not a number where no process was watched.
    cpu_us: f64,
}

impl Row {
    fn of(samples: &[Sample]) -> Self {
        let median = |what: fn(&Sample) -> f64| median(samples.iter().map(what));
        let cpu: Vec<f64> = samples.iter().filter_map(|sample| sample.cpu_us).collect();
        Self {
            requests_per_s: median(|sample| sample.requests_per_s),
            bytes_per_s: median(|sample| sample.bytes_per_s),
            p50_us: median(|sample| sample.p50_us),
            p99_us: median(|sample| sample.p99_us),
            cpu_us: cpu.iter().sum::<f64>() / f64::from(u32::try_from(cpu.len()).unwrap_or(u32::MAX)),
        }
    }
}

impl Findings {
    /// By case, then by route.
    fn rows(&self) -> Vec<Vec<Row>> {
        self.samples.iter().map(|case| case.iter().map(|samples| Row::of(samples)).collect()).collect()
    }

    fn memory_of(&self, route: &str) -> Option<&Memory> {
        self.memory.iter().find(|memory| memory.route == route)
    }
}

/// Against the targets; none where retryscope was left out.
pub(super) fn verdicts(findings: &Findings) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let Some(subject) = findings.routes.iter().position(|route| *route == SUBJECT) else { return verdicts };
    for (case, rows) in findings.cases.iter().zip(findings.rows()) {
        let (mine, relay) = (&rows[subject], &rows[RELAY]);
        match case.kind {
            Kind::Requests { cpu: Some(target) } => {
                let what = format!("CPU per request, {}", case.name);
                verdicts.push(Verdict::at_most(what, mine.cpu_us / relay.cpu_us, "× relay", target));
            }
            Kind::Requests { cpu: None } => {}
            Kind::Bodies { throughput: target } => verdicts.push(Verdict {
                what: format!("throughput, {}", case.name),
                value: mine.bytes_per_s / relay.bytes_per_s,
                unit: "× relay",
                target,
                at_least: true,
            }),
        }
    }
    if let Some(memory) = findings.memory_of(SUBJECT) {
        verdicts.push(Verdict::at_most("resident per idle connection", memory.idle_connection_kib, "KiB", 48.0));
        verdicts.push(Verdict::at_most("resident at rest", memory.rest_kib / 1024.0, "MiB", 16.0));
    }
    for cost in &findings.rules {
        let what = format!("CPU added to a request, {}", cost.rules);
        verdicts.push(Verdict::at_most(what, cost.added_us, "µs", cost.target_us));
    }
    verdicts.push(Verdict::at_most("first answer from start", findings.start[subject].1, "ms", 150.0));
    verdicts
}

pub(super) fn tables(findings: &Findings, verdicts: &[Verdict]) -> String {
    let mut tables = vec![requests(findings), bodies(findings), processes(findings)];
    if !verdicts.is_empty() {
        tables.push(targets(verdicts));
    }
    tables.join("\n")
}

fn requests(findings: &Findings) -> String {
    let heading =
        ["requests", "path", "per second", "CPU µs each", "× relay", "p50 µs", "p99 µs", "added p50", "added p99"];
    let mut table = vec![heading.map(str::to_owned).to_vec()];
    for (case, rows) in findings.cases.iter().zip(findings.rows()) {
        if !matches!(case.kind, Kind::Requests { .. }) {
            continue;
        }
        for (at, row) in rows.iter().enumerate() {
            let added = |what: fn(&Row) -> f64| {
                if at == DIRECT { f64::NAN } else { what(row) - what(&rows[DIRECT]) }
            };
            table.push(line(
                [case.name, findings.routes[at]],
                [
                    row.requests_per_s,
                    row.cpu_us,
                    row.cpu_us / rows[RELAY].cpu_us,
                    row.p50_us,
                    row.p99_us,
                    added(|row| row.p50_us),
                    added(|row| row.p99_us),
                ],
            ));
        }
    }
    markdown(&table)
}

fn bodies(findings: &Findings) -> String {
    let heading = ["bodies", "path", "MiB/s", "× relay", "CPU ms each", "× relay"];
    let mut table = vec![heading.map(str::to_owned).to_vec()];
    for (case, rows) in findings.cases.iter().zip(findings.rows()) {
        if !matches!(case.kind, Kind::Bodies { .. }) {
            continue;
        }
        for (row, route) in rows.iter().zip(&findings.routes) {
            table.push(line(
                [case.name, route],
                [
                    row.bytes_per_s / f64::from(1 << 20),
                    row.bytes_per_s / rows[RELAY].bytes_per_s,
                    row.cpu_us / 1e3,
                    row.cpu_us / rows[RELAY].cpu_us,
                ],
            ));
        }
    }
    markdown(&table)
}

fn processes(findings: &Findings) -> String {
    let heading = ["process", "MiB at rest", "KiB per idle connection", "ms to first answer"];
    let mut table = vec![heading.map(str::to_owned).to_vec()];
    for (route, first) in &findings.start {
        let (rest, each) = findings
            .memory_of(route)
            .map_or((f64::NAN, f64::NAN), |memory| (memory.rest_kib / 1024.0, memory.idle_connection_kib));
        table.push(line([*route], [rest, each, *first]));
    }
    markdown(&table)
}

fn targets(verdicts: &[Verdict]) -> String {
    let mut table = vec![["target", "measured", "wanted", ""].map(str::to_owned).to_vec()];
    for verdict in verdicts {
        let bound = if verdict.at_least { "≥" } else { "≤" };
        table.push(vec![
            verdict.what.clone(),
            format!("{} {}", number(verdict.value), verdict.unit),
            format!("{bound} {} {}", verdict.target, verdict.unit),
            if verdict.pass() { "pass" } else { "MISS" }.to_owned(),
        ]);
    }
    markdown(&table)
}

fn line<const N: usize, const M: usize>(names: [&str; N], values: [f64; M]) -> Vec<String> {
    let value = |value: f64| if value.is_finite() { number(value) } else { "–".to_owned() };
    names.into_iter().map(str::to_owned).chain(values.into_iter().map(value)).collect()
}

/// The machine in a line, as numbers mean little without it.
pub(super) fn machine() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.split('-').next().unwrap_or_default();
    format!("{cores} cores of {}, Linux {}", model.unwrap_or("an unnamed processor"), release.trim())
}

pub(super) fn json(findings: &Findings, verdicts: &[Verdict]) -> Value {
    let route = |(route, row): (&&str, &Row)| {
        let told = json!({
            "requests_per_s": row.requests_per_s,
            "bytes_per_s": row.bytes_per_s,
            "p50_us": row.p50_us,
            "p99_us": row.p99_us,
            "cpu_us_per_request": row.cpu_us,
        });
        ((*route).to_owned(), told)
    };
    let rows = findings.rows();
    let cases = findings.cases.iter().zip(&findings.samples).zip(&rows).map(|((case, samples), rows)| {
        let routes: serde_json::Map<_, _> = findings.routes.iter().zip(rows).map(route).collect();
        json!({ "case": case.name, "job": case.job, "rounds": samples[DIRECT].len(), "routes": routes })
    });
    let memory = findings.memory.iter().map(|memory| {
        json!({
            "route": memory.route,
            "rest_kib": memory.rest_kib,
            "idle_connection_kib": memory.idle_connection_kib,
        })
    });
    let start = findings.start.iter().map(|(route, first)| json!({ "route": route, "first_answer_ms": first }));
    let targets = verdicts.iter().map(|verdict| {
        json!({
            "what": verdict.what, "value": verdict.value, "unit": verdict.unit,
            "target": verdict.target, "at_least": verdict.at_least, "pass": verdict.pass(),
        })
    });
    json!({
        "machine": machine(),
        "cases": cases.collect::<Vec<_>>(),
        "memory": memory.collect::<Vec<_>>(),
        "start": start.collect::<Vec<_>>(),
        "targets": targets.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::{super::Case, *};

    fn sample(bytes_per_s: f64, cpu_us: Option<f64>) -> Vec<Sample> {
        vec![Sample { requests_per_s: 1.0, bytes_per_s, p50_us: 1.0, p99_us: 2.0, cpu_us }]
    }

    fn findings(routes: Vec<&'static str>) -> Findings {
        let case = |name, kind| Case { name, job: "requests".into(), kind };
        let all = [sample(10.0, None), sample(5.0, Some(10.0)), sample(4.0, Some(16.0))];
        Findings {
            cases: vec![
                case("small", Kind::Requests { cpu: Some(1.5) }),
                case("large", Kind::Bodies { throughput: 0.75 }),
            ],
            samples: vec![all[..routes.len()].to_vec(); 2],
            memory: vec![Memory { route: SUBJECT, rest_kib: 1024.0, idle_connection_kib: 49.0 }],
            start: routes.iter().map(|route| (*route, 100.0)).collect(),
            rules: Vec::new(),
            routes,
        }
    }

    #[test]
    fn targets_are_met_or_missed_against_the_relay() {
        let verdicts = verdicts(&findings(vec!["direct", "relay", SUBJECT]));
        let told: Vec<_> = verdicts.iter().map(|verdict| (verdict.value, verdict.pass())).collect();
        assert_eq!(told, [(1.6, false), (0.8, true), (49.0, false), (1.0, true), (100.0, true)]);
    }

    #[test]
    fn the_yardstick_alone_has_no_target() {
        let findings = findings(vec!["direct", "relay"]);
        assert!(verdicts(&findings).is_empty());
        assert!(!tables(&findings, &[]).contains("target"));
    }
}
