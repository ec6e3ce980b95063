//! What a request brings, and what is told of what is wrong with it: always
//! JSON, `{"error": SENTENCE}`.
use axum::{
    Json,
    extract::{
        FromRequest, FromRequestParts, Path, Query, Request,
        rejection::{JsonRejection, PathRejection, QueryRejection},
    },
    http::{StatusCode, request::Parts},
    response::{IntoResponse, Response},
};
use serde::de::DeserializeOwned;
use utoipa::IntoResponses;

use crate::control::Refused;

/// Why a request is not answered.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    error: String,
}

impl Problem {
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into() }
    }

    /// A parameter that cannot be meant.
    pub(super) fn parameter(name: &str, why: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, format!("the parameter `{name}` is wrong: {why}"))
    }

    pub(super) fn absent(what: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, what)
    }

    /// A fault of our own.
    pub(super) fn fault(error: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the answer could not be made ({error})"))
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.status, Json(Refused { error: self.error })).into_response()
    }
}

/// What every question may be answered with.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "for its shape alone")]
pub(super) enum Wrong {
    /// A parameter is wrong; `error` says which.
    #[response(status = 400)]
    Request(Refused),
    /// Whoever asks may not.
    #[response(status = 403)]
    Forbidden(Refused),
}

/// What a change may be answered with besides.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "for its shape alone")]
pub(super) enum WrongBody {
    /// The body is no JSON.
    #[response(status = 400)]
    Request(Refused),
    /// Whoever asks may not.
    #[response(status = 403)]
    Forbidden(Refused),
    /// The body is longer than 64 KiB.
    #[response(status = 413)]
    TooLong(Refused),
    /// The body is not said to be JSON.
    #[response(status = 415)]
    Type(Refused),
    /// What was asked for means nothing, or cannot be done.
    #[response(status = 422)]
    Meaning(Refused),
}

/// Nothing of that name or number.
#[derive(IntoResponses)]
#[response(status = 404)]
#[allow(dead_code, reason = "for its shape alone")]
pub(super) struct Absent(Refused);

/// The parameters after the question mark.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(asked)) => Ok(Self(asked)),
            Err(QueryRejection::FailedToDeserializeQueryString(error)) => {
                // `limit: invalid digit found in string`, or `unknown field …`.
                let why = error.body_text();
                let why = why.strip_prefix("Failed to deserialize query string: ").unwrap_or(&why);
                let error = match why.split_once(": ") {
                    Some((name, why)) => return Err(Problem::parameter(name, why)),
                    None => why.replace("unknown field", "unknown parameter"),
                };
                Err(Problem::new(StatusCode::BAD_REQUEST, error))
            }
            Err(error) => Err(Problem::new(StatusCode::BAD_REQUEST, error.body_text())),
        }
    }
}

/// A part of the path.
pub(super) struct Named<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Named<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(named)) => Ok(Self(named)),
            Err(PathRejection::FailedToDeserializePathParams(error)) => {
                Err(Problem::new(StatusCode::BAD_REQUEST, format!("the path is wrong: {}", error.body_text())))
            }
            Err(error) => Err(Problem::fault(error.body_text())),
        }
    }
}

/// A body of JSON.
pub(super) struct Given<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Given<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(given)) => Ok(Self(given)),
            Err(error) => Err(Problem::new(error.status(), body_error(&error))),
        }
    }
}

fn body_error(error: &JsonRejection) -> String {
    let text = error.body_text();
    match error {
        JsonRejection::MissingJsonContentType(_) => {
            "the body has to be JSON; send it with `content-type: application/json`".into()
        }
        JsonRejection::JsonSyntaxError(_) | JsonRejection::JsonDataError(_) => {
            let why = text.split_once(": ").map_or(text.as_str(), |(_, why)| why);
            format!("the body is wrong: {why}")
        }
        _ => text,
    }
}
