//! docs/operations.md says what is: its alerts are those that are deployed,
//! its metrics are documented, and its commands are ones that there are.
use std::{collections::BTreeSet, path::Path, process::Command};

const MANUAL: &str = include_str!("../../docs/operations.md");
const METRICS: &str = include_str!("../../docs/metrics.md");
const ALERTS: &str = include_str!("../../deploy/prometheus/alerts.yml");
const RULES: &str = include_str!("../../deploy/prometheus/rules.yml");

/// What stands between backticks, and the lines of blocks of commands.
fn quoted() -> Vec<&'static str> {
    let mut found = Vec::new();
    for (at, part) in MANUAL.split("```").enumerate() {
        if at % 2 == 1 {
            found.extend(part.strip_prefix("sh\n").into_iter().flat_map(str::lines));
        } else {
            found.extend(part.split('`').skip(1).step_by(2));
        }
    }
    found
}

#[test]
fn every_alert_is_explained_and_deployed() {
    let deployed: BTreeSet<&str> = ALERTS.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let table = MANUAL.split("## What to watch").nth(1).and_then(|rest| rest.split("## ").next()).expect("a section");
    let explained: BTreeSet<&str> =
        table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert_eq!(explained, deployed);
    assert_eq!(deployed.len(), 12);
}

#[test]
fn every_metric_is_documented() {
    let names = quoted().into_iter().chain([ALERTS, RULES]).flat_map(|text| {
        text.split(|char: char| !char.is_ascii_alphanumeric() && char != '_')
            .filter(|word| word.starts_with("retryscope_") || word.starts_with("process_"))
    });
    // Of recorded ones the middle is a name of their own.
    let recorded = [
        "retryscope_retries",
        "retryscope_attempts",
        "retryscope_amplification",
        "retryscope_throttled",
        "retryscope_stalled",
    ];
    let mut seen = 0;
    for name in names
        .filter(|name| !recorded.contains(name) && !["retryscope_", "retryscope_NEW", "retryscope_OLD"].contains(name))
    {
        // Some stand as `retryscope_a_total`, `…_b_total`.
        let tail = name.rsplit_once('_').map_or(name, |(start, _)| start.rsplit('_').next().unwrap_or(name));
        assert!(
            METRICS.contains(name) || METRICS.contains(&format!("…_{tail}_total")),
            "{name} is not in docs/metrics.md"
        );
        seen += 1;
    }
    assert!(seen > 20, "{seen}");
    for line in RULES.lines().filter_map(|line| line.trim().strip_prefix("- record: ")) {
        let shown = [
            "service:retryscope_retries:rate1m",
            "service:retryscope_amplification:ratio1m",
            "command:retryscope_stalled:ratio1m",
        ];
        assert!(MANUAL.contains(line) || !shown.contains(&line), "{line}");
    }
}

#[test]
fn every_command_is_one() {
    let mut seen = 0;
    for line in quoted() {
        let words: Vec<&str> = line.split_whitespace().skip_while(|word| *word == "sudo").collect();
        let Some((&"retryscope", rest)) = words.split_first() else { continue };
        let sub: Vec<&str> = rest
            .iter()
            .copied()
            .take_while(|word| word.starts_with(|first: char| first.is_ascii_lowercase()))
            .collect();
        let help = |words: &[&str]| {
            let output = Command::new(Path::new(env!("CARGO_BIN_EXE_retryscope"))).args(words).arg("--help").output();
            let output = output.expect("retryscope runs");
            (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let (is, text) = help(&sub);
        assert!(is, "{line}");
        for option in rest.iter().filter(|word| word.starts_with("--")) {
            assert!(text.contains(option), "{line}: there is no {option}\n{text}");
        }
        // A second word is a command of its own, or a value that is listed.
        if let [first, second, ..] = sub[..] {
            let (_, of_first) = help(&[first]);
            assert!(of_first.contains(second), "{line}: there is no {second}\n{of_first}");
        }
        seen += 1;
    }
    assert!(seen > 12, "{seen}");
}
