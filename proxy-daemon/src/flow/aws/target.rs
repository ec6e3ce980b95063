//! `X-Amz-Target: PREFIX.Operation`, the mark of the JSON protocols.
use std::borrow::Cow;

use super::is_name;

/// Prefixes (also the service shapes of rpc-v2) that do not spell their
/// service, or whose signature does not tell it from a sibling's. Sorted.
const SERVICES: &[(&str, &str)] = &[
    ("AWSCognitoIdentityProviderService", "cognito-idp"),
    ("AWSCognitoIdentityService", "cognito-identity"),
    ("AWSEC2InstanceConnectService", "ec2-instance-connect"),
    ("AWSEvents", "events"),
    ("AWSGlue", "glue"),
    ("AWSIdentityStore", "identitystore"),
    ("AWSInsightsIndexService", "ce"),
    ("AWSMPMeteringService", "aws-marketplace"),
    ("AWSOrganizationsV20161128", "organizations"),
    ("AWSPriceListService", "pricing"),
    ("AWSShineFrontendService_20170701", "translate"),
    ("AWSSimbaAPIService_v20180301", "fsx"),
    ("AWSStepFunctions", "states"),
    ("AWSWAF_20150824", "waf"),
    ("AWSWAF_20190729", "wafv2"),
    ("AmazonAthena", "athena"),
    ("AmazonDAXV3", "dax"),
    ("AmazonDMSv20160101", "dms"),
    ("AmazonEC2ContainerRegistry_V20150921", "ecr"),
    ("AmazonEC2ContainerServiceV20141113", "ecs"),
    ("AmazonMemoryDB", "memorydb"),
    ("AmazonPersonalize", "personalize"),
    ("AmazonSQS", "sqs"),
    ("AmazonSSM", "ssm"),
    ("AnyScaleFrontendService", "application-autoscaling"),
    ("CertificateManager", "acm"),
    ("CloudApiService", "cloudcontrolapi"),
    ("CodeBuild_20161006", "codebuild"),
    ("CodeCommit_20150413", "codecommit"),
    ("CodeDeploy_20141006", "codedeploy"),
    ("CodePipeline_20150709", "codepipeline"),
    ("Comprehend_20171127", "comprehend"),
    ("DirectoryService_20150416", "ds"),
    ("DynamoDBStreams_20120810", "dynamodbstreams"),
    ("DynamoDB_20120810", "dynamodb"),
    ("ElasticMapReduce", "elasticmapreduce"),
    ("Firehose_20150804", "firehose"),
    ("GraniteServiceVersion20100801", "monitoring"),
    ("KeyspacesService", "cassandra"),
    ("KinesisAnalytics_20180523", "kinesisanalytics"),
    ("Kinesis_20131202", "kinesis"),
    ("Logs_20140328", "logs"),
    ("MailManagerSvc", "ses"),
    ("OpenSearchServerless", "aoss"),
    ("OvertureService", "directconnect"),
    ("PhotonAdminProxyService", "appstream"),
    ("RekognitionService", "rekognition"),
    ("ResourceGroupsTaggingAPI_20170126", "tagging"),
    ("Route53AutoNaming_v20170314", "servicediscovery"),
    ("Route53Domains_v20140515", "route53domains"),
    ("SWBExternalService", "sso"),
    ("SageMaker", "sagemaker"),
    ("ServiceQuotasV20190624", "servicequotas"),
    ("SimpleWorkflowService", "swf"),
    ("SpencerFrontendService", "ecr-public"),
    ("StarlingDoveService", "config"),
    ("Textract", "textract"),
    ("Timestream_20181101", "timestream"),
    ("Transcribe", "transcribe"),
    ("TransferService", "transfer"),
    ("TrentService", "kms"),
    ("WorkspacesService", "workspaces"),
    ("com.amazonaws.cloudtrail.v20131101.CloudTrail_20131101", "cloudtrail"),
    ("secretsmanager", "secretsmanager"),
];

/// Prefix and operation, if both are spelled like names.
pub(super) fn split(value: &[u8]) -> Option<(&str, &str)> {
    let (prefix, operation) = std::str::from_utf8(value).ok()?.trim().rsplit_once('.')?;
    (is_name(prefix) && is_name(operation)).then_some((prefix, operation))
}

pub(super) fn service(prefix: &str) -> Option<&'static str> {
    let at = SERVICES.binary_search_by(|(known, _)| (*known).cmp(prefix)).ok()?;
    SERVICES.get(at).map(|(_, service)| *service)
}

/// The last word of the prefix in lower case, without its date.
pub(super) fn fallback(prefix: &str) -> Cow<'static, str> {
    let word = prefix.rsplit('.').find(|word| !word.is_empty()).unwrap_or(prefix);
    let digits = word.len() - word.trim_end_matches(|char: char| char.is_ascii_digit()).len();
    let bare = match digits {
        8 => {
            let word = &word[..word.len() - 8];
            let word = word.strip_suffix("Version").or_else(|| word.strip_suffix(['v', 'V'])).unwrap_or(word);
            word.trim_end_matches('_')
        }
        _ => word,
    };
    Cow::Owned(if bare.is_empty() { word } else { bare }.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_sorted() {
        assert!(SERVICES.is_sorted_by(|one, next| one.0 < next.0));
    }

    #[test]
    fn strips_dates() {
        for (prefix, service) in [
            ("DynamoDB_20120810", "dynamodb"),
            ("Route53Domains_v20140515", "route53domains"),
            ("GraniteServiceVersion20100801", "graniteservice"),
            ("AmazonEC2ContainerServiceV20141113", "amazonec2containerservice"),
            ("com.example.Thing_20200101", "thing"),
            ("20200101", "20200101"),
            ("Odb", "odb"),
            ("...", "..."),
        ] {
            assert_eq!(fallback(prefix), service, "{prefix}");
        }
    }
}
