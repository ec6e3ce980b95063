//! The syntax tree of a filter, and its printer: `parse(print(tree)) == tree`.
use std::{fmt, ops::Range, time::Duration};

use super::operator::Operator;

/// An expression and where it stood. Two expressions are equal if they say
/// the same, wherever they stood.
#[derive(Clone, Debug)]
pub struct Expr {
    pub kind: Kind,
    /// Byte offsets into the filter's text.
    pub span: Range<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Two or more.
    And(Vec<Expr>),
    /// Two or more.
    Or(Vec<Expr>),
    Not(Box<Expr>),
    Leaf(Leaf),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    pub operator: &'static Operator,
    pub argument: Argument,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Argument {
    None,
    /// A regular expression or a glob, unquoted; not empty.
    Text(String),
    Numbers(Numbers),
    Times(Times),
}

/// A span of times. At least one end is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// With whether the end itself belongs to it.
    pub from: Option<(Duration, bool)>,
    pub to: Option<(Duration, bool)>,
}

impl Times {
    pub fn contains(self, time: Duration) -> bool {
        self.from.is_none_or(|(from, with)| from < time || (with && from == time))
            && self.to.is_none_or(|(to, with)| time < to || (with && to == time))
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |time: Duration| humantime::format_duration(time).to_string().replace(' ', "");
        let equals = |with| if with { "=" } else { "" };
        match (self.from, self.to) {
            (Some((from, _)), Some((to, _))) => write!(f, "{}..{}", short(from), short(to)),
            (Some((from, with)), None) => write!(f, ">{}{}", equals(with), short(from)),
            (None, Some((to, with))) => write!(f, "<{}{}", equals(with), short(to)),
            (None, None) => Ok(()),
        }
    }
}

/// Both ends belong to it. At least one is given, and `from` is not above `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    pub from: Option<u32>,
    pub to: Option<u32>,
}

impl Numbers {
    pub fn contains(self, number: u32) -> bool {
        self.from.is_none_or(|from| from <= number) && self.to.is_none_or(|to| number <= to)
    }
}

impl PartialEq for Expr {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind
    }
}

impl Eq for Expr {}

impl Expr {
    /// The leaves from left to right.
    pub fn leaves(&self) -> Vec<(&Leaf, Range<usize>)> {
        let mut found = Vec::new();
        let mut open = vec![self];
        while let Some(expr) = open.pop() {
            match &expr.kind {
                Kind::And(parts) | Kind::Or(parts) => open.extend(parts.iter().rev()),
                Kind::Not(part) => open.push(part),
                Kind::Leaf(leaf) => found.push((leaf, expr.span.clone())),
            }
        }
        found
    }
}

/// True for what ends an unquoted pattern.
pub(super) fn ends_word(char: char) -> bool {
    char.is_whitespace() || matches!(char, '(' | ')' | '~' | '\'' | '"')
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, parts: &[Expr], between| {
            for (at, part) in parts.iter().enumerate() {
                if at > 0 {
                    f.write_str(between)?;
                }
                match part.kind {
                    Kind::And(_) | Kind::Or(_) => write!(f, "({part})")?,
                    Kind::Not(_) | Kind::Leaf(_) => write!(f, "{part}")?,
                }
            }
            Ok(())
        };
        match &self.kind {
            Kind::And(parts) => list(f, parts, " & "),
            Kind::Or(parts) => list(f, parts, " | "),
            Kind::Not(part) => match part.kind {
                Kind::And(_) | Kind::Or(_) => write!(f, "!({part})"),
                Kind::Not(_) | Kind::Leaf(_) => write!(f, "!{part}"),
            },
            Kind::Leaf(leaf) => write!(f, "{leaf}"),
        }
    }
}

impl fmt::Display for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "~{}", self.operator.code)?;
        match &self.argument {
            Argument::None => Ok(()),
            Argument::Text(text) => write!(f, " {}", Quoted(text)),
            Argument::Numbers(numbers) => write!(f, " {numbers}"),
            Argument::Times(times) => write!(f, " {times}"),
        }
    }
}

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.from == self.to {
            return self.from.map_or(Ok(()), |number| write!(f, "{number}"));
        }
        if let Some(from) = self.from {
            write!(f, "{from}")?;
        }
        f.write_str("..")?;
        if let Some(to) = self.to {
            write!(f, "{to}")?;
        }
        Ok(())
    }
}

/// A pattern as it must be written: quoted only where it has to be.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        let text = self.0;
        let bare = !text.starts_with(['!', '&', '|'])
            && !text.ends_with(['&', '|'])
            && !text.contains(ends_word)
            && !text.contains("=>");
        if bare && !text.is_empty() {
            return f.write_str(text);
        }
        f.write_char('"')?;
        for char in text.chars() {
            if matches!(char, '"' | '\\') {
                f.write_char('\\')?;
            }
            f.write_char(char)?;
        }
        f.write_char('"')
    }
}
