//! The JSON report, read with names instead of indexing.
use serde_json::Value;

#[derive(Clone, Debug)]
pub struct Report(pub Value);

impl Report {
    #[track_caller]
    pub fn parse(text: &str) -> Self {
        let value: Value =
            serde_json::from_str(text).unwrap_or_else(|error| panic!("the report is not JSON ({error}): {text}"));
        assert_eq!(value["schema"], 1, "the report's schema: {value}");
        Self(value)
    }

    pub fn processes(&self) -> &[Value] {
        self.0["processes"].as_array().map(Vec::as_slice).unwrap_or_default()
    }

    /// The one process whose command line holds `part`.
    #[track_caller]
    pub fn process(&self, part: &str) -> &Value {
        let found: Vec<&Value> =
            self.processes().iter().filter(|row| row["command"].as_str().is_some_and(|it| it.contains(part))).collect();
        assert!(found.len() == 1, "expected one process with '{part}' in its command: {self}");
        found[0]
    }

    #[track_caller]
    pub fn total(&self, name: &str) -> u64 {
        number(&self.0["totals"], name)
    }

    /// The first problem of this kind, whoever had it.
    #[track_caller]
    pub fn problem(&self, kind: &str) -> &Value {
        let found = self.processes().iter().flat_map(|row| row["problems"].as_array().into_iter().flatten());
        let mut found = found.filter(|problem| problem["kind"] == kind);
        found.next().unwrap_or_else(|| panic!("expected a problem '{kind}': {self}"))
    }

    /// Every process's tunnels.
    pub fn tunnels(&self) -> Vec<&Value> {
        self.processes().iter().flat_map(|row| row["tunnels"].as_array().into_iter().flatten()).collect()
    }

    /// A number of every process, added up.
    #[track_caller]
    pub fn sum(&self, name: &str) -> u64 {
        self.processes().iter().map(|row| number(row, name)).sum()
    }

    /// Connections by what became of them: `intercepted`, `tunnelled`, `refused`.
    #[track_caller]
    pub fn connections(&self, name: &str) -> u64 {
        self.processes().iter().map(|row| number(&row["connections"], name)).sum()
    }

    pub fn operations(&self) -> impl Iterator<Item = &Value> {
        self.processes().iter().flat_map(|row| row["operations"].as_array().into_iter().flatten())
    }

    /// A counted map of every operation (`statuses`, `injected`, `errors`),
    /// added up under one key.
    pub fn count(&self, map: &str, key: &str) -> u64 {
        self.operations().filter_map(|row| row[map].get(key)).filter_map(Value::as_u64).sum()
    }

    /// All of one map, added up.
    pub fn counts(&self, map: &str) -> std::collections::BTreeMap<String, u64> {
        let mut sums = std::collections::BTreeMap::new();
        for (key, value) in self.operations().filter_map(|row| row[map].as_object()).flatten() {
            *sums.entry(key.clone()).or_default() += value.as_u64().unwrap_or_default();
        }
        sums
    }

    /// The row of one operation of one process.
    #[track_caller]
    pub fn operation<'a>(process: &'a Value, service: &str, name: &str) -> &'a Value {
        process["operations"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|row| row["service"] == service && row["operation"] == name)
            .unwrap_or_else(|| panic!("no operation {service}.{name} in {process:#}"))
    }
}

#[track_caller]
pub fn number(row: &Value, name: &str) -> u64 {
    row[name].as_u64().unwrap_or_else(|| panic!("'{name}' is not a whole number in {row:#}"))
}

/// A number that may have a fraction, such as milliseconds.
#[track_caller]
pub fn amount(row: &Value, name: &str) -> f64 {
    row[name].as_f64().unwrap_or_else(|| panic!("'{name}' is not a number in {row:#}"))
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#}", self.0)
    }
}
