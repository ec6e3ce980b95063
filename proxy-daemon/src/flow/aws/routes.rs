//! Operations by method, path and query, for the REST services.
//!
//! `models.txt.gz` is made by `cargo xtask aws-models` out of botocore's
//! models (see `NOTICE` beside it), whose form `xtask/src/aws_models.py`
//! tells. It is unpacked when the first such request comes, and the routes of
//! a service are read when its first request comes: a process talks to few.
use std::{
    collections::HashMap,
    io::Read,
    sync::{Arc, LazyLock, PoisonError, RwLock},
};

use super::parameters;
use crate::flow::Headers;

/// Longer paths are nobody's API.
const MAX_SEGMENTS: usize = 64;

struct Models {
    targets: HashMap<&'static str, &'static str>,
    endpoints: HashMap<&'static str, &'static str>,
    /// The lines of each service.
    services: HashMap<&'static str, &'static str>,
}

static MODELS: LazyLock<Models> = LazyLock::new(|| {
    let mut text = String::new();
    // A part of the program: a test reads it.
    let packed: &[u8] = include_bytes!("models.txt.gz");
    let _ = flate2::read::GzDecoder::new(packed).read_to_string(&mut text);
    Models::read(text.leak())
});

impl Models {
    fn read(text: &'static str) -> Self {
        let mut models = Self { targets: HashMap::new(), endpoints: HashMap::new(), services: HashMap::new() };
        let (head, services) = text.split_once("\nS ").unwrap_or((text, ""));
        for line in head.lines() {
            let mut words = line.split(' ');
            let (kind, name, service) = (words.next(), words.next(), words.next());
            let table = match kind {
                Some("T") => &mut models.targets,
                Some("A") => &mut models.endpoints,
                _ => continue,
            };
            table.extend(name.zip(service));
        }
        models.services.extend(services.split("\nS ").filter_map(|part| part.split_once('\n')));
        models
    }
}

/// The signing name behind the prefix of an `X-Amz-Target`.
pub(super) fn target(prefix: &str) -> Option<&'static str> {
    MODELS.targets.get(prefix).copied()
}

/// The signing name behind an endpoint's label, where they differ.
pub(super) fn endpoint(label: &str) -> Option<&'static str> {
    MODELS.endpoints.get(label).copied()
}

/// The operation of a request to a service of this signing name.
pub(super) fn operation(
    service: &str,
    method: &str,
    path: &str,
    query: Option<&str>,
    headers: &Headers,
) -> Option<&'static str> {
    routes(service)?.find(method, path, query.unwrap_or_default(), headers)
}

fn routes(service: &str) -> Option<Arc<Routes>> {
    static READ: LazyLock<RwLock<HashMap<&'static str, Arc<Routes>>>> = LazyLock::new(RwLock::default);
    if let Some(known) = READ.read().unwrap_or_else(PoisonError::into_inner).get(service) {
        return Some(Arc::clone(known));
    }
    let (name, lines) = MODELS.services.get_key_value(service)?;
    let routes = Arc::new(Routes::read(lines));
    // As many as there are services, at most.
    READ.write().unwrap_or_else(PoisonError::into_inner).insert(name, Arc::clone(&routes));
    Some(routes)
}

/// One service's routes by method and number of segments; those that take
/// all that is left stand under the least number they need.
#[derive(Default)]
struct Routes {
    exact: HashMap<(&'static str, usize), Vec<Route>>,
    greedy: HashMap<&'static str, Vec<Route>>,
}

struct Route {
    segments: Box<[Segment]>,
    /// Query keys that have to be there, some with their value.
    keys: Box<[(&'static str, Option<&'static str>)]>,
    headers: Box<[&'static str]>,
    name: &'static str,
}

enum Segment {
    Literal(&'static str),
    Any,
    /// One segment or more.
    Rest,
}

impl Routes {
    fn read(lines: &'static str) -> Self {
        let mut routes = Self::default();
        for line in lines.lines() {
            let Some((method, rest)) = line.split_once(' ') else { continue };
            let Some((rest, name)) = rest.rsplit_once(' ') else { continue };
            let (target, headers) = rest.split_once(' ').unwrap_or((rest, ""));
            let (path, query) = target.split_once('?').unwrap_or((target, ""));
            let segments: Box<[Segment]> = segments(path)
                .map(|segment| match segment {
                    "{}" => Segment::Any,
                    "{+}" => Segment::Rest,
                    literal => Segment::Literal(literal),
                })
                .collect();
            let keys = query.split('&').filter(|key| !key.is_empty());
            let keys = keys.map(|key| key.split_once('=').map_or((key, None), |(key, value)| (key, Some(value))));
            let headers = headers.split(' ').filter(|header| !header.is_empty()).collect();
            let takes_rest = segments.iter().any(|segment| matches!(segment, Segment::Rest));
            let count = segments.len();
            let route = Route { segments, keys: keys.collect(), headers, name };
            if takes_rest {
                routes.greedy.entry(method).or_default().push(route);
            } else {
                routes.exact.entry((method, count)).or_default().push(route);
            }
        }
        routes
    }

    fn find(&self, method: &str, path: &str, query: &str, headers: &Headers) -> Option<&'static str> {
        let parts: Vec<&str> = segments(path).take(MAX_SEGMENTS + 1).collect();
        if parts.len() > MAX_SEGMENTS {
            return None;
        }
        let exact = method_of(method).and_then(|method| self.exact.get(&(method, parts.len())));
        let candidates = exact.into_iter().chain(self.greedy.get(method)).flatten();
        candidates
            .filter(|route| route.fits(&parts, query, headers))
            .max_by_key(|route| route.rank())
            .map(|route| route.name)
    }
}

/// The table's own spelling, which its keys are made of.
fn method_of(method: &str) -> Option<&'static str> {
    ["GET", "PUT", "POST", "DELETE", "PATCH", "HEAD"].into_iter().find(|known| *known == method)
}

/// Of a path without its outer slashes; none of `/`.
fn segments(path: &str) -> impl Iterator<Item = &str> {
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.strip_suffix('/').unwrap_or(path);
    path.split('/').take_while(move |_| !path.is_empty())
}

impl Route {
    fn fits(&self, parts: &[&str], query: &str, headers: &Headers) -> bool {
        self.fits_path(parts)
            && self.keys.iter().all(|(key, value)| {
                parameters(query).any(|(found, told)| found == *key && value.is_none_or(|value| value == told))
            })
            && self.headers.iter().all(|header| headers.get(header).is_some())
    }

    fn fits_path(&self, parts: &[&str]) -> bool {
        let rest = self.segments.iter().position(|segment| matches!(segment, Segment::Rest));
        let fits = |segments: &[Segment], parts: &[&str]| {
            segments.iter().zip(parts).all(|(segment, part)| match segment {
                Segment::Literal(literal) => literal == part,
                Segment::Any | Segment::Rest => !part.is_empty(),
            })
        };
        match rest {
            None => parts.len() == self.segments.len() && fits(&self.segments, parts),
            Some(at) => {
                let (before, after) = (&self.segments[..at], &self.segments[at + 1..]);
                parts.len() > before.len() + after.len()
                    && fits(before, parts)
                    && fits(after, &parts[parts.len() - after.len()..])
            }
        }
    }

    /// The more a route asks for, the better it fits.
    fn rank(&self) -> (usize, usize, usize, bool) {
        let literals = self.segments.iter().filter(|segment| matches!(segment, Segment::Literal(_))).count();
        let values = self.keys.iter().filter(|(_, value)| value.is_some()).count();
        let greedy = self.segments.iter().any(|segment| matches!(segment, Segment::Rest));
        (literals, values + self.keys.len(), self.headers.len(), !greedy)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn named(service: &str, method: &str, target: &str) -> Option<&'static str> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        operation(service, method, path, Some(query), &Headers::default())
    }

    #[test]
    fn the_table_is_read_whole() {
        assert!(MODELS.targets.len() > 100 && MODELS.endpoints.len() > 20 && MODELS.services.len() > 150);
        let lines: usize = MODELS.services.values().map(|lines| lines.lines().count()).sum();
        let read: usize = MODELS
            .services
            .values()
            .map(|lines| {
                let routes = Routes::read(lines);
                routes.exact.values().chain(routes.greedy.values()).map(Vec::len).sum::<usize>()
            })
            .sum();
        assert!(lines > 9_000);
        assert_eq!(read, lines);
    }

    #[test]
    fn routes_of_rest_services() {
        for (service, method, target, name) in [
            ("lambda", "POST", "/2015-03-31/functions/f/invocations", Some("Invoke")),
            ("lambda", "GET", "/2015-03-31/functions/", Some("ListFunctions")),
            ("lambda", "GET", "/2015-03-31/functions", Some("ListFunctions")),
            ("lambda", "GET", "/2015-03-31/functions/f", Some("GetFunction")),
            ("lambda", "GET", "/nowhere", None),
            ("apigateway", "GET", "/restapis/x", Some("GetRestApi")),
            ("apigateway", "GET", "/v2/apis/x", Some("GetApi")),
            ("route53", "POST", "/2013-04-01/hostedzone/Z/rrset/", Some("ChangeResourceRecordSets")),
            ("bedrock", "POST", "/model/anthropic.claude/invoke", Some("InvokeModel")),
            ("s3control", "GET", "/v20180820/jobs", Some("ListJobs")),
            ("nosuch", "GET", "/", None),
        ] {
            assert_eq!(named(service, method, target), name, "{service} {method} {target}");
        }
    }

    proptest! {
        #[test]
        fn any_path_is_taken(path: String, query: String) {
            operation("lambda", "GET", &path, Some(&query), &Headers::default());
            operation("apigateway", "PUT", &format!("/restapis/{path}"), Some(&query), &Headers::default());
        }
    }
}
