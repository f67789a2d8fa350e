//! What goes wrong with a request, as the API says it: a `Status` object with a reason and a code.

use std::fmt;

use serde_json::{Value, json};

use crate::resource::Resource;

/// A request that failed.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// The HTTP status code.
    pub code: u16,
    /// The reason in one word, which clients decide by: `NotFound`, `Conflict`, `Expired` and so on.
    pub reason: &'static str,
    /// What failed, for people.
    pub message: String,
    /// The `details` of the `Status`: the object it is about, or when to try again.
    pub details: Value,
}

impl Failure {
    pub(crate) fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: json!({}) }
    }

    fn about(resource: &Resource, name: &str, code: u16, reason: &'static str, said: &str) -> Self {
        let details = json!({ "name": name, "group": resource.group, "kind": resource.plural });
        Self { details, ..Self::new(code, reason, format!("{} \"{name}\" {said}", resource.id())) }
    }

    pub(crate) fn not_found(resource: &Resource, name: &str) -> Self {
        Self::about(resource, name, 404, "NotFound", "not found")
    }

    pub(crate) fn already_exists(resource: &Resource, name: &str) -> Self {
        Self::about(resource, name, 409, "AlreadyExists", "already exists")
    }

    pub(crate) fn conflict(resource: &Resource, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", resource.id());
        Self { message, ..Self::about(resource, name, 409, "Conflict", "") }
    }

    pub(crate) fn invalid(resource: &Resource, name: &str, why: &str) -> Self {
        let mut failure = Self::about(resource, name, 422, "Invalid", "");
        failure.message = format!("{}.{} \"{name}\" is invalid: {why}", resource.kind, resource.group);
        failure
    }

    pub(crate) fn bad_request(why: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", why)
    }

    pub(crate) fn expired(why: impl Into<String>) -> Self {
        Self::new(410, "Expired", why)
    }

    pub(crate) fn no_such_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }

    /// The failure as a `Status` object.
    pub fn status(&self) -> Value {
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "details": self.details, "code": self.code,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.code, self.reason, self.message)
    }
}

impl std::error::Error for Failure {}
