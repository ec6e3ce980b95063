//! What kind of outcome an attempt had, from the client's point of view.
//!
//! In: an ended attempt. Out: one [`Class`]. The service's own error code says
//! more than the status: some services throttle with 400, some answer 200 and
//! an error. Sources: botocore `retries/standard.py` (`ThrottledRetryableChecker`
//! and the same list in the other AWS SDKs), Google's and gRPC's canonical
//! codes, Azure's `ServerBusy`, the Stainless SDKs' error types.
use crate::flow::{Attempt, Failure};

/// Kinds of outcomes, in the order in which reports show them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// An informational status, a success or a redirect.
    Success,
    /// The service asks for fewer requests.
    Throttled,
    /// 5xx, or an error code that means the same.
    ServerError,
    /// No answer in time, or none that the client waited for: it went away
    /// and tried again.
    Timeout,
    /// The connection could not be made, or broke.
    Connection,
    /// 4xx: the request itself is at fault.
    ClientError,
    /// The client went away and did not try again.
    Cancelled,
}

impl Class {
    pub const ALL: [Class; 7] = [
        Class::Success,
        Class::Throttled,
        Class::ServerError,
        Class::Timeout,
        Class::Connection,
        Class::ClientError,
        Class::Cancelled,
    ];

    /// As the report and the metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Class::Success => "success",
            Class::Throttled => "throttled",
            Class::ServerError => "server_error",
            Class::Timeout => "timeout",
            Class::Connection => "connection",
            Class::ClientError => "client_error",
            Class::Cancelled => "cancelled",
        }
    }

    /// The attempt brought nothing: its bytes and time were spent for nothing.
    pub fn is_failure(self) -> bool {
        self != Class::Success
    }

    pub fn of(attempt: &Attempt) -> Self {
        let told = attempt.injected.as_ref();
        if let Some(abort) = told.and_then(|told| told.abort) {
            return if abort == "stall" { Class::Timeout } else { Class::Connection };
        }
        match attempt.failure.filter(|failure| !matches!(failure, Failure::Cancelled | Failure::Unread)) {
            // A rule's whole answer stands, whatever became of the upstream.
            Some(failure) if told.is_none() => return Self::of_failure(failure),
            _ => {}
        }
        match attempt.status() {
            Some(status) => Self::of_status(status, attempt.complaint.code.as_deref()),
            None => attempt.failure.map_or(Class::Cancelled, Self::of_failure),
        }
    }

    fn of_failure(failure: Failure) -> Self {
        match failure {
            Failure::TimedOut => Class::Timeout,
            Failure::Cancelled => Class::Cancelled,
            // Nothing says that it was none.
            Failure::Unread => Class::Success,
            Failure::Reset
            | Failure::Closed
            | Failure::Protocol
            | Failure::Refused
            | Failure::Unreachable
            | Failure::Tls => Class::Connection,
        }
    }

    fn of_status(status: u16, code: Option<&str>) -> Self {
        if let Some(class) = code.and_then(of_code) {
            return class;
        }
        match (status, code) {
            (429 | 509, _) => Class::Throttled,
            (408, _) => Class::Timeout,
            (500.., _) => Class::ServerError,
            // gRPC's errors, and S3's late ones.
            (200, Some(_)) => Class::ClientError,
            (400.., _) => Class::ClientError,
            _ => Class::Success,
        }
    }
}

/// What a code says whatever the status; most codes say nothing more than it.
fn of_code(code: &str) -> Option<Class> {
    Some(match code {
        // botocore's and the other AWS SDKs' list.
        "Throttling"
        | "ThrottlingException"
        | "ThrottledException"
        | "RequestThrottledException"
        | "TooManyRequestsException"
        | "ProvisionedThroughputExceededException"
        | "RequestLimitExceeded"
        | "BandwidthLimitExceeded"
        | "LimitExceededException"
        | "RequestThrottled"
        | "SlowDown"
        | "EC2ThrottledException"
        // Modelled by services besides.
        | "Throttled"
        | "ThrottlingError"
        | "ThrottledClientException"
        | "TooManyRequestException"
        | "TooManyRequests"
        // Azure Storage and Cosmos DB.
        | "ServerBusy"
        // Google and gRPC; Google's older reasons.
        | "RESOURCE_EXHAUSTED"
        | "rateLimitExceeded"
        | "userRateLimitExceeded"
        | "quotaExceeded"
        // OpenAI, Anthropic, Stripe.
        | "rate_limit_exceeded"
        | "rate_limit_error"
        | "rate_limit" => Class::Throttled,
        "TransactionInProgressException" | "PriorRequestNotComplete" | "InternalError" | "InternalServerError"
        | "InternalFailure" | "ServiceUnavailable" | "UNAVAILABLE" | "INTERNAL" | "UNKNOWN" | "DATA_LOSS"
        | "overloaded_error" => Class::ServerError,
        "RequestTimeout" | "RequestTimeoutException" | "DEADLINE_EXCEEDED" | "OperationTimedOut" => Class::Timeout,
        "CANCELLED" => Class::Cancelled,
        _ => return None,
    })
}

/// What a client may well try again. A call that ends like this has been
/// given up.
pub(super) fn is_retryable(class: Class, status: Option<u16>) -> bool {
    match class {
        Class::Throttled | Class::Timeout | Class::Connection => true,
        Class::ServerError => !matches!(status, Some(501 | 505 | 506 | 507 | 508 | 510 | 511)),
        // Too Early (RFC 8470, section 5.2).
        Class::ClientError => status == Some(425),
        Class::Success | Class::Cancelled => false,
    }
}
