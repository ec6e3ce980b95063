//! S3's operations by method, path, query keys and headers. Old and new names
//! of one call (`PutBucketLifecycle`, `...Configuration`) cannot be told apart;
//! the new one is given, unless the model has only the old.
use super::{Marks, host::S3Host, named, parameters, routes};
use crate::flow::{Operation, Request};

/// Services that speak S3's protocol; `s3tables` and others of the name do not.
pub(super) fn speaks(service: &str) -> bool {
    matches!(service, "s3" | "s3express" | "s3-object-lambda" | "s3-outposts" | "s3control")
}

/// What the path names, once the bucket is in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Service,
    Bucket,
    Object,
}

pub(super) fn name(request: &Request, service: &str, host: Option<S3Host>, marks: &Marks<'_>) -> Operation {
    let (path, method) = (request.path(), &*request.method);
    if host == Some(S3Host::Control) || (marks.account_id && path.starts_with("/v20180820/")) {
        let route = routes::operation("s3control", method, path, request.query(), &request.headers);
        return named(Some("s3control"), route);
    }
    if host == Some(S3Host::ObjectLambdaRoute) || (path == "/WriteGetObjectResponse" && method == "POST") {
        return named(Some(service), (path == "/WriteGetObjectResponse").then_some("WriteGetObjectResponse"));
    }
    if path.starts_with("/S3Outposts/") {
        let route = routes::operation("s3-outposts", method, path, request.query(), &request.headers);
        return named(Some("s3-outposts"), route);
    }
    let keys = Keys::of(request.query().unwrap_or_default());
    let operation = |level| operation(method, level, &keys, marks);
    let operation = match host {
        // Directory buckets are no part of the others' list.
        Some(S3Host::ExpressControl | S3Host::Path) | None
            if service == "s3express" && by_path(path) == Level::Service && method == "GET" =>
        {
            Some("ListDirectoryBuckets")
        }
        Some(S3Host::Virtual) => operation(by_host(path)),
        Some(_) => operation(by_path(path)),
        None if in_host(request.host(), method, path, &keys) => operation(by_host(path)),
        None => {
            let by_path = operation(by_path(path));
            // The client's own word, where it gives it, settles the doubt.
            let by_host = operation(by_host(path)).filter(|name| keys.id_hint.is_some_and(|hint| hint == *name));
            if by_path == keys.id_hint { by_path } else { by_host.or(by_path) }
        }
    };
    named(Some(service), operation)
}

/// Bucket and key. `lowered`: the host in lower case.
pub(super) fn place<'a>(request: &'a Request, lowered: &str, host: Option<S3Host>) -> Option<(String, &'a str)> {
    let path = request.path();
    let rest = path.strip_prefix('/')?;
    let keys = Keys::of(request.query().unwrap_or_default());
    let bucket = match host {
        Some(S3Host::Control | S3Host::ObjectLambdaRoute) => return None,
        Some(S3Host::Virtual) => Some(bucket_in_host(lowered)?),
        None if in_host(request.host(), &request.method, path, &keys) => lowered.split('.').next(),
        _ => None,
    };
    let (bucket, key) = match bucket {
        Some(bucket) => (bucket, rest),
        None => rest.split_once('/').unwrap_or((rest, "")),
    };
    (!bucket.is_empty()).then(|| (bucket.to_owned(), key))
}

/// What stands before the service in the name of a host of AWS.
fn bucket_in_host(host: &str) -> Option<&str> {
    // The last label of the kind: a bucket may be called `s3`.
    let service = host.rmatch_indices(".s3").map(|(at, _)| at).next()?;
    let before = host.get(..service)?;
    // VPC endpoints: BUCKET.bucket.vpce-ID, POINT.accesspoint.vpce-ID.
    match before.rsplit_once('.') {
        Some((before, endpoint)) if endpoint.starts_with("vpce-") => {
            before.strip_suffix(".bucket").or_else(|| before.strip_suffix(".accesspoint"))
        }
        _ => Some(before),
    }
}

fn by_path(path: &str) -> Level {
    match path.strip_prefix('/').unwrap_or(path).split_once('/') {
        None if path.len() <= 1 => Level::Service,
        None | Some((_, "")) => Level::Bucket,
        Some(_) => Level::Object,
    }
}

fn by_host(path: &str) -> Level {
    if path.len() <= 1 { Level::Bucket } else { Level::Object }
}

/// Whether a host that is not AWS's (MinIO, Ceph, a test server) carries the
/// bucket in its name. Where nothing says so it does not: that is what SDKs do
/// with an address, and most with a custom endpoint.
fn in_host(host: &str, method: &str, path: &str, keys: &Keys<'_>) -> bool {
    let address = host.starts_with('[') || host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if address || !host.contains('.') {
        return false;
    }
    // The root has no method but GET, and nothing to ask for by key.
    if path == "/" && (method != "GET" || keys.bucket.is_some() || keys.list_v2) {
        return true;
    }
    let marker = |label: &str| label == "s3" || label.starts_with("s3-");
    let mut labels = host.split('.');
    let first = labels.next().unwrap_or_default();
    if marker(first) {
        return false;
    }
    let providers = [
        (".digitaloceanspaces.com", 2),
        (".r2.cloudflarestorage.com", 2),
        (".storage.googleapis.com", 1),
        (".linodeobjects.com", 2),
    ];
    labels.any(marker)
        || providers
            .iter()
            .any(|(suffix, labels)| host.strip_suffix(suffix).is_some_and(|rest| rest.split('.').count() >= *labels))
}

/// The query keys that tell operations apart.
#[derive(Debug, Default)]
struct Keys<'a> {
    /// The first key that names a part of a bucket, and of an object.
    bucket: Option<&'a str>,
    object: Option<&'a str>,
    id: bool,
    list_v2: bool,
    upload_id: bool,
    part_number: bool,
    annotation_name: bool,
    /// `x-id`, which the JavaScript SDK sends.
    id_hint: Option<&'a str>,
}

impl<'a> Keys<'a> {
    fn of(query: &'a str) -> Self {
        let mut keys = Self::default();
        for (key, value) in parameters(query) {
            match key {
                "acl" | "tagging" | "encryption" | "uploads" => {
                    keys.bucket.get_or_insert(key);
                    keys.object.get_or_insert(key);
                }
                "abac"
                | "accelerate"
                | "analytics"
                | "cors"
                | "delete"
                | "intelligent-tiering"
                | "inventory"
                | "lifecycle"
                | "location"
                | "logging"
                | "metadataAnnotationTable"
                | "metadataConfiguration"
                | "metadataInventoryTable"
                | "metadataJournalTable"
                | "metadataTable"
                | "metrics"
                | "notification"
                | "object-lock"
                | "ownershipControls"
                | "policy"
                | "policyStatus"
                | "publicAccessBlock"
                | "replication"
                | "requestPayment"
                | "session"
                | "versioning"
                | "versions"
                | "website" => {
                    keys.bucket.get_or_insert(key);
                }
                "annotation" | "attributes" | "legal-hold" | "renameObject" | "restore" | "retention" | "select"
                | "torrent" => {
                    keys.object.get_or_insert(key);
                }
                "id" => keys.id = true,
                "list-type" => keys.list_v2 = value == "2",
                "uploadId" => keys.upload_id = true,
                "partNumber" => keys.part_number = true,
                "annotationName" => keys.annotation_name = true,
                "x-id" => keys.id_hint = Some(value),
                _ => {}
            }
        }
        keys
    }
}

fn operation(method: &str, level: Level, keys: &Keys<'_>, marks: &Marks<'_>) -> Option<&'static str> {
    match level {
        Level::Service => (method == "GET").then_some("ListBuckets"),
        Level::Bucket => bucket(method, keys, marks),
        Level::Object => object(method, keys, marks),
    }
}

fn bucket(method: &str, keys: &Keys<'_>, marks: &Marks<'_>) -> Option<&'static str> {
    Some(match (method, keys.bucket) {
        ("GET", None) if keys.list_v2 => "ListObjectsV2",
        ("GET", None) => "ListObjects",
        ("HEAD", _) => "HeadBucket",
        ("PUT", None) => "CreateBucket",
        ("DELETE", None) => "DeleteBucket",
        // A browser's form upload; not in the SDKs' model.
        ("POST", None) if marks.multipart => "PostObject",
        ("POST", Some("delete")) => "DeleteObjects",
        ("POST", Some("metadataConfiguration")) => "CreateBucketMetadataConfiguration",
        ("POST", Some("metadataTable")) => "CreateBucketMetadataTableConfiguration",

        ("GET", Some("abac")) => "GetBucketAbac",
        ("GET", Some("accelerate")) => "GetBucketAccelerateConfiguration",
        ("GET", Some("acl")) => "GetBucketAcl",
        ("GET", Some("analytics")) if keys.id => "GetBucketAnalyticsConfiguration",
        ("GET", Some("analytics")) => "ListBucketAnalyticsConfigurations",
        ("GET", Some("cors")) => "GetBucketCors",
        ("GET", Some("encryption")) => "GetBucketEncryption",
        ("GET", Some("intelligent-tiering")) if keys.id => "GetBucketIntelligentTieringConfiguration",
        ("GET", Some("intelligent-tiering")) => "ListBucketIntelligentTieringConfigurations",
        ("GET", Some("inventory")) if keys.id => "GetBucketInventoryConfiguration",
        ("GET", Some("inventory")) => "ListBucketInventoryConfigurations",
        ("GET", Some("lifecycle")) => "GetBucketLifecycleConfiguration",
        ("GET", Some("location")) => "GetBucketLocation",
        ("GET", Some("logging")) => "GetBucketLogging",
        ("GET", Some("metadataConfiguration")) => "GetBucketMetadataConfiguration",
        ("GET", Some("metadataTable")) => "GetBucketMetadataTableConfiguration",
        ("GET", Some("metrics")) if keys.id => "GetBucketMetricsConfiguration",
        ("GET", Some("metrics")) => "ListBucketMetricsConfigurations",
        ("GET", Some("notification")) => "GetBucketNotificationConfiguration",
        ("GET", Some("object-lock")) => "GetObjectLockConfiguration",
        ("GET", Some("ownershipControls")) => "GetBucketOwnershipControls",
        ("GET", Some("policy")) => "GetBucketPolicy",
        ("GET", Some("policyStatus")) => "GetBucketPolicyStatus",
        ("GET", Some("publicAccessBlock")) => "GetPublicAccessBlock",
        ("GET", Some("replication")) => "GetBucketReplication",
        ("GET", Some("requestPayment")) => "GetBucketRequestPayment",
        ("GET", Some("session")) => "CreateSession",
        ("GET", Some("tagging")) => "GetBucketTagging",
        ("GET", Some("uploads")) => "ListMultipartUploads",
        ("GET", Some("versioning")) => "GetBucketVersioning",
        ("GET", Some("versions")) => "ListObjectVersions",
        ("GET", Some("website")) => "GetBucketWebsite",

        ("PUT", Some("abac")) => "PutBucketAbac",
        ("PUT", Some("accelerate")) => "PutBucketAccelerateConfiguration",
        ("PUT", Some("acl")) => "PutBucketAcl",
        ("PUT", Some("analytics")) => "PutBucketAnalyticsConfiguration",
        ("PUT", Some("cors")) => "PutBucketCors",
        ("PUT", Some("encryption")) => "PutBucketEncryption",
        ("PUT", Some("intelligent-tiering")) => "PutBucketIntelligentTieringConfiguration",
        ("PUT", Some("inventory")) => "PutBucketInventoryConfiguration",
        ("PUT", Some("lifecycle")) => "PutBucketLifecycleConfiguration",
        ("PUT", Some("logging")) => "PutBucketLogging",
        ("PUT", Some("metadataAnnotationTable")) => "UpdateBucketMetadataAnnotationTableConfiguration",
        ("PUT", Some("metadataInventoryTable")) => "UpdateBucketMetadataInventoryTableConfiguration",
        ("PUT", Some("metadataJournalTable")) => "UpdateBucketMetadataJournalTableConfiguration",
        ("PUT", Some("metrics")) => "PutBucketMetricsConfiguration",
        ("PUT", Some("notification")) => "PutBucketNotificationConfiguration",
        ("PUT", Some("object-lock")) => "PutObjectLockConfiguration",
        ("PUT", Some("ownershipControls")) => "PutBucketOwnershipControls",
        ("PUT", Some("policy")) => "PutBucketPolicy",
        ("PUT", Some("publicAccessBlock")) => "PutPublicAccessBlock",
        ("PUT", Some("replication")) => "PutBucketReplication",
        ("PUT", Some("requestPayment")) => "PutBucketRequestPayment",
        ("PUT", Some("tagging")) => "PutBucketTagging",
        ("PUT", Some("versioning")) => "PutBucketVersioning",
        ("PUT", Some("website")) => "PutBucketWebsite",

        ("DELETE", Some("analytics")) => "DeleteBucketAnalyticsConfiguration",
        ("DELETE", Some("cors")) => "DeleteBucketCors",
        ("DELETE", Some("encryption")) => "DeleteBucketEncryption",
        ("DELETE", Some("intelligent-tiering")) => "DeleteBucketIntelligentTieringConfiguration",
        ("DELETE", Some("inventory")) => "DeleteBucketInventoryConfiguration",
        ("DELETE", Some("lifecycle")) => "DeleteBucketLifecycle",
        ("DELETE", Some("metadataConfiguration")) => "DeleteBucketMetadataConfiguration",
        ("DELETE", Some("metadataTable")) => "DeleteBucketMetadataTableConfiguration",
        ("DELETE", Some("metrics")) => "DeleteBucketMetricsConfiguration",
        ("DELETE", Some("ownershipControls")) => "DeleteBucketOwnershipControls",
        ("DELETE", Some("policy")) => "DeleteBucketPolicy",
        ("DELETE", Some("publicAccessBlock")) => "DeletePublicAccessBlock",
        ("DELETE", Some("replication")) => "DeleteBucketReplication",
        ("DELETE", Some("tagging")) => "DeleteBucketTagging",
        ("DELETE", Some("website")) => "DeleteBucketWebsite",
        _ => return None,
    })
}

fn object(method: &str, keys: &Keys<'_>, marks: &Marks<'_>) -> Option<&'static str> {
    Some(match (method, keys.object) {
        ("HEAD", _) => "HeadObject",

        ("GET", Some("acl")) => "GetObjectAcl",
        ("GET", Some("annotation")) if keys.annotation_name => "GetObjectAnnotation",
        ("GET", Some("annotation")) => "ListObjectAnnotations",
        ("GET", Some("attributes")) => "GetObjectAttributes",
        ("GET", Some("legal-hold")) => "GetObjectLegalHold",
        ("GET", Some("retention")) => "GetObjectRetention",
        ("GET", Some("tagging")) => "GetObjectTagging",
        ("GET", Some("torrent")) => "GetObjectTorrent",
        ("GET", _) if keys.upload_id => "ListParts",
        ("GET", _) => "GetObject",

        ("PUT", Some("acl")) => "PutObjectAcl",
        ("PUT", Some("annotation")) => "PutObjectAnnotation",
        ("PUT", Some("encryption")) => "UpdateObjectEncryption",
        ("PUT", Some("legal-hold")) => "PutObjectLegalHold",
        ("PUT", Some("renameObject")) => "RenameObject",
        ("PUT", Some("retention")) => "PutObjectRetention",
        ("PUT", Some("tagging")) => "PutObjectTagging",
        ("PUT", _) if keys.upload_id && keys.part_number && marks.copy_source => "UploadPartCopy",
        ("PUT", _) if keys.upload_id && keys.part_number => "UploadPart",
        ("PUT", _) if marks.copy_source => "CopyObject",
        ("PUT", _) => "PutObject",

        ("POST", Some("restore")) => "RestoreObject",
        ("POST", Some("select")) => "SelectObjectContent",
        ("POST", Some("uploads")) => "CreateMultipartUpload",
        ("POST", _) if keys.upload_id => "CompleteMultipartUpload",

        ("DELETE", Some("annotation")) => "DeleteObjectAnnotation",
        ("DELETE", Some("tagging")) => "DeleteObjectTagging",
        ("DELETE", _) if keys.upload_id => "AbortMultipartUpload",
        ("DELETE", _) => "DeleteObject",
        _ => return None,
    })
}
