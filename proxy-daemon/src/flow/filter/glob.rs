//! Names with `*` (any run of characters) and `?` (any one), without case.

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Glob {
    pattern: Box<[u8]>,
}

impl Glob {
    pub fn new(pattern: &str) -> Self {
        Self { pattern: pattern.to_ascii_lowercase().into_bytes().into() }
    }

    /// Whether the whole text is described. Linear but for a pattern of many
    /// stars; never recursive.
    pub fn is_match(&self, text: &str) -> bool {
        let (pattern, text) = (&self.pattern, text.as_bytes());
        let (mut at, mut in_pattern) = (0, 0);
        // Where to go on after a mismatch: past the last star, one byte on.
        let mut star: Option<(usize, usize)> = None;
        while let Some(byte) = text.get(at) {
            match pattern.get(in_pattern) {
                Some(b'*') => {
                    star = Some((in_pattern + 1, at));
                    in_pattern += 1;
                }
                Some(b'?') => {
                    at += 1;
                    in_pattern += 1;
                }
                Some(cell) if *cell == byte.to_ascii_lowercase() => {
                    at += 1;
                    in_pattern += 1;
                }
                _ => {
                    let Some((after, from)) = star else { return false };
                    star = Some((after, from + 1));
                    at = from + 1;
                    in_pattern = after;
                }
            }
        }
        pattern.get(in_pattern..).is_some_and(|rest| rest.iter().all(|cell| *cell == b'*'))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn naive(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) if naive(rest, text) => true,
            (Some((b'*', _)), Some((_, shorter))) => naive(pattern, shorter),
            (Some((b'?', rest)), Some((_, shorter))) => naive(rest, shorter),
            (Some((cell, rest)), Some((byte, shorter))) => cell.eq_ignore_ascii_case(byte) && naive(rest, shorter),
            _ => false,
        }
    }

    #[test]
    fn matches_whole_names() {
        for (pattern, text, expected) in [
            ("ListBuckets", "ListBuckets", true),
            ("listbuckets", "ListBuckets", true),
            ("List", "ListBuckets", false),
            ("List*", "ListBuckets", true),
            ("*Buckets", "ListBuckets", true),
            ("*st*", "ListBuckets", true),
            ("List?uckets", "ListBuckets", true),
            ("*", "", true),
            ("?", "", false),
        ] {
            assert_eq!(Glob::new(pattern).is_match(text), expected, "{pattern} {text}");
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(pattern in "[aAb*?]{0,8}", text in "[aAb]{0,10}") {
            prop_assert_eq!(Glob::new(&pattern).is_match(&text), naive(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
