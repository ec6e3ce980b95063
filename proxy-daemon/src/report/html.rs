//! The report as one HTML page that asks nothing of any network.
//!
//! In: a report, and the attempts that were kept for its timeline. Out: a
//! page that holds its style, its scripts and its data. What clients and
//! upstreams sent is never markup: it is data in a block that no script
//! engine runs, with `<` escaped, and the script shows it as text alone. The
//! page's own policy allows nothing but the script and the style that it was
//! made with, each named by its digest.
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Serialize;

use super::{Report, said::Said, timeline::Timeline};

const PAGE: &str = include_str!("html/page.html");
const STYLE: &str = include_str!("html/page.css");
const SCRIPT: &str = include_str!("html/page.js");
/// Scales and zoom; `cargo xtask vendor-chart` makes it.
const CHART: &str = include_str!("html/vendor/chart.min.js");

/// What the script shows.
#[derive(Serialize)]
struct Data<'a> {
    report: &'a Report,
    #[serde(flatten)]
    said: Said,
    timeline: Option<&'a Timeline>,
}

/// The page. Without a timeline (a running instance, a saved report) it says
/// how to get one.
pub fn html(report: &Report, timeline: Option<&Timeline>) -> String {
    let data = Data { report, said: Said::of(report), timeline };
    // A tree of strings, numbers and maps with string keys always serialises.
    let data = inert(&serde_json::to_string(&data).unwrap_or_default());
    let policy = format!(
        "default-src 'none'; script-src {} {}; style-src {}; base-uri 'none'; form-action 'none'",
        digest(CHART),
        digest(SCRIPT),
        digest(STYLE)
    );
    // Each place once, in the page's order: what is put in is not looked at
    // again.
    let mut page = String::with_capacity(PAGE.len() + STYLE.len() + SCRIPT.len() + CHART.len() + data.len() + 512);
    let mut rest = PAGE;
    for (place, value) in
        [("{policy}", policy.as_str()), ("{style}", STYLE), ("{data}", &data), ("{chart}", CHART), ("{script}", SCRIPT)]
    {
        let (before, after) = rest.split_once(place).unwrap_or((rest, ""));
        page.extend([before, value]);
        rest = after;
    }
    page.push_str(rest);
    page
}

/// JSON that ends no script and begins no comment, whatever it holds.
fn inert(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for char in json.chars() {
        match char {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\u{7f}'..='\u{9f}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(char)));
            }
            char => out.push(char),
        }
    }
    out
}

/// As a content security policy names a script or a style.
fn digest(text: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    format!("'sha256-{}'", STANDARD.encode(digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_fit_into_the_page() {
        let places = ["{policy}", "{style}", "{data}", "{chart}", "{script}"];
        let at: Vec<_> = places.iter().map(|place| PAGE.find(place)).collect();
        assert!(at.iter().all(Option::is_some) && at.is_sorted(), "{at:?}");
        for part in [STYLE, SCRIPT, CHART] {
            let part = part.to_ascii_lowercase();
            assert!(!part.contains("</script") && !part.contains("</style") && !part.contains("<!--"));
            // A browser reads line ends as \n before it digests.
            assert!(!part.contains('\r'));
        }
        // Nothing is fetched, and nothing becomes markup.
        for word in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "fetch(", "eval(", "http"] {
            assert!(!SCRIPT.contains(word), "{word}");
        }
        assert!(!STYLE.contains("url(") && !STYLE.contains("@import"));
    }

    #[test]
    fn data_is_never_markup() {
        let hostile = "</script><img src=x onerror=alert(1)><!-- & \u{2028} {script} \u{9b}";
        let escaped = inert(&serde_json::to_string(hostile).expect("JSON"));
        assert!(!escaped.contains(['<', '>', '&', '\u{2028}', '\u{9b}']), "{escaped}");
        assert_eq!(serde_json::from_str::<String>(&escaped).expect("JSON"), hostile);
    }
}
