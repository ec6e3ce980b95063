//! Intercepts and held attempts, as a client asks for them.
use http::Method;
use http_body_util::BodyExt;

use super::{Client, ClientError};
use crate::control::{
    HeldInFull, HeldList, HoldEvent, InterceptView, Intercepts, NewIntercept, Released, Verdict, Withdrawn,
};

/// A line of an event is no longer than this.
const MAX_LINE: usize = 1 << 20;

impl Client {
    pub async fn intercepts(&self) -> Result<Vec<InterceptView>, ClientError> {
        let all: Intercepts = self.call(Method::GET, "/v1/intercepts", None::<&()>).await?;
        Ok(all.intercepts)
    }

    pub async fn intercept(&self, new: &NewIntercept) -> Result<InterceptView, ClientError> {
        self.call(Method::POST, "/v1/intercepts", Some(new)).await
    }

    /// How many held attempts went on.
    pub async fn withdraw(&self, id: u64) -> Result<usize, ClientError> {
        let withdrawn: Withdrawn = self.call(Method::DELETE, &format!("/v1/intercepts/{id}"), None::<&()>).await?;
        Ok(withdrawn.released)
    }

    pub async fn held(&self) -> Result<HeldList, ClientError> {
        self.call(Method::GET, "/v1/held", None::<&()>).await
    }

    pub async fn held_in_full(&self, id: u64) -> Result<HeldInFull, ClientError> {
        self.call(Method::GET, &format!("/v1/held/{id}"), None::<&()>).await
    }

    pub async fn decide(&self, id: u64, verdict: &Verdict) -> Result<Released, ClientError> {
        self.call(Method::POST, &format!("/v1/held/{id}"), Some(verdict)).await
    }

    /// Begins to follow; what is held already comes first.
    pub async fn follow_held(&self) -> Result<FollowingHeld, ClientError> {
        Ok(FollowingHeld::of(self.stream(Method::GET, "/v1/held/follow", None::<&()>).await?))
    }

    /// Puts an intercept in force that lasts as long as it is followed.
    pub async fn intercept_followed(&self, new: &NewIntercept) -> Result<(InterceptView, FollowingHeld), ClientError> {
        let answer = self.stream(Method::POST, "/v1/intercepts/follow", Some(new)).await?;
        let mut following = FollowingHeld::of(answer);
        match following.next().await? {
            Some(HoldEvent::Intercept(added)) => Ok((added, following)),
            _ => Err(ClientError::Broken("it did not say which intercept it made".to_owned())),
        }
    }
}

/// Events as they come.
#[derive(Debug)]
pub struct FollowingHeld {
    response: http::Response<hyper::body::Incoming>,
    /// What has come of a line that is not over.
    line: Vec<u8>,
    /// What has come and was not looked at.
    data: Vec<u8>,
    /// The event whose data comes next.
    name: String,
}

impl FollowingHeld {
    fn of(response: http::Response<hyper::body::Incoming>) -> Self {
        Self { response, line: Vec::new(), data: Vec::new(), name: String::new() }
    }

    /// `None` once the instance has ended.
    pub async fn next(&mut self) -> Result<Option<HoldEvent>, ClientError> {
        loop {
            while let Some(end) = self.data.iter().position(|&byte| byte == b'\n') {
                self.line.extend(self.data.drain(..=end));
                let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).trim_end().to_owned();
                if let Some(name) = line.strip_prefix("event:") {
                    name.trim().clone_into(&mut self.name);
                } else if let Some(data) = line.strip_prefix("data:") {
                    let data: serde_json::Value =
                        serde_json::from_str(data).map_err(|error| ClientError::Broken(error.to_string()))?;
                    let event = serde_json::json!({ "event": self.name, "data": data });
                    // An event of a later version is nothing to us.
                    if let Ok(event) = serde_json::from_value(event) {
                        return Ok(Some(event));
                    }
                }
            }
            self.line.append(&mut self.data);
            if self.line.len() > MAX_LINE {
                return Err(ClientError::Broken("an event is too long".to_owned()));
            }
            match self.response.frame().await {
                Some(Ok(frame)) => self.data.extend(frame.into_data().unwrap_or_default()),
                // It ends with its instance, however that went.
                Some(Err(_)) | None => return Ok(None),
            }
        }
    }
}
