//! Answers of the API server, as they go over the wire. Pure.

use std::convert::Infallible;

use bytes::Bytes;
use http::Response;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};

use crate::store::Refusal;

/// What comes back: all at once, or line by line.
pub(crate) type Answer = UnsyncBoxBody<Bytes, Infallible>;

pub(crate) fn line(kind: &str, object: &Value) -> String {
    format!("{}\n", json!({ "type": kind, "object": object }))
}

pub(crate) fn answered(code: u16, body: &Value) -> Response<Answer> {
    let body = Full::new(Bytes::from(body.to_string()));
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = http::StatusCode::from_u16(code).unwrap_or_default();
    response
}

pub(crate) fn refused(refusal: &Refusal) -> Response<Answer> {
    let Refusal { code, reason, message } = refusal;
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    });
    answered(*code, &status)
}

pub(crate) fn unavailable() -> Refusal {
    refusal(503)
}

pub(crate) fn refusal(code: u16) -> Refusal {
    let reason = match code {
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        422 => "Invalid",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        _ => "InternalError",
    };
    Refusal { code, reason, message: format!("the server says {code}") }
}
