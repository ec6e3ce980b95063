//! The page's files. They hold nothing of the instance, and are in the binary.
use axum::{Router, http::header, response::IntoResponse, routing::get};

/// A file: where it is served, what it is, and what it says.
type File = (&'static str, &'static str, &'static str);

const HTML: &str = "text/html; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

const FILES: &[File] = &[
    ("/", HTML, include_str!("assets/index.html")),
    ("/page.css", STYLE, include_str!("assets/page.css")),
    ("/icon.svg", "image/svg+xml", include_str!("assets/icon.svg")),
    // Scales and zoom, as in the HTML report; `cargo xtask vendor-chart` makes it.
    ("/chart.min.js", SCRIPT, include_str!("../../report/html/vendor/chart.min.js")),
    ("/main.js", SCRIPT, include_str!("assets/main.js")),
    ("/api.js", SCRIPT, include_str!("assets/api.js")),
    ("/dom.js", SCRIPT, include_str!("assets/dom.js")),
    ("/detail.js", SCRIPT, include_str!("assets/detail.js")),
    ("/filter.js", SCRIPT, include_str!("assets/filter.js")),
    ("/flows.js", SCRIPT, include_str!("assets/flows.js")),
    ("/holds.js", SCRIPT, include_str!("assets/holds.js")),
    ("/kept.js", SCRIPT, include_str!("assets/kept.js")),
    ("/rows.js", SCRIPT, include_str!("assets/rows.js")),
    ("/timeline.js", SCRIPT, include_str!("assets/timeline.js")),
    ("/words.js", SCRIPT, include_str!("assets/words.js")),
    ("/live.js", SCRIPT, include_str!("assets/live.js")),
    ("/overview.js", SCRIPT, include_str!("assets/overview.js")),
    ("/rules.js", SCRIPT, include_str!("assets/rules.js")),
];

pub(super) fn routes() -> Router {
    FILES.iter().fold(Router::new(), |router, (path, kind, text)| {
        router.route(path, get(move || async move { ([(header::CONTENT_TYPE, *kind)], *text).into_response() }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: &str) -> &'static str {
        FILES.iter().find(|file| file.0 == path).map(|file| file.2).unwrap_or_else(|| panic!("no {path}"))
    }

    /// What the policy would refuse anyway.
    #[test]
    fn nothing_becomes_markup_or_is_fetched_from_elsewhere() {
        for (path, kind, text) in FILES.iter().filter(|file| file.0 != "/chart.min.js") {
            if *kind == SCRIPT {
                for word in [
                    "innerHTML",
                    "outerHTML",
                    "insertAdjacentHTML",
                    "document.write",
                    "eval(",
                    "DOMParser",
                    "http:",
                    "https:",
                    "setTimeout(\"",
                ] {
                    assert!(!text.contains(word), "{path}: {word}");
                }
            } else if *kind == STYLE {
                assert!(!text.contains("url(") && !text.contains("@import"), "{path}");
            } else if *kind == HTML {
                assert!(!text.contains(" style=") && !text.contains(" on") && !text.contains("//"), "{path}");
            }
        }
    }

    #[test]
    fn what_files_name_is_there() {
        for word in text("/").split('"').filter(|word| word.starts_with('/') && word.len() > 1) {
            text(word);
        }
        for (path, kind, script) in FILES {
            if *kind != SCRIPT || *path == "/chart.min.js" {
                continue;
            }
            for from in script.lines().filter(|line| line.starts_with("import") || line.starts_with("} from")) {
                let name = from.rsplit('"').nth(1).unwrap_or_else(|| panic!("{path}: {from}"));
                text(name.trim_start_matches('.'));
            }
        }
    }
}
