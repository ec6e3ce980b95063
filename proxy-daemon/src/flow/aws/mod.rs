//! Which AWS service and operation a request is for.
//!
//! In: a request's head and, where [`needs_body`] asks for it, the first bytes
//! of its body. Out: an [`Operation`]; both halves are empty for what is not
//! AWS. Evidence in order: the protocol's own marks (`X-Amz-Target`, the
//! rpc-v2 path, `Action=`), the signature's scope, the host; S3 alone is named
//! by its routes. Nothing is believed that is not spelled like a name, names
//! are shared, and no input makes this panic or take more than linear time.
mod host;
mod intern;
mod routes;
mod s3;
mod target;

use std::borrow::Cow;

use intern::intern;

use super::{Operation, Request};

/// How much of a body is enough to find `Action=` in it.
pub const BODY_START: usize = 8 * 1024;
/// The longest name of a service or an operation that is believed.
const MAX_NAME: usize = 128;

/// The operation can only be told from the start of the request's body: hand
/// up to [`BODY_START`] bytes of it to [`name`].
pub fn needs_body(request: &Request) -> bool {
    let marks = Marks::of(request);
    &*request.method == "POST"
        && marks.form
        && marks.target.is_none()
        && request.query().and_then(action).is_none()
        && marks
            .scope(request)
            .or_else(|| host::parse(&lower(request.host()))?.service.map(|service| Cow::Owned(service.into_owned())))
            .is_some_and(|service| !s3::speaks(&service))
}

/// Names a request.
pub fn name(request: &Request, body_start: Option<&[u8]>) -> Operation {
    let marks = Marks::of(request);
    let scope = marks.scope(request);

    if let Some((prefix, operation)) = marks.target {
        let service = target::service(prefix)
            .map(Cow::Borrowed)
            .or(scope)
            .or_else(|| routes::target(prefix).map(Cow::Borrowed))
            .unwrap_or_else(|| target::fallback(prefix));
        return named(Some(&service), Some(operation));
    }
    let lowered = lower(request.host());
    let host = host::parse(&lowered);
    if marks.rpc
        && let Some((shape, operation)) = rpc_path(request.path())
    {
        let service = scope
            .or_else(|| target::service(shape).or_else(|| routes::target(shape)).map(Cow::Borrowed))
            .or_else(|| host.as_ref().and_then(|host| host.service.clone()))
            .unwrap_or_else(|| target::fallback(shape));
        return named(Some(&service), Some(operation));
    }
    let from_host = || host.as_ref().and_then(|host| host.service.clone());
    let service = scope.or_else(from_host).or_else(|| marks.old_s3.then_some(Cow::Borrowed("s3")));
    // Neither signed nor at a host of AWS: the rest could be anyone's.
    let Some(service) = service else { return Operation::default() };
    if s3::speaks(&service) {
        return s3::name(request, &service, host.and_then(|host| host.s3), &marks);
    }
    let operation = request.query().and_then(action).or_else(|| {
        let body = body_start.filter(|_| marks.form)?;
        action_in_form(body)
    });
    let route =
        |service: &str| routes::operation(service, &request.method, request.path(), request.query(), &request.headers);
    let operation = operation.or_else(|| route(&service)).or_else(|| route(routes::endpoint(&service)?));
    named(Some(&service), operation)
}

/// Bucket and key of a request to S3, as the path spells them; the key is
/// empty where the bucket itself is meant.
pub fn s3_place(request: &Request) -> Option<(String, &str)> {
    let marks = Marks::of(request);
    let lowered = lower(request.host());
    let host = host::parse(&lowered);
    let from_host = || host.as_ref().and_then(|host| host.service.clone());
    let service = marks.scope(request).or_else(from_host).or_else(|| marks.old_s3.then_some(Cow::Borrowed("s3")))?;
    if service == "s3control" || !s3::speaks(&service) {
        return None;
    }
    s3::place(request, &lowered, host.as_ref().and_then(|host| host.s3))
}

fn named(service: Option<&str>, name: Option<&str>) -> Operation {
    Operation {
        service: service.filter(|service| is_name(service)).map(intern),
        name: name.filter(|name| is_name(name)).map(intern),
    }
}

fn is_name(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

/// What the header fields say, gathered in one pass.
#[derive(Debug, Default)]
struct Marks<'a> {
    /// Prefix and operation of `X-Amz-Target`.
    target: Option<(&'a str, &'a str)>,
    authorization: Option<&'a str>,
    /// Signed the old S3 way (`AWS KEY:SIGNATURE`).
    old_s3: bool,
    /// `smithy-protocol: rpc-v2-...`
    rpc: bool,
    /// The body is a form that can be read as it is.
    form: bool,
    multipart: bool,
    copy_source: bool,
    account_id: bool,
}

impl<'a> Marks<'a> {
    fn of(request: &'a Request) -> Self {
        let mut marks = Self::default();
        let mut encoded = false;
        for (name, value) in request.headers.iter() {
            let is = |expected: &str| name.eq_ignore_ascii_case(expected.as_bytes());
            // Lengths first: most fields are none of these.
            match name.len() {
                12 if is("x-amz-target") => marks.target = target::split(value),
                12 if is("content-type") => {
                    marks.form = begins(value, "application/x-www-form-urlencoded");
                    marks.multipart = begins(value, "multipart/form-data");
                }
                13 if is("authorization") => {
                    marks.authorization = std::str::from_utf8(value).ok();
                    marks.old_s3 = value.starts_with(b"AWS ") && value.contains(&b':');
                }
                15 if is("smithy-protocol") => marks.rpc = begins(value, "rpc-v2"),
                16 if is("content-encoding") => encoded = !value.eq_ignore_ascii_case(b"identity"),
                16 if is("x-amz-account-id") => marks.account_id = true,
                17 if is("x-amz-copy-source") => marks.copy_source = true,
                _ => {}
            }
        }
        marks.form &= !encoded;
        marks
    }

    /// The service in the signature's scope, in lower case.
    fn scope(&self, request: &'a Request) -> Option<Cow<'a, str>> {
        let from_header = || {
            let value = self.authorization?;
            // AWS4-HMAC-SHA256 and AWS4-ECDSA-P256-SHA256 (SigV4A).
            let (_, rest) = value.strip_prefix("AWS4-")?.split_once(' ')?;
            let credential = rest.strip_prefix("Credential=").or_else(|| Some(rest.split_once("Credential=")?.1))?;
            let credential = credential.split([',', ' ']).next().unwrap_or_default();
            let scope = credential.strip_suffix("/aws4_request")?;
            // Access keys of other services than AWS may hold slashes: from
            // the right.
            scope.rsplit_once('/').map(|(_, service)| service)
        };
        let from_query = || {
            let value = parameters(request.query()?).find(|(key, _)| *key == "X-Amz-Credential")?.1;
            let scope = strip_suffix(value, "/aws4_request").or_else(|| strip_suffix(value, "%2Faws4_request"))?;
            let slash = scope.rfind('/').map_or(0, |at| at + 1);
            let encoded = ["%2F", "%2f"].iter().filter_map(|slash| scope.rfind(slash)).max().map_or(0, |at| at + 3);
            scope.get(slash.max(encoded)..)
        };
        let service = from_header().or_else(from_query)?;
        is_name(service).then(|| lower(service))
    }
}

fn begins(value: &[u8], prefix: &str) -> bool {
    value.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix.as_bytes()))
}

fn strip_suffix<'a>(text: &'a str, suffix: &str) -> Option<&'a str> {
    let at = text.len().checked_sub(suffix.len())?;
    text.get(at..)?.eq_ignore_ascii_case(suffix).then(|| text.get(..at))?
}

fn lower(text: &str) -> Cow<'_, str> {
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(text.to_ascii_lowercase())
    } else {
        Cow::Borrowed(text)
    }
}

/// Keys and values of a query string or a form, undecoded.
fn parameters(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// The `Action` of the query and ec2 protocols.
fn action(query: &str) -> Option<&str> {
    parameters(query).find(|(key, _)| *key == "Action").map(|(_, value)| value).filter(|value| is_name(value))
}

fn action_in_form(body: &[u8]) -> Option<&str> {
    let cut = body.len() >= BODY_START;
    let mut pairs = body.split(|byte| *byte == b'&');
    let value = pairs.by_ref().find_map(|pair| pair.strip_prefix(b"Action="))?;
    // The name itself may have been cut.
    if cut && pairs.next().is_none() {
        return None;
    }
    std::str::from_utf8(value.trim_ascii_end()).ok().filter(|value| is_name(value))
}

/// Service shape and operation of `[/prefix]/service/SHAPE/operation/NAME`.
fn rpc_path(path: &str) -> Option<(&str, &str)> {
    let mut parts = path.rsplit('/');
    let operation = parts.next()?;
    (parts.next()? == "operation").then_some(())?;
    let shape = parts.next()?;
    (parts.next()? == "service").then_some(())?;
    // The shape's name may carry its namespace.
    let shape = shape.rsplit('.').next().unwrap_or(shape);
    (is_name(shape) && is_name(operation)).then_some((shape, operation))
}

#[cfg(test)]
mod tests;
