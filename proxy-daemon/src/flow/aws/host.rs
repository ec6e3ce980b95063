//! What the name of a host says: which AWS service it belongs to and, for
//! S3, whether the bucket is in it.
use std::borrow::Cow;

/// What ends the name of an AWS endpoint, in every partition.
const SUFFIXES: &[&str] = &[
    ".amazonaws.com",
    ".amazonaws.com.cn",
    ".amazonaws.eu",
    ".api.aws",
    ".on.aws",
    ".api.amazonwebservices.com.cn",
    ".api.amazonwebservices.eu",
    ".c2s.ic.gov",
    ".sc2s.sgov.gov",
    ".cloud.adc-e.uk",
    ".csp.hci.ic.gov",
];

/// Labels, counted from the suffix, that can matter.
const LABELS: usize = 6;

/// A host of AWS.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Host<'a> {
    /// As signature scopes spell it; `None` where customers' own machines
    /// have their names.
    pub(super) service: Option<Cow<'a, str>>,
    pub(super) s3: Option<S3Host>,
}

/// How a host of S3 is addressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum S3Host {
    /// The bucket is the first part of the path.
    Path,
    /// The bucket (or access point) is in the host's name.
    Virtual,
    /// Directory buckets' control plane, addressed by path.
    ExpressControl,
    /// S3 Control, another service with the same signing name.
    Control,
    /// `WriteGetObjectResponse` goes there.
    ObjectLambdaRoute,
}

/// `host` in lower case.
pub(super) fn parse(host: &str) -> Option<Host<'_>> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let (suffix, rest) = SUFFIXES.iter().find_map(|suffix| Some((*suffix, host.strip_suffix(suffix)?)))?;
    let mut labels = [""; LABELS];
    for (label, slot) in rest.rsplit('.').zip(&mut labels) {
        *slot = label;
    }
    // Right to left: VPC endpoint, region, dual stack, then the service.
    let mut at = 0;
    let vpce = labels[0] == "vpce";
    at += usize::from(vpce);
    let region = is_region(labels[at]);
    at += usize::from(region);
    at += usize::from(labels[at] == "dualstack");
    let (service, before) = (labels[at], labels.get(at + 1..).unwrap_or_default());
    if let Some((service, s3)) = s3(service, before) {
        return Some(Host { service: s3.is_some().then_some(Cow::Borrowed(service)), s3 });
    }
    let service = if suffix == ".on.aws" {
        (service == "lambda-url").then_some(Cow::Borrowed("lambda"))
    } else if region || vpce {
        regional(service, before.first().copied().unwrap_or_default())
    } else if before.first().is_some_and(|label| !label.is_empty()) {
        // NAME.REGION.SERVICE: mostly customers' own machines.
        let service = match service {
            "queue" => Some("sqs"),
            "es" | "aoss" | "cloudsearch" => Some(service),
            _ => None,
        };
        service.filter(|_| is_region(before[0])).map(Cow::Borrowed)
    } else {
        regional(service, "")
    };
    Some(Host { service, s3: None })
}

/// The service behind an endpoint's label, and the label before it.
fn regional<'a>(label: &'a str, before: &str) -> Option<Cow<'a, str>> {
    let label = label.strip_suffix("-fips").or_else(|| label.strip_prefix("fips-")).unwrap_or(label);
    let renamed = match (before, label) {
        // Load balancers carry their customer's traffic.
        (_, "" | "elb") => return None,
        ("streams", "dynamodb") => "dynamodbstreams",
        ("portal", "sso") => "awsssoportal",
        ("data" | "data-ats", "iot") => "iotdata",
        (_, "appstream2") => "appstream",
        (_, "cassandra-streams") => "cassandra",
        (_, "data-servicediscovery") => "servicediscovery",
        (_, "ddb") => "dynamodb",
        (_, "email") => "ses",
        (_, "marketplace") => "aws-marketplace",
        (_, "memory-db") => "memorydb",
        (_, "models-v2-lex" | "runtime-v2-lex") => "lex",
        (_, "oidc") => "sso-oauth",
        (_, "pinpoint") => "mobiletargeting",
        (_, "queue") => "sqs",
        (_, label) if label.starts_with("bedrock-") && !label.starts_with("bedrock-agentcore") => "bedrock",
        _ => return Some(Cow::Borrowed(label)),
    };
    Some(Cow::Borrowed(renamed))
}

/// Service and addressing, if the label is one of S3's. `before`: the labels
/// to its left, nearest first. Websites are not the API: no addressing.
fn s3(label: &str, before: &[&str]) -> Option<(&'static str, Option<S3Host>)> {
    if !label.starts_with("s3") {
        return None;
    }
    let first = before.first().copied().unwrap_or_default();
    let by_bucket = if first.is_empty() { S3Host::Path } else { S3Host::Virtual };
    let found = match label.strip_suffix("-fips").unwrap_or(label) {
        // vpce-ID.s3, with `bucket`, `accesspoint` or `control` before it.
        "s3" if first.starts_with("vpce-") => match (before.get(1).copied(), before.get(2).copied()) {
            (Some("control"), _) => ("s3control", S3Host::Control),
            (Some("accesspoint"), _) => ("s3", S3Host::Virtual),
            (Some("bucket"), Some(bucket)) if !bucket.is_empty() => ("s3", S3Host::Virtual),
            _ => ("s3", S3Host::Path),
        },
        "s3" | "s3-accelerate" | "s3-external-1" | "s3-accesspoint" | "s3-global" => ("s3", by_bucket),
        "s3-control" => ("s3control", S3Host::Control),
        "s3-object-lambda" if first == "route" => ("s3-object-lambda", S3Host::ObjectLambdaRoute),
        "s3-object-lambda" => ("s3-object-lambda", by_bucket),
        "s3-outposts" => ("s3-outposts", by_bucket),
        "s3express-control" => ("s3express", S3Host::ExpressControl),
        other if other.starts_with("s3express-") => ("s3express", by_bucket),
        other if other.starts_with("s3-website") => return Some(("s3", None)),
        // The old form with the region in the label.
        other if other.strip_prefix("s3-fips-").or(other.strip_prefix("s3-")).is_some_and(is_region) => {
            ("s3", by_bucket)
        }
        _ => return None,
    };
    Some((found.0, Some(found.1)))
}

/// `eu-west-1`, `us-gov-east-1`, `us-isob-east-1`, `eusc-de-east-1`.
fn is_region(label: &str) -> bool {
    let mut parts = label.rsplit('-');
    let number =
        parts.next().is_some_and(|part| (1..=2).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit()));
    let mut words = 0;
    number
        && parts.all(|part| {
            words += 1;
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphabetic())
        })
        && (2..=4).contains(&words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s3_hosts() {
        use S3Host::{Control, ExpressControl, ObjectLambdaRoute, Path, Virtual};
        for (host, service, addressed) in [
            ("s3.amazonaws.com", "s3", Path),
            ("s3.eu-west-1.amazonaws.com", "s3", Path),
            ("s3.cn-north-1.amazonaws.com.cn", "s3", Path),
            ("s3-us-west-2.amazonaws.com", "s3", Path),
            ("s3-external-1.amazonaws.com", "s3", Path),
            ("s3-fips.us-gov-west-1.amazonaws.com", "s3", Path),
            ("s3-fips-us-gov-west-1.amazonaws.com", "s3", Path),
            ("s3.dualstack.us-west-2.amazonaws.com", "s3", Path),
            ("s3-fips.dualstack.us-west-2.amazonaws.com", "s3", Path),
            ("s3.us-west-2.api.aws", "s3", Path),
            ("bucket.s3.amazonaws.com", "s3", Virtual),
            ("with.dots.s3.eu-west-1.amazonaws.com", "s3", Virtual),
            ("a.b.c.d.e.f.g.h.s3.eu-west-1.amazonaws.com", "s3", Virtual),
            ("s3.s3.eu-west-1.amazonaws.com", "s3", Virtual),
            ("bucket.s3-us-west-2.amazonaws.com", "s3", Virtual),
            ("bucket.s3.dualstack.us-west-2.amazonaws.com", "s3", Virtual),
            ("bucket.s3-accelerate.amazonaws.com", "s3", Virtual),
            ("bucket.s3-accelerate.dualstack.amazonaws.com", "s3", Virtual),
            ("point-123456789012.s3-accesspoint.us-west-2.amazonaws.com", "s3", Virtual),
            ("point-123456789012.s3-accesspoint-fips.dualstack.us-east-1.amazonaws.com", "s3", Virtual),
            ("alias.mrap.accesspoint.s3-global.amazonaws.com", "s3", Virtual),
            ("bucket.vpce-1a2b-5678.s3.us-east-1.vpce.amazonaws.com", "s3", Path),
            ("mine.bucket.vpce-1a2b-5678.s3.us-east-1.vpce.amazonaws.com", "s3", Virtual),
            ("point-1.accesspoint.vpce-1a2b.s3.us-east-1.vpce.amazonaws.com", "s3", Virtual),
            ("control.vpce-1a2b.s3.us-east-1.vpce.amazonaws.com", "s3control", Control),
            ("b--use1-az4--x-s3.s3express-use1-az4.us-east-1.amazonaws.com", "s3express", Virtual),
            ("b--use1-az4--x-s3.s3express-fips-use1-az4.us-east-1.amazonaws.com", "s3express", Virtual),
            ("s3express-control.us-east-1.amazonaws.com", "s3express", ExpressControl),
            ("123456789012.s3-control.us-east-1.amazonaws.com", "s3control", Control),
            ("io-abc.s3-object-lambda.us-east-1.amazonaws.com", "s3-object-lambda", Virtual),
            ("route.s3-object-lambda.us-east-1.amazonaws.com", "s3-object-lambda", ObjectLambdaRoute),
            ("point-1.op-1.s3-outposts.us-east-1.amazonaws.com", "s3-outposts", Virtual),
        ] {
            let expected = Host { service: Some(service.into()), s3: Some(addressed) };
            assert_eq!(parse(host), Some(expected), "{host}");
        }
        let website = Some(Host { service: None, s3: None });
        assert_eq!(parse("bucket.s3-website-us-east-1.amazonaws.com"), website);
        assert_eq!(parse("bucket.s3-website.eu-central-1.amazonaws.com"), website);
    }

    #[test]
    fn other_hosts() {
        for (host, service) in [
            ("sts.amazonaws.com", "sts"),
            ("sts.eu-west-1.amazonaws.com", "sts"),
            ("iam.amazonaws.com", "iam"),
            ("dynamodb.eusc-de-east-1.amazonaws.eu", "dynamodb"),
            ("123456789012.ddb.us-east-1.amazonaws.com", "dynamodb"),
            ("streams.dynamodb.us-east-1.amazonaws.com", "dynamodbstreams"),
            ("kms-fips.us-east-1.amazonaws.com", "kms"),
            ("email.us-east-1.amazonaws.com", "ses"),
            ("bedrock-runtime.us-east-1.amazonaws.com", "bedrock"),
            ("runtime.sagemaker.us-east-1.amazonaws.com", "sagemaker"),
            ("api.ecr.us-east-1.amazonaws.com", "ecr"),
            ("a1b2c3.execute-api.us-east-1.amazonaws.com", "execute-api"),
            ("eu-west-1.queue.amazonaws.com", "sqs"),
            ("queue.amazonaws.com", "sqs"),
            ("search-x.us-east-1.es.amazonaws.com", "es"),
            ("vpce-1a2b-5678.kms.us-east-1.vpce.amazonaws.com", "kms"),
            ("vpce-1a2b-5678-us-east-1a.sqs.us-east-1.vpce.amazonaws.com", "sqs"),
            ("lambda.us-east-1.api.aws", "lambda"),
            ("abc.lambda-url.us-east-1.on.aws", "lambda"),
            ("sqs.us-iso-east-1.c2s.ic.gov", "sqs"),
        ] {
            let expected = Host { service: Some(service.into()), s3: None };
            assert_eq!(parse(host), Some(expected), "{host}");
        }
        for host in [
            "ec2-203-0-113-25.compute-1.amazonaws.com",
            "ec2-203-0-113-25.us-west-2.compute.amazonaws.com",
            "app-123.us-east-1.elb.amazonaws.com",
            "net-123.elb.us-east-1.amazonaws.com",
            "db.abc.us-east-1.rds.amazonaws.com",
        ] {
            assert_eq!(parse(host), Some(Host { service: None, s3: None }), "{host}");
        }
        for host in ["example.org", "amazonaws.com", "s3.amazonaws.com.example.org", "notamazonaws.com", "", "[::1]"] {
            assert_eq!(parse(host), None, "{host}");
        }
    }
}
