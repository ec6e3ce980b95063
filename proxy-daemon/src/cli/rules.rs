//! `retryscope rules`: check and try rules, and change those of a running
//! instance.
use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use super::Failure;
use crate::{
    control::{self, Client, ClientError, RulesView},
    report::words::plain,
    rules::{self, RuleErrors, RuleSet, presets},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Say whether rule files are right, and everything that is wrong with them
    Check {
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Show what services really answer when they throttle or fail
    Presets {
        /// Show this one in full
        name: Option<String>,
    },
    /// Print the JSON Schema of rule files, for editors
    Schema,
    /// Run rules over a recording (HAR, or JSONL with one attempt a line), with no network at all
    Try {
        /// The rules
        rules: PathBuf,
        /// The recording; - for standard input
        recording: PathBuf,
        /// What chance is drawn from [default: the file's, or 0]
        #[arg(long)]
        seed: Option<u64>,
    },
    /// List a running instance's rules, with how often each has acted
    List {
        #[command(flatten)]
        instance: Instance,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Add a rule to a running instance, after those it has
    Add {
        #[command(flatten)]
        instance: Instance,
        rule: String,
    },
    /// Remove a rule from a running instance
    Remove {
        #[command(flatten)]
        instance: Instance,
        name: String,
    },
    /// Switch a rule off, or all of them
    Off {
        #[command(flatten)]
        instance: Instance,
        name: Option<String>,
    },
    /// Switch a rule on again, or all of them
    On {
        #[command(flatten)]
        instance: Instance,
        name: Option<String>,
    },
    /// Read the rule files of a running instance again
    Reload {
        #[command(flatten)]
        instance: Instance,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Instance {
    /// The instance's pid, where several are running
    #[arg(long = "instance", value_name = "PID")]
    pub(super) pid: Option<u32>,
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::new(error.exit_code(), error.to_string())
    }
}

impl From<RuleErrors> for Failure {
    fn from(errors: RuleErrors) -> Self {
        Self::new(RuleErrors::EXIT_CODE, errors.to_string())
    }
}

pub(super) fn run(args: Args) -> Result<ExitCode, Failure> {
    let text = match args.action {
        Action::Check { files } => check(&files)?,
        Action::Presets { name: None } => presets::list(),
        Action::Presets { name: Some(name) } => presets::show(&name).map_err(Failure::usage)?,
        Action::Schema => format!("{:#}\n", rules::schema()),
        Action::Try { rules, recording, seed } => attempt(&rules, &recording, seed)?,
        Action::List { instance, json } => {
            let view = with(&instance, async |client| client.rules().await)?;
            if json { format!("{}\n", serde_json::to_string_pretty(&view).unwrap_or_default()) } else { list(&view) }
        }
        Action::Add { instance, rule } => {
            let name = with(&instance, async |client| client.add(&rule).await)?;
            format!("added \"{name}\"; it acts from the next attempt on\n")
        }
        Action::Remove { instance, name } => {
            let left = with(&instance, async |client| client.remove(&name).await)?;
            format!("removed \"{name}\"; {} left\n", count(left))
        }
        Action::Off { instance, name } => switch(&instance, name.as_deref(), false)?,
        Action::On { instance, name } => switch(&instance, name.as_deref(), true)?,
        Action::Reload { instance } => {
            let rules = with(&instance, async |client| client.reload().await)?.rules;
            format!("{} in force from the next attempt on\n", count(rules))
        }
    };
    // A reader that has gone away has decided not to read it.
    let _ = io::stdout().lock().write_all(text.as_bytes());
    Ok(ExitCode::SUCCESS)
}

fn count(rules: usize) -> String {
    if rules == 1 { "1 rule".into() } else { format!("{rules} rules") }
}

/// Asks the instance that is meant.
pub(super) fn with<T, E>(instance: &Instance, ask: impl AsyncFnOnce(&Client) -> Result<T, E>) -> Result<T, Failure>
where
    Failure: From<E>,
{
    let client = control::find(instance.pid)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(70, format!("cannot start the runtime ({error})")))?;
    Ok(runtime.block_on(ask(&client))?)
}

fn switch(instance: &Instance, name: Option<&str>, on: bool) -> Result<String, Failure> {
    let word = if on { "on" } else { "off" };
    Ok(match name {
        Some(name) => {
            with(instance, async |client| client.switch(name, on).await)?;
            format!("\"{name}\" is {word} from the next attempt on\n")
        }
        None => {
            let rules = with(instance, async |client| client.switch_all(on).await)?;
            format!("{} {word} from the next attempt on\n", count(rules))
        }
    })
}

/// Reads rule files as an instance would.
pub(super) fn read(paths: &[PathBuf]) -> Result<Vec<(PathBuf, String)>, Failure> {
    paths
        .iter()
        .map(|path| {
            let text = fs::read_to_string(path).map_err(|error| {
                Failure::usage(format!("cannot read the rules in {} ({error}); check the path", path.display()))
            })?;
            Ok((path.clone(), text))
        })
        .collect()
}

fn check(paths: &[PathBuf]) -> Result<String, Failure> {
    let set = RuleSet::parse(&[], &read(paths)?)?;
    Ok(format!("{}, all right\n", count(set.len())))
}

fn list(view: &RulesView) -> String {
    let mut text = String::new();
    if let Some(why) = &view.stopped {
        text.push_str(&format!("No rule acts any more: {why}\n"));
    }
    if view.dry_run {
        text.push_str("A dry run: hits are what would have been done.\n");
    }
    if view.rules.is_empty() {
        text.push_str("There are no rules; `retryscope rules add 'FILTER => ACTION'` adds one.\n");
    }
    for rule in &view.rules {
        let off = if rule.enabled { "   " } else { "off" };
        text.push_str(&format!("{:>8} {off}  {}\n", rule.hits, plain(&rule.name)));
        // A name made of the rule says it already.
        if !rule.rule.starts_with(rule.name.as_str()) {
            text.push_str(&format!("{:14}{}\n", "", plain(&rule.rule)));
        }
    }
    text
}

fn attempt(rules: &Path, recording: &Path, seed: Option<u64>) -> Result<String, Failure> {
    let set = RuleSet::parse(&[], &read(&[rules.to_owned()])?)?;
    let recording = super::recording::load(recording)?;
    Ok(crate::report::trial::run(set, seed, recording.attempts))
}
