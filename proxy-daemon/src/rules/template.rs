//! Text with places to fill in: `{{request_id}}`; `{{{{` stands for `{{`.
//!
//! A template is parsed once; what it is filled with comes from the attempt
//! and from a draw, so that a run with the same seed is told the same ids.
//! Values are escaped for the text that they go into: JSON and XML bodies
//! stay well-formed whatever a path holds.
use std::fmt;

use crate::flow::Attempt;

/// A text, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    text: String,
    parts: Vec<Part>,
    form: Form,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Variable(Variable),
}

/// What a template's text is, told by its first character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Plain,
    Json,
    Xml,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variable {
    Attempt,
    Call,
    HostId,
    Host,
    Message,
    Method,
    Operation,
    Path,
    RequestContentType,
    RequestId,
    RetryAfter,
    RetryAfterMs,
    Service,
    Uuid,
}

/// What services say when they throttle.
const MESSAGE: &str = "Rate exceeded";

/// Names, and what they stand for.
const VARIABLES: &[(&str, Variable)] = &[
    ("attempt", Variable::Attempt),
    ("call", Variable::Call),
    ("host", Variable::Host),
    ("host_id", Variable::HostId),
    ("message", Variable::Message),
    ("method", Variable::Method),
    ("operation", Variable::Operation),
    ("path", Variable::Path),
    ("request_content_type", Variable::RequestContentType),
    ("request_id", Variable::RequestId),
    ("retry_after", Variable::RetryAfter),
    ("retry_after_ms", Variable::RetryAfterMs),
    ("service", Variable::Service),
    ("uuid", Variable::Uuid),
];

impl Template {
    /// # Errors
    /// One sentence: a place that is not closed, or a name that is not known.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find("{{") {
            if at > 0 {
                parts.push(Part::Literal(rest[..at].to_owned()));
            }
            if rest[at..].starts_with("{{{{") {
                parts.push(Part::Literal("{{".to_owned()));
                rest = &rest[at + 4..];
                continue;
            }
            let Some(end) = rest[at..].find("}}") else {
                return Err("this {{ is never closed; a place to fill in is written {{request_id}}".into());
            };
            let name = rest[at + 2..at + end].trim();
            parts.push(Part::Variable(variable(name)?));
            rest = &rest[at + end + 2..];
        }
        if !rest.is_empty() {
            parts.push(Part::Literal(rest.to_owned()));
        }
        let form = match text.trim_start().chars().next() {
            Some('{' | '[') if !text.trim_start().starts_with("{{") => Form::Json,
            Some('<') => Form::Xml,
            _ => Form::Plain,
        };
        Ok(Self { text: text.to_owned(), parts, form })
    }

    /// `draw`: what ids are made of, so that a run repeats them.
    pub fn render(&self, attempt: &Attempt, draw: u64) -> String {
        self.fill(|variable| variable.value(attempt, draw))
    }

    /// As some request to this service would be answered.
    pub fn sample(&self, service: &str) -> String {
        self.fill(|variable| variable.sample(service))
    }

    fn fill(&self, value: impl Fn(Variable) -> String) -> String {
        let mut text = String::with_capacity(self.text.len() + 64);
        for part in &self.parts {
            match part {
                Part::Literal(literal) => text.push_str(literal),
                Part::Variable(variable) => escape(&value(*variable), self.form, &mut text),
            }
        }
        text
    }
}

fn variable(name: &str) -> Result<Variable, String> {
    if let Some((_, variable)) = VARIABLES.iter().find(|(known, _)| *known == name) {
        return Ok(*variable);
    }
    let near = VARIABLES
        .iter()
        .map(|(known, _)| (strsim::damerau_levenshtein(known, name), *known))
        .filter(|(distance, known)| *distance <= 2 && *distance < known.len())
        .min();
    Err(match near {
        Some((_, known)) => format!("nothing is called {{{{{name}}}}}; did you mean {{{{{known}}}}}?"),
        None => {
            let names: Vec<&str> = VARIABLES.iter().map(|(name, _)| *name).collect();
            format!("nothing is called {{{{{name}}}}}; there are {}", names.join(", "))
        }
    })
}

fn escape(value: &str, form: Form, text: &mut String) {
    for char in value.chars() {
        match (form, char) {
            (Form::Json, '"' | '\\') => text.extend(['\\', char]),
            (Form::Json, char) if char.is_control() => text.push_str(&format!("\\u{:04x}", u32::from(char))),
            (Form::Xml, '<') => text.push_str("&lt;"),
            (Form::Xml, '>') => text.push_str("&gt;"),
            (Form::Xml, '&') => text.push_str("&amp;"),
            (Form::Xml, '"') => text.push_str("&quot;"),
            (_, char) if char.is_control() => text.push('?'),
            (_, char) => text.push(char),
        }
    }
}

/// A long id is made of more than one draw (splitmix64).
fn stir(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

fn letters(alphabet: &[u8], count: usize, mut state: u64) -> String {
    (0..count)
        .map(|_| {
            let at = stir(&mut state) % alphabet.len().max(1) as u64;
            alphabet.get(at as usize).map_or('0', |byte| char::from(*byte))
        })
        .collect()
}

fn uuid(mut state: u64) -> String {
    let (high, low) = (stir(&mut state), stir(&mut state));
    let version = high & 0xffff_ffff_ffff_0fff | 0x4000;
    let variant = low & 0x3fff_ffff_ffff_ffff | 0x8000_0000_0000_0000;
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        version >> 32,
        version >> 16 & 0xffff,
        version & 0xffff,
        variant >> 48,
        variant & 0xffff_ffff_ffff
    )
}

/// An id of the service's own form.
fn request_id(service: &str, draw: u64) -> String {
    const BASE32: &[u8] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    if service.starts_with("s3") { letters(BASE32, 16, draw) } else { uuid(draw) }
}

fn host_id(draw: u64) -> String {
    const BASE64: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    format!("{}=", letters(BASE64, 75, draw ^ 1))
}

impl Variable {
    fn sample(self, service: &str) -> String {
        const DRAW: u64 = 7;
        match self {
            Variable::Attempt | Variable::Call | Variable::RetryAfter => "1".to_owned(),
            Variable::Host => format!("{service}.example.com"),
            Variable::HostId => host_id(DRAW),
            Variable::Message => MESSAGE.to_owned(),
            Variable::Method => "GET".to_owned(),
            Variable::Operation => "Operation".to_owned(),
            Variable::Path => "/".to_owned(),
            Variable::RequestContentType => "application/json".to_owned(),
            Variable::RequestId => request_id(service, DRAW),
            Variable::RetryAfterMs => "1000".to_owned(),
            Variable::Service => service.to_owned(),
            Variable::Uuid => uuid(DRAW),
        }
    }

    fn value(self, attempt: &Attempt, draw: u64) -> String {
        let service = attempt.operation.service.as_deref();
        let request = &attempt.request;
        match self {
            Variable::Attempt => attempt.link.number.to_string(),
            Variable::Call => attempt.link.call.0.to_string(),
            Variable::Host => request.host().to_owned(),
            Variable::HostId => host_id(draw),
            Variable::Message => MESSAGE.to_owned(),
            Variable::Method => request.method.to_string(),
            Variable::Operation => attempt.operation.name.as_deref().unwrap_or_default().to_owned(),
            Variable::Path => request.path().to_owned(),
            Variable::RequestContentType => request.headers.text("content-type").unwrap_or("text/plain").to_owned(),
            Variable::RequestId => request_id(service.unwrap_or_default(), draw),
            Variable::Uuid => uuid(draw),
            Variable::RetryAfter => "1".to_owned(),
            Variable::RetryAfterMs => "1000".to_owned(),
            Variable::Service => service.unwrap_or_default().to_owned(),
        }
    }
}

/// As it was written.
impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::filter::tests::attempt;

    fn render(text: &str) -> String {
        Template::parse(text).expect(text).render(&attempt(), 7)
    }

    #[test]
    fn places_are_filled_in() {
        assert_eq!(
            render("{{method}} {{host}} {{ path }} #{{attempt}}"),
            "GET s3.eu-west-1.amazonaws.com /bucket/key #2"
        );
        assert_eq!(render("{{service}}.{{operation}}"), "s3.GetObject");
        assert_eq!(render("plain {text}"), "plain {text}");
        assert_eq!(render("{{{{method}} and {{method}}{{{{"), "{{method}} and GET{{");
        assert_eq!(render("{{request_id}}").len(), 16);
        assert_eq!(render("{{host_id}}").len(), 76);
        assert_eq!(render("{{request_id}}"), render("{{request_id}}"));
        let id = render("{{uuid}}");
        assert!(id.len() == 36 && id.as_bytes()[14] == b'4', "{id}");
    }

    #[test]
    fn values_keep_bodies_well_formed() {
        let mut it = attempt();
        it.request.target = "/a\"b<c>&\\".into();
        let json = Template::parse("{\"path\": \"{{path}}\"}").expect("JSON").render(&it, 0);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).expect("JSON")["path"], "/a\"b<c>&\\");
        let xml = Template::parse("<p>{{path}}</p>").expect("XML").render(&it, 0);
        assert_eq!(xml, "<p>/a&quot;b&lt;c&gt;&amp;\\</p>");
    }

    #[test]
    fn what_is_wrong_is_told() {
        assert!(Template::parse("{{requestid}}").is_err_and(|error| error.contains("{{request_id}}?")));
        assert!(Template::parse("{{x").is_err_and(|error| error.contains("never closed")));
        assert!(Template::parse("{{nonsense}}").is_err_and(|error| error.contains("there are attempt")));
    }
}
