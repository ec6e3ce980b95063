//! Any text is parsed or refused; what is parsed is printed to a text that
//! means the same, and errors can be shown.
#![no_main]

use libfuzzer_sys::fuzz_target;
use retryscope::flow::filter::Filter;

fuzz_target!(|text: &str| {
    match Filter::parse(text) {
        Err(error) => drop(error.render(text)),
        Ok(filter) => {
            let printed = filter.to_string();
            match Filter::parse(&printed) {
                Ok(again) => assert_eq!(again.expr(), filter.expr(), "{printed}"),
                // Canonical form can be longer than what was written.
                Err(error) => assert!(
                    printed.len() > retryscope::flow::filter::MAX_LENGTH,
                    "{}",
                    error.render(&printed)
                ),
            }
        }
    }
});
