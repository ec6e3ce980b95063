//! The canonical line of a rule: what [`super::parse`] reads back.
use super::*;

pub(in crate::rules) fn rule(draft: &Draft) -> String {
    let mut text = format!("{} =>", draft.filter);
    let mut put = |clause: String| {
        text.push(' ');
        text.push_str(&clause);
    };
    let Action { delay, limit, answer, abort } = &draft.action;
    if let Some(Rate { count, per, burst, key }) = limit {
        let unit = match per.as_secs() {
            60 => "m",
            3600 => "h",
            _ => "s",
        };
        let key = RATE_KEYS.iter().find(|(_, it)| it == key).map_or("rule", |(name, _)| name);
        put(format!("limit {count}/{unit} per {key}"));
        if let Some(burst) = burst {
            put(format!("burst {burst}"));
        }
    }
    if let Some(Delay { of, cap }) = delay {
        put(match of {
            Spread::Fixed(time) => format!("delay {}", short(*time)),
            Spread::Uniform { from, to } => format!("delay {}..{}", short(*from), short(*to)),
            Spread::Normal { mean, deviation } => format!("delay {}~{}", short(*mean), short(*deviation)),
        });
        if let Some(cap) = cap {
            put(format!("cap {}", short(*cap)));
        }
    }
    if let Some(answer) = answer {
        if answer.continue_then {
            put("continue-then".into());
        }
        match answer.preset {
            Some(PresetChoice::Throttle) => put("throttle".into()),
            Some(PresetChoice::Named(preset)) => put(format!("preset {}", preset.name)),
            None => {}
        }
        if let Some(status) = answer.status {
            put(status.to_string());
            if let Some(reason) = &answer.reason {
                put(quote(reason));
            }
        }
        for header in &answer.headers {
            put(match header {
                HeaderEdit::Set(name, value) => format!("set {}", quote(&format!("{name}: {value}"))),
                HeaderEdit::Add(name, value) => format!("add {}", quote(&format!("{name}: {value}"))),
                HeaderEdit::Remove(name) => format!("remove {name}"),
            });
        }
        match &answer.body {
            Some(BodyEdit::Text(text)) => put(format!("body {}", quote(&text.to_string()))),
            Some(BodyEdit::File(path, _)) => put(format!("body @{}", path.display())),
            Some(BodyEdit::Merge(patch)) => put(format!("merge {}", quote(&patch.to_string()))),
            None => {}
        }
    }
    if let Some(abort) = abort {
        put(match abort {
            Abort::Truncate(after) => format!("truncate {after}"),
            Abort::Stall(Some(time)) => format!("stall {}", short(*time)),
            Abort::GoAway(code) | Abort::RstStream(code) => format!("{} {}", abort.name(), code_name(*code)),
            other => other.name().to_owned(),
        });
    }
    if draft.action == Action::default() {
        put("pass".into());
    }
    let Limits { after, window, chance, every, times, max_share, max_hits } = draft.limits;
    after.into_iter().for_each(|time| put(format!("after {}", short(time))));
    window.into_iter().for_each(|time| put(format!("for {}", short(time))));
    chance.into_iter().for_each(|share| put(format!("chance {share}")));
    every.into_iter().for_each(|number| put(format!("every {number}")));
    if let Some(Times { count, per }) = times {
        put(format!("times {count} per {}", per.name()));
    }
    max_share.into_iter().for_each(|share| put(format!("max-share {share}")));
    max_hits.into_iter().for_each(|number| put(format!("max-hits {number}")));
    if draft.go_on {
        put("continue".into());
    }
    put(format!("in {}", if draft.phase == Phase::Request { "request" } else { "response" }));
    text
}

fn short(time: Duration) -> String {
    humantime::format_duration(time).to_string().replace(' ', "")
}

fn code_name(code: u32) -> String {
    usize::try_from(code).ok().and_then(|at| CODES.get(at)).map_or_else(|| code.to_string(), |name| (*name).to_owned())
}

fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
