#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;
use crate::flow::Headers;

fn request(method: &str, host: &str, target: &str, headers: &[(&str, &str)]) -> Request {
    Request {
        method: method.into(),
        authority: host.into(),
        target: target.into(),
        headers: headers.iter().copied().collect(),
    }
}

fn shown(operation: &Operation) -> String {
    format!("{}.{}", operation.service.as_deref().unwrap_or("?"), operation.name.as_deref().unwrap_or("?"))
}

fn called(method: &str, host: &str, target: &str, headers: &[(&str, &str)]) -> String {
    shown(&name(&request(method, host, target, headers), None))
}

fn signed(service: &str) -> String {
    format!(
        "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260101/eu-west-1/{service}/aws4_request, \
         SignedHeaders=host;x-amz-date, Signature=abc"
    )
}

const FORM: (&str, &str) = ("Content-Type", "application/x-www-form-urlencoded; charset=utf-8");

#[test]
fn json_protocols() {
    for (target, scope, expected) in [
        ("DynamoDB_20120810.GetItem", None, "dynamodb.GetItem"),
        ("DynamoDBStreams_20120810.GetRecords", Some("dynamodb"), "dynamodbstreams.GetRecords"),
        ("AmazonSQS.SendMessage", None, "sqs.SendMessage"),
        ("Kinesis_20131202.PutRecords", None, "kinesis.PutRecords"),
        ("Logs_20140328.PutLogEvents", None, "logs.PutLogEvents"),
        ("TrentService.Decrypt", None, "kms.Decrypt"),
        ("AmazonSSM.GetParameter", None, "ssm.GetParameter"),
        ("secretsmanager.GetSecretValue", None, "secretsmanager.GetSecretValue"),
        ("AWSEvents.PutEvents", None, "events.PutEvents"),
        ("AWSStepFunctions.StartExecution", None, "states.StartExecution"),
        ("AmazonEC2ContainerServiceV20141113.RunTask", None, "ecs.RunTask"),
        ("GraniteServiceVersion20100801.PutMetricData", None, "monitoring.PutMetricData"),
        ("com.amazonaws.cloudtrail.v20131101.CloudTrail_20131101.ListTrails", None, "cloudtrail.ListTrails"),
        ("InspectorService.ListFindings", Some("inspector"), "inspector.ListFindings"),
        ("Thing_20200101.DoIt", None, "thing.DoIt"),
        (" AmazonSQS.SendMessage ", None, "sqs.SendMessage"),
        // Not spelled like names: not believed.
        ("no-dot", None, "?.?"),
        ("A.B C", None, "?.?"),
        ("A.", None, "?.?"),
    ] {
        let authorization = scope.map(signed);
        let mut headers = vec![("X-Amz-Target", target)];
        headers.extend(authorization.as_deref().map(|value| ("Authorization", value)));
        assert_eq!(called("POST", "localhost:4566", "/", &headers), expected, "{target}");
    }
    let long = format!("A.{}", "b".repeat(MAX_NAME + 1));
    assert_eq!(called("POST", "x", "/", &[("x-amz-target", &long)]), "?.?");
}

#[test]
fn rpc_v2() {
    let protocol = ("smithy-protocol", "rpc-v2-cbor");
    let path = "/service/GraniteServiceVersion20100801/operation/PutMetricData";
    let authorization = signed("cloudwatch");
    assert_eq!(
        called("POST", "x.example", path, &[protocol, ("authorization", &authorization)]),
        "cloudwatch.PutMetricData"
    );
    assert_eq!(called("POST", "x.example", path, &[protocol]), "monitoring.PutMetricData");
    assert_eq!(called("POST", "monitoring.us-east-1.amazonaws.com", path, &[protocol]), "monitoring.PutMetricData");
    assert_eq!(called("POST", "x.example", "/v1/service/a.b.Thing_20200101/operation/Go", &[protocol]), "thing.Go");
    assert_eq!(called("POST", "x.example", path, &[]), "?.?");
    assert_eq!(called("POST", "x.example", "/service/X/operation/", &[protocol]), "?.?");
}

#[test]
fn query_protocols() {
    let authorization = signed("sts");
    let with_form = request("POST", "127.0.0.1:5000", "/", &[FORM, ("Authorization", &authorization)]);
    assert!(needs_body(&with_form));
    for (body, expected) in [
        ("Action=GetCallerIdentity&Version=2011-06-15", "sts.GetCallerIdentity"),
        ("Version=2011-06-15&Action=GetCallerIdentity", "sts.GetCallerIdentity"),
        ("Version=2011-06-15&Action=GetCallerIdentity\r\n", "sts.GetCallerIdentity"),
        ("Version=2011-06-15", "sts.?"),
        ("XAction=No", "sts.?"),
        ("Action=%41", "sts.?"),
        ("", "sts.?"),
    ] {
        assert_eq!(shown(&name(&with_form, Some(body.as_bytes()))), expected, "{body}");
    }
    assert_eq!(shown(&name(&with_form, None)), "sts.?");
    // A name that may have been cut is not believed.
    let mut cut = format!("Filler={}&Action=Get", "x".repeat(BODY_START)).into_bytes();
    cut.drain(..cut.len() - BODY_START);
    assert_eq!(shown(&name(&with_form, Some(&cut))), "sts.?");

    // Not signed, but at home.
    let unsigned = request("POST", "sts.amazonaws.com", "/", &[FORM]);
    assert!(needs_body(&unsigned));
    assert_eq!(
        shown(&name(&unsigned, Some(b"Action=AssumeRoleWithWebIdentity&Version=2011-06-15"))),
        "sts.AssumeRoleWithWebIdentity"
    );
    let in_query = "/?Action=DescribeInstances&Version=2016-11-15&X-Amz-Credential=AKID%2F20260101%2Feu-west-1%2Fec2%2Faws4_request";
    assert_eq!(called("GET", "proxy.example", in_query, &[]), "ec2.DescribeInstances");
    assert!(!needs_body(&request("POST", "proxy.example", in_query, &[FORM])));

    for (method, host, headers) in [
        ("POST", "example.org", vec![FORM]),
        ("GET", "sts.amazonaws.com", vec![FORM]),
        ("POST", "sts.amazonaws.com", vec![]),
        ("POST", "s3.amazonaws.com", vec![FORM]),
        ("POST", "sts.amazonaws.com", vec![FORM, ("Content-Encoding", "gzip")]),
        ("POST", "sqs.us-east-1.amazonaws.com", vec![FORM, ("X-Amz-Target", "AmazonSQS.SendMessage")]),
    ] {
        assert!(!needs_body(&request(method, host, "/", &headers)), "{method} {host} {headers:?}");
    }
    assert_eq!(shown(&name(&request("POST", "example.org", "/", &[FORM]), Some(b"Action=Buy"))), "?.?");
}

#[test]
fn signatures() {
    for (authorization, service) in [
        (signed("lambda"), "lambda"),
        (signed("IoTSecuredTunneling"), "iotsecuredtunneling"),
        ("AWS4-ECDSA-P256-SHA256 Credential=AKID/20260101/events/aws4_request, SignedHeaders=host".into(), "events"),
        ("AWS4-HMAC-SHA256 Credential=a/b/c/20260101/eu-west-1/lambda/aws4_request,SignedHeaders=x".into(), "lambda"),
        ("AWS4-HMAC-SHA256 Credential=AKID/20260101/eu-west-1/a b/aws4_request, X=y".into(), "?"),
        ("AWS4-HMAC-SHA256 Credential=AKID".into(), "?"),
        ("Bearer abc".into(), "?"),
        ("AWS4-".into(), "?"),
    ] {
        let found = called("GET", "api.example", "/2015-03-31/functions", &[("authorization", &authorization)]);
        let expected = if service == "lambda" { "lambda.ListFunctions".to_owned() } else { format!("{service}.?") };
        assert_eq!(found, expected, "{authorization}");
    }
    for credential in
        ["AKID/20260101/us-east-1/lambda/aws4_request", "AKID%2f20260101%2fus-east-1%2flambda%2faws4_request"]
    {
        let target = format!("/f?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={credential}");
        assert_eq!(called("GET", "api.example", &target, &[]), "lambda.?");
    }
}

#[test]
fn hosts_alone() {
    for (host, expected) in [
        ("lambda.us-east-1.amazonaws.com", "lambda.?"),
        ("LAMBDA.US-EAST-1.AmazonAWS.com.", "lambda.?"),
        ("a1.execute-api.us-east-1.amazonaws.com:443", "execute-api.?"),
        ("s3tables.us-east-1.amazonaws.com", "s3tables.?"),
        ("123456789012.s3-control.us-east-1.amazonaws.com", "s3control.?"),
        ("bucket.s3-website-us-east-1.amazonaws.com", "?.?"),
        ("ec2-1-2-3-4.compute-1.amazonaws.com", "?.?"),
        ("storage.googleapis.com", "?.?"),
        ("example.org", "?.?"),
        ("", "?.?"),
    ] {
        assert_eq!(called("GET", host, "/thing", &[]), expected, "{host}");
    }
}

/// Every operation of the model that differs on the wire: method, path with
/// the bucket in it, whether `x-amz-copy-source` is sent, name.
const S3: &[(&str, &str, bool, &str)] = &[
    ("DELETE", "/bucket/a/key?uploadId=1", false, "AbortMultipartUpload"),
    ("POST", "/bucket/a/key?uploadId=1", false, "CompleteMultipartUpload"),
    ("PUT", "/bucket/a/key", true, "CopyObject"),
    ("PUT", "/bucket", false, "CreateBucket"),
    ("POST", "/bucket?metadataConfiguration", false, "CreateBucketMetadataConfiguration"),
    ("POST", "/bucket?metadataTable", false, "CreateBucketMetadataTableConfiguration"),
    ("POST", "/bucket/a/key?uploads", false, "CreateMultipartUpload"),
    ("GET", "/bucket?session", false, "CreateSession"),
    ("DELETE", "/bucket", false, "DeleteBucket"),
    ("DELETE", "/bucket?analytics&id=1", false, "DeleteBucketAnalyticsConfiguration"),
    ("DELETE", "/bucket?cors", false, "DeleteBucketCors"),
    ("DELETE", "/bucket?encryption", false, "DeleteBucketEncryption"),
    ("DELETE", "/bucket?intelligent-tiering&id=1", false, "DeleteBucketIntelligentTieringConfiguration"),
    ("DELETE", "/bucket?inventory&id=1", false, "DeleteBucketInventoryConfiguration"),
    ("DELETE", "/bucket?lifecycle", false, "DeleteBucketLifecycle"),
    ("DELETE", "/bucket?metadataConfiguration", false, "DeleteBucketMetadataConfiguration"),
    ("DELETE", "/bucket?metadataTable", false, "DeleteBucketMetadataTableConfiguration"),
    ("DELETE", "/bucket?metrics&id=1", false, "DeleteBucketMetricsConfiguration"),
    ("DELETE", "/bucket?ownershipControls", false, "DeleteBucketOwnershipControls"),
    ("DELETE", "/bucket?policy", false, "DeleteBucketPolicy"),
    ("DELETE", "/bucket?replication", false, "DeleteBucketReplication"),
    ("DELETE", "/bucket?tagging", false, "DeleteBucketTagging"),
    ("DELETE", "/bucket?website", false, "DeleteBucketWebsite"),
    ("DELETE", "/bucket/a/key", false, "DeleteObject"),
    ("DELETE", "/bucket/a/key?annotation&annotationName=1", false, "DeleteObjectAnnotation"),
    ("DELETE", "/bucket/a/key?tagging", false, "DeleteObjectTagging"),
    ("POST", "/bucket?delete", false, "DeleteObjects"),
    ("DELETE", "/bucket?publicAccessBlock", false, "DeletePublicAccessBlock"),
    ("GET", "/bucket?abac", false, "GetBucketAbac"),
    ("GET", "/bucket?accelerate", false, "GetBucketAccelerateConfiguration"),
    ("GET", "/bucket?acl", false, "GetBucketAcl"),
    ("GET", "/bucket?analytics&id=1", false, "GetBucketAnalyticsConfiguration"),
    ("GET", "/bucket?cors", false, "GetBucketCors"),
    ("GET", "/bucket?encryption", false, "GetBucketEncryption"),
    ("GET", "/bucket?intelligent-tiering&id=1", false, "GetBucketIntelligentTieringConfiguration"),
    ("GET", "/bucket?inventory&id=1", false, "GetBucketInventoryConfiguration"),
    ("GET", "/bucket?lifecycle", false, "GetBucketLifecycleConfiguration"),
    ("GET", "/bucket?location", false, "GetBucketLocation"),
    ("GET", "/bucket?logging", false, "GetBucketLogging"),
    ("GET", "/bucket?metadataConfiguration", false, "GetBucketMetadataConfiguration"),
    ("GET", "/bucket?metadataTable", false, "GetBucketMetadataTableConfiguration"),
    ("GET", "/bucket?metrics&id=1", false, "GetBucketMetricsConfiguration"),
    ("GET", "/bucket?notification", false, "GetBucketNotificationConfiguration"),
    ("GET", "/bucket?ownershipControls", false, "GetBucketOwnershipControls"),
    ("GET", "/bucket?policy", false, "GetBucketPolicy"),
    ("GET", "/bucket?policyStatus", false, "GetBucketPolicyStatus"),
    ("GET", "/bucket?replication", false, "GetBucketReplication"),
    ("GET", "/bucket?requestPayment", false, "GetBucketRequestPayment"),
    ("GET", "/bucket?tagging", false, "GetBucketTagging"),
    ("GET", "/bucket?versioning", false, "GetBucketVersioning"),
    ("GET", "/bucket?website", false, "GetBucketWebsite"),
    ("GET", "/bucket/a/key", false, "GetObject"),
    ("GET", "/bucket/a/key?acl", false, "GetObjectAcl"),
    ("GET", "/bucket/a/key?annotation&annotationName=1", false, "GetObjectAnnotation"),
    ("GET", "/bucket/a/key?attributes", false, "GetObjectAttributes"),
    ("GET", "/bucket/a/key?legal-hold", false, "GetObjectLegalHold"),
    ("GET", "/bucket?object-lock", false, "GetObjectLockConfiguration"),
    ("GET", "/bucket/a/key?retention", false, "GetObjectRetention"),
    ("GET", "/bucket/a/key?tagging", false, "GetObjectTagging"),
    ("GET", "/bucket/a/key?torrent", false, "GetObjectTorrent"),
    ("GET", "/bucket?publicAccessBlock", false, "GetPublicAccessBlock"),
    ("HEAD", "/bucket", false, "HeadBucket"),
    ("HEAD", "/bucket/a/key", false, "HeadObject"),
    ("GET", "/bucket?analytics", false, "ListBucketAnalyticsConfigurations"),
    ("GET", "/bucket?intelligent-tiering", false, "ListBucketIntelligentTieringConfigurations"),
    ("GET", "/bucket?inventory", false, "ListBucketInventoryConfigurations"),
    ("GET", "/bucket?metrics", false, "ListBucketMetricsConfigurations"),
    ("GET", "/", false, "ListBuckets"),
    ("GET", "/bucket?uploads", false, "ListMultipartUploads"),
    ("GET", "/bucket/a/key?annotation", false, "ListObjectAnnotations"),
    ("GET", "/bucket?versions", false, "ListObjectVersions"),
    ("GET", "/bucket", false, "ListObjects"),
    ("GET", "/bucket?list-type=2", false, "ListObjectsV2"),
    ("GET", "/bucket/a/key?uploadId=1", false, "ListParts"),
    ("PUT", "/bucket?abac", false, "PutBucketAbac"),
    ("PUT", "/bucket?accelerate", false, "PutBucketAccelerateConfiguration"),
    ("PUT", "/bucket?acl", false, "PutBucketAcl"),
    ("PUT", "/bucket?analytics&id=1", false, "PutBucketAnalyticsConfiguration"),
    ("PUT", "/bucket?cors", false, "PutBucketCors"),
    ("PUT", "/bucket?encryption", false, "PutBucketEncryption"),
    ("PUT", "/bucket?intelligent-tiering&id=1", false, "PutBucketIntelligentTieringConfiguration"),
    ("PUT", "/bucket?inventory&id=1", false, "PutBucketInventoryConfiguration"),
    ("PUT", "/bucket?lifecycle", false, "PutBucketLifecycleConfiguration"),
    ("PUT", "/bucket?logging", false, "PutBucketLogging"),
    ("PUT", "/bucket?metrics&id=1", false, "PutBucketMetricsConfiguration"),
    ("PUT", "/bucket?notification", false, "PutBucketNotificationConfiguration"),
    ("PUT", "/bucket?ownershipControls", false, "PutBucketOwnershipControls"),
    ("PUT", "/bucket?policy", false, "PutBucketPolicy"),
    ("PUT", "/bucket?replication", false, "PutBucketReplication"),
    ("PUT", "/bucket?requestPayment", false, "PutBucketRequestPayment"),
    ("PUT", "/bucket?tagging", false, "PutBucketTagging"),
    ("PUT", "/bucket?versioning", false, "PutBucketVersioning"),
    ("PUT", "/bucket?website", false, "PutBucketWebsite"),
    ("PUT", "/bucket/a/key", false, "PutObject"),
    ("PUT", "/bucket/a/key?acl", false, "PutObjectAcl"),
    ("PUT", "/bucket/a/key?annotation&annotationName=1", false, "PutObjectAnnotation"),
    ("PUT", "/bucket/a/key?legal-hold", false, "PutObjectLegalHold"),
    ("PUT", "/bucket?object-lock", false, "PutObjectLockConfiguration"),
    ("PUT", "/bucket/a/key?retention", false, "PutObjectRetention"),
    ("PUT", "/bucket/a/key?tagging", false, "PutObjectTagging"),
    ("PUT", "/bucket?publicAccessBlock", false, "PutPublicAccessBlock"),
    ("PUT", "/bucket/a/key?renameObject", false, "RenameObject"),
    ("POST", "/bucket/a/key?restore", false, "RestoreObject"),
    ("POST", "/bucket/a/key?select&select-type=2", false, "SelectObjectContent"),
    ("PUT", "/bucket?metadataAnnotationTable", false, "UpdateBucketMetadataAnnotationTableConfiguration"),
    ("PUT", "/bucket?metadataInventoryTable", false, "UpdateBucketMetadataInventoryTableConfiguration"),
    ("PUT", "/bucket?metadataJournalTable", false, "UpdateBucketMetadataJournalTableConfiguration"),
    ("PUT", "/bucket/a/key?encryption", false, "UpdateObjectEncryption"),
    ("PUT", "/bucket/a/key?partNumber=1&uploadId=1", false, "UploadPart"),
    ("PUT", "/bucket/a/key?partNumber=1&uploadId=1", true, "UploadPartCopy"),
];

#[test]
fn s3_operations_in_every_address_style() {
    let authorization = signed("s3");
    for (method, target, copy, operation) in S3 {
        let mut headers = vec![("Authorization", authorization.as_str())];
        if *copy {
            headers.push(("x-amz-copy-source", "/other/key"));
        }
        let expected = format!("s3.{operation}");
        // What does not tell operations apart changes nothing.
        let noise = if target.contains('?') { "&" } else { "?" };
        let noisy = format!("{target}{noise}x-id=Whatever&versionId=3&response-content-type=a&X-Amz-Date=1");
        for target in [*target, &noisy] {
            assert_eq!(called(method, "s3.eu-west-1.amazonaws.com", target, &headers), expected, "{method} {target}");
            assert_eq!(called(method, "127.0.0.1:9000", target, &headers), expected, "{method} {target}");
            assert_eq!(
                called(method, "s3.eu-west-1.amazonaws.com", target, &headers[1..]),
                expected,
                "unsigned {target}"
            );
            let Some(rest) = target.strip_prefix("/bucket") else { continue };
            let rest = if rest.starts_with('/') { rest.to_owned() } else { format!("/{rest}") };
            for host in ["bucket.s3.eu-west-1.amazonaws.com", "my.bucket.s3.localhost.localstack.cloud:4566"] {
                assert_eq!(called(method, host, &rest, &headers), expected, "{method} {host} {rest}");
            }
            if target.starts_with("/bucket?") || target.ends_with("/bucket") {
                let slashed = target.replacen("/bucket", "/bucket/", 1);
                assert_eq!(called(method, "s3.amazonaws.com", &slashed, &headers), expected, "{method} {slashed}");
            }
        }
    }
}

#[test]
fn s3_corners() {
    let s3 = signed("s3");
    let express = signed("s3express");
    let of = |method, host, target, scope: &String, more: &[(&str, &str)]| {
        let mut headers = vec![("Authorization", scope.as_str())];
        headers.extend_from_slice(more);
        called(method, host, target, &headers)
    };
    for (method, host, target, expected) in [
        ("GET", "s3.amazonaws.com", "/", "s3.ListBuckets"),
        ("GET", "s3.amazonaws.com", "/?x-id=ListBuckets", "s3.ListBuckets"),
        ("GET", "bucket.s3.amazonaws.com", "/", "s3.ListObjects"),
        // Keys keep their slashes.
        ("GET", "s3.amazonaws.com", "/bucket//key", "s3.GetObject"),
        ("GET", "bucket.s3.amazonaws.com", "//", "s3.GetObject"),
        ("GET", "s3.amazonaws.com", "/bucket/dir/", "s3.GetObject"),
        ("GET", "s3.amazonaws.com", "/bucket/key?location", "s3.GetObject"),
        ("GET", "s3.amazonaws.com", "/bucket?list-type=1", "s3.ListObjects"),
        ("GET", "s3.amazonaws.com", "/bucket?analytics&id=1", "s3.GetBucketAnalyticsConfiguration"),
        ("GET", "s3.amazonaws.com", "/bucket?prefix=acl", "s3.ListObjects"),
        ("OPTIONS", "s3.amazonaws.com", "/bucket/key", "s3.?"),
        ("PUT", "s3.amazonaws.com", "/", "s3.?"),
        ("POST", "s3.amazonaws.com", "/bucket/key", "s3.?"),
        ("GET", "alias.mrap.accesspoint.s3-global.amazonaws.com", "/key", "s3.GetObject"),
        ("PUT", "mine.bucket.vpce-1a-2b.s3.us-east-1.vpce.amazonaws.com", "/key", "s3.PutObject"),
        ("PUT", "bucket.vpce-1a-2b.s3.us-east-1.vpce.amazonaws.com", "/mine", "s3.CreateBucket"),
        // Elsewhere: an address or a plain name holds no bucket.
        ("PUT", "localhost:9000", "/bucket", "s3.CreateBucket"),
        ("PUT", "minio.example.org", "/bucket/key", "s3.PutObject"),
        ("PUT", "[::1]:9000", "/bucket", "s3.CreateBucket"),
        // The root can only be a bucket's here.
        ("HEAD", "bucket.minio.example.org", "/", "s3.HeadBucket"),
        ("GET", "bucket.minio.example.org", "/?list-type=2", "s3.ListObjectsV2"),
        ("GET", "minio.example.org", "/", "s3.ListBuckets"),
        // The client's own word settles it.
        ("GET", "bucket.minio.example.org", "/key?x-id=GetObject", "s3.GetObject"),
        ("PUT", "bucket.minio.example.org", "/key?x-id=PutObject", "s3.PutObject"),
        ("PUT", "minio.example.org", "/bucket?x-id=CreateBucket", "s3.CreateBucket"),
        ("GET", "minio.example.org", "/bucket?x-id=Nonsense", "s3.ListObjects"),
        ("PUT", "bucket.s3.example.org", "/key", "s3.PutObject"),
        ("PUT", "s3.example.org", "/bucket/key", "s3.PutObject"),
        ("PUT", "space.fra1.digitaloceanspaces.com", "/key", "s3.PutObject"),
        ("PUT", "fra1.digitaloceanspaces.com", "/bucket/key", "s3.PutObject"),
    ] {
        assert_eq!(of(method, host, target, &s3, &[]), expected, "{method} {host} {target}");
    }
    let control = "s3express-control.us-east-1.amazonaws.com";
    assert_eq!(of("GET", control, "/", &express, &[]), "s3express.ListDirectoryBuckets");
    assert_eq!(of("PUT", control, "/b--use1-az4--x-s3", &express, &[]), "s3express.CreateBucket");
    let zonal = "b--use1-az4--x-s3.s3express-use1-az4.us-east-1.amazonaws.com";
    assert_eq!(of("GET", zonal, "/?session", &express, &[]), "s3express.CreateSession");
    assert_eq!(of("PUT", zonal, "/key", &express, &[]), "s3express.PutObject");
    assert_eq!(called("PUT", zonal, "/key", &[]), "s3express.PutObject");
    let lambda = signed("s3-object-lambda");
    let route = "io-1.s3-object-lambda.us-east-1.amazonaws.com";
    assert_eq!(of("POST", route, "/WriteGetObjectResponse", &lambda, &[]), "s3-object-lambda.WriteGetObjectResponse");
    let account = ("x-amz-account-id", "123456789012");
    assert_eq!(of("GET", "example.org", "/v20180820/jobs", &s3, &[account]), "s3control.ListJobs");
    let form = ("content-type", "multipart/form-data; boundary=x");
    assert_eq!(of("POST", "bucket.s3.amazonaws.com", "/", &s3, &[form]), "s3.PostObject");
    assert_eq!(called("GET", "ceph.example", "/bucket/key", &[("Authorization", "AWS KEY:SIG=")]), "s3.GetObject");
    // S3 knows no Action.
    assert_eq!(of("GET", "s3.amazonaws.com", "/?Action=Nothing", &s3, &[]), "s3.ListBuckets");
}

#[test]
fn buckets_and_keys() {
    for (host, target, expected) in [
        ("s3.eu-west-1.amazonaws.com", "/b/a/k?x-id=GetObject", Some(("b", "a/k"))),
        ("s3.eu-west-1.amazonaws.com", "/b", Some(("b", ""))),
        ("s3.eu-west-1.amazonaws.com", "/", None),
        ("B.s3.amazonaws.com", "/a/k", Some(("b", "a/k"))),
        ("with.dots.s3.dualstack.us-west-2.amazonaws.com", "/", Some(("with.dots", ""))),
        ("s3.s3.eu-west-1.amazonaws.com", "/k", Some(("s3", "k"))),
        ("mine.bucket.vpce-1a2b-5678.s3.us-east-1.vpce.amazonaws.com", "/k", Some(("mine", "k"))),
        ("b--use1-az4--x-s3.s3express-use1-az4.us-east-1.amazonaws.com", "/k", Some(("b--use1-az4--x-s3", "k"))),
        ("123456789012.s3-control.us-east-1.amazonaws.com", "/v20180820/jobs", None),
        ("sqs.eu-west-1.amazonaws.com", "/b/k", None),
        ("example.org", "/b/k", None),
    ] {
        let request = request("GET", host, target, &[]);
        let found = s3_place(&request);
        assert_eq!(found.as_ref().map(|(bucket, key)| (bucket.as_str(), *key)), expected, "{host}{target}");
    }
    let authorization = signed("s3");
    let request = request("PUT", "127.0.0.1:9000", "/b/a/k", &[("authorization", &authorization)]);
    assert_eq!(s3_place(&request), Some(("b".to_owned(), "a/k")));
}

#[test]
fn names_are_shared() {
    let one = name(&request("GET", "s3.amazonaws.com", "/", &[]), None);
    let two = name(&request("GET", "s3.amazonaws.com", "/", &[]), None);
    assert!(std::sync::Arc::ptr_eq(one.name.as_ref().unwrap(), two.name.as_ref().unwrap()));
}

proptest! {
    #[test]
    fn no_request_panics(
        method in "[A-Z]{0,7}",
        host in "([a-z0-9.:-]{0,8}|s3|[.]|vpce|us-east-1|accesspoint|[.]amazonaws[.]com){0,8}",
        target in "(/|[?]|&|=|%2F|Action|X-Amz-Credential|aws4_request|service|operation|uploadId|é|.){0,12}",
        headers in prop::collection::vec((
            "(x-amz-target|authorization|content-type|smithy-protocol|x-amz-account-id|[a-z-]{1,8})",
            prop_oneof![
                prop::collection::vec(any::<u8>(), 0..24),
                "(AWS4-|Credential=|/|aws4_request|,|s3|rpc-v2|[.]|é|[0-9]{8}|application/x-www-form-urlencoded){0,8}"
                    .prop_map(String::into_bytes),
            ],
        ), 0..5),
        body in prop::option::of(prop::collection::vec(any::<u8>(), 0..64)),
    ) {
        let request = Request {
            method: method.into(),
            authority: host.into(),
            target: target.into(),
            headers: Headers::copied(headers.iter().map(|(name, value)| (name.as_bytes(), value.as_slice()))),
        };
        needs_body(&request);
        s3_place(&request);
        let found = name(&request, body.as_deref());
        for part in [found.service, found.name].into_iter().flatten() {
            prop_assert!(is_name(&part));
        }
    }
}
