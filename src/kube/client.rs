//! One call at a time.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Request;
use kube::api::{DeleteParams, GetParams, PatchParams, PostParams};
use kube::config::Kubeconfig;
use serde_json::Value;
use tokio::time::timeout;

use super::error::{Call, Error};
use super::object::Object;
use super::resource::{ENDPOINT_SLICES, Resource};

/// Who writes, in objects' `managedFields`.
const WRITER: &str = "tapir";

/// How a server is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Names the server and the user; none: those of the pod that this runs in, by its service account.
    pub kubeconfig: Option<PathBuf>,
    /// Where objects of our own are, of kinds that have namespaces.
    pub namespace: String,
    /// Every call ends after this time.
    pub timeout: Duration,
    /// A watch is told to end after this time, and opened again: so the server is heard of at least as often. Counted in
    /// whole seconds.
    pub watch: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            kubeconfig: None,
            namespace: "tapir-system".into(),
            timeout: Duration::from_secs(5),
            watch: Duration::from_secs(60),
        }
    }
}

/// What an object must be like to be deleted. Empty: anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preconditions {
    /// It is this object, not another one of the same name.
    pub uid: Option<String>,
    /// It was last written then.
    pub resource_version: Option<String>,
}

/// How a patch changes lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patch {
    /// RFC 7386: a list is replaced by the patch's.
    Merge,
    /// Lists of the API's own kinds are merged by their keys: a condition by its type. Not for kinds of a CRD.
    Strategic,
}

/// A Kubernetes API server, as one user. Clones share what they know and their connections.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Settings,
    server: String,
    /// Made at the first call, and anew after the server did not know the user: files may have been replaced.
    inner: Mutex<Option<kube::Client>>,
    /// The server has endpoint slices as `v1beta1` only.
    old_slices: AtomicBool,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("server", &self.shared.server).finish_non_exhaustive()
    }
}

impl Client {
    /// Reads the files that say where the server is and who asks. Contacts nobody, and needs no runtime.
    ///
    /// A token that is named as a file is read again every minute, certificates when the server refuses the user.
    ///
    /// # Errors
    /// [`Error::Setup`].
    pub fn new(settings: &Settings) -> Result<Self, Error> {
        let server = settings.config()?.cluster_url.to_string().trim_end_matches('/').to_owned();
        let shared =
            Shared { settings: settings.clone(), server, inner: Mutex::default(), old_slices: AtomicBool::new(false) };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The server's URL.
    pub fn server(&self) -> &str {
        &self.shared.server
    }

    /// How it is reached.
    pub fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    /// Reads one object, as it is now. `namespace`: none for kinds without.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn get(&self, resource: &Resource, namespace: Option<&str>, name: &str) -> Result<Object, Error> {
        let call = self.call("get", resource, namespace, name);
        let request = request(resource, namespace).get(name, &GetParams::default());
        self.object(&call, request).await
    }

    /// Makes an object: `value` is the whole of it, with its name and without a resource version.
    ///
    /// # Errors
    /// [`Error`]; [`Error::AlreadyExists`].
    pub async fn create(&self, resource: &Resource, namespace: Option<&str>, value: &Value) -> Result<Object, Error> {
        let name = value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        let call = self.call("create", resource, namespace, name);
        let request = request(resource, namespace).create(&post(), value.to_string().into_bytes());
        self.object(&call, request).await
    }

    /// Replaces an object by `value`, if it is still of the `metadata.resourceVersion` that stands there.
    ///
    /// # Errors
    /// [`Error`]; [`Error::Conflict`].
    pub async fn replace(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
        value: &Value,
    ) -> Result<Object, Error> {
        let call = self.call("update", resource, namespace, name);
        let request = request(resource, namespace).replace(name, &post(), value.to_string().into_bytes());
        self.object(&call, request).await
    }

    /// Deletes an object, if it is as expected.
    ///
    /// # Errors
    /// [`Error`]; [`Error::Conflict`], [`Error::NotFound`].
    pub async fn delete(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
        expected: &Preconditions,
    ) -> Result<(), Error> {
        let call = self.call("delete", resource, namespace, name);
        let preconditions = (*expected != Preconditions::default()).then(|| kube::api::Preconditions {
            uid: expected.uid.clone(),
            resource_version: expected.resource_version.clone(),
        });
        let params = DeleteParams { preconditions, ..DeleteParams::background() };
        self.ask(&call, request(resource, namespace).delete(name, &params)).await.map(drop)
    }

    /// Changes part of an object by RFC 7386. With `metadata.resourceVersion` in the patch: if it is still of that.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn merge_patch(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
        patch: &Value,
    ) -> Result<Object, Error> {
        let call = self.call("patch", resource, namespace, name);
        let request = request(resource, namespace).patch(name, &patch_params(), &kube::api::Patch::Merge(patch));
        self.object(&call, request).await
    }

    /// Changes part of an object's status.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn patch_status(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
        how: Patch,
        patch: &Value,
    ) -> Result<Object, Error> {
        let call = Call { part: "status", ..self.call("patch", resource, namespace, name) };
        let patch = match how {
            Patch::Merge => kube::api::Patch::Merge(patch),
            Patch::Strategic => kube::api::Patch::Strategic(patch),
        };
        let request = request(resource, namespace).patch_subresource("status", name, &patch_params(), &patch);
        self.object(&call, request).await
    }

    pub(crate) fn call(&self, verb: &'static str, resource: &Resource, namespace: Option<&str>, name: &str) -> Call {
        let name = match namespace {
            Some(namespace) if resource.namespaced && !name.is_empty() => format!("{namespace}/{name}"),
            _ => name.to_owned(),
        };
        Call { server: self.shared.server.clone(), verb, resource: *resource, part: "", name }
    }

    /// The resource as this server has it.
    pub(crate) fn spoken(&self, resource: &Resource) -> Resource {
        let old = *resource == ENDPOINT_SLICES && self.shared.old_slices.load(Relaxed);
        if old { Resource { version: "v1beta1", ..*resource } } else { *resource }
    }

    /// Whether to ask again in another version of the resource: the server does not have it as it was `spoken`, and may
    /// have it in the other.
    pub(crate) fn speak_otherwise(&self, resource: &Resource, spoken: &Resource, error: &Error) -> bool {
        let other = *resource == ENDPOINT_SLICES && matches!(error, Error::NoKind { .. });
        if other {
            self.shared.old_slices.store(spoken == resource, Relaxed);
        }
        other
    }

    async fn object(&self, call: &Call, request: Built) -> Result<Object, Error> {
        let value = self.ask(call, request).await?;
        let failing = || Error::Failing { call: Box::new(call.clone()), reason: "its answer is no object".into() };
        Object::read(&call.resource, value).ok_or_else(failing)
    }

    /// Makes one call, once.
    pub(crate) async fn ask(&self, call: &Call, request: Built) -> Result<Value, Error> {
        let request = request.map_err(|error| invalid(call, &error))?;
        let client = self.connected()?;
        self.within(call, client.request::<Value>(request)).await
    }

    /// The answer of a call, if it comes in time.
    pub(crate) async fn within<T>(
        &self,
        call: &Call,
        asked: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Error> {
        let patience = self.shared.settings.timeout;
        match timeout(patience, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                let error = Error::of(call, &error);
                if matches!(error, Error::Unauthorized { .. }) {
                    *self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner) = None;
                }
                Err(error)
            }
            Err(_) => Err(Error::Timeout { call: Box::new(call.clone()), after: patience }),
        }
    }

    /// The library's client.
    pub(crate) fn connected(&self) -> Result<kube::Client, Error> {
        let mut inner = self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = &*inner {
            return Ok(client.clone());
        }
        let settings = &self.shared.settings;
        let client = kube::Client::try_from(settings.config()?).map_err(|error| settings.setup(&error))?;
        Ok(inner.insert(client).clone())
    }
}

/// A request, or why there can be none.
pub(crate) type Built = Result<Request<Vec<u8>>, kube::core::request::Error>;

pub(crate) fn request(resource: &Resource, namespace: Option<&str>) -> kube::core::Request {
    kube::core::Request::new(resource.path(namespace))
}

pub(crate) fn invalid(call: &Call, error: &kube::core::request::Error) -> Error {
    Error::Invalid { call: Box::new(call.clone()), reason: error.to_string() }
}

fn post() -> PostParams {
    PostParams { field_manager: Some(WRITER.into()), ..PostParams::default() }
}

fn patch_params() -> PatchParams {
    PatchParams { field_manager: Some(WRITER.into()), ..PatchParams::default() }
}

impl Settings {
    fn config(&self) -> Result<kube::Config, Error> {
        let mut config = match &self.kubeconfig {
            Some(path) => {
                let kubeconfig = Kubeconfig::read_from(path).map_err(|error| self.setup(&error))?;
                kube::Config::try_from(kubeconfig).map_err(|error| self.setup(&error))?
            }
            None => kube::Config::incluster().map_err(|error| self.setup(&error))?,
        };
        config.connect_timeout = Some(self.timeout);
        // Whether a call may be made twice is not for the library to say.
        config.default_retry = false;
        Ok(config)
    }

    fn setup(&self, error: &(dyn std::error::Error + 'static)) -> Error {
        let what = match &self.kubeconfig {
            Some(path) => path.display().to_string(),
            None => "the pod's service account (outside of a cluster a kubeconfig is needed)".into(),
        };
        Error::Setup { what, reason: super::error::chain(error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let settings = |path: &str| Settings { kubeconfig: Some(path.into()), ..Settings::default() };
        let error = Client::new(&settings("/nonexistent/kubeconfig")).unwrap_err().to_string();
        assert!(error.starts_with("/nonexistent/kubeconfig: ") && error.contains("No such file"), "{error}");
        let error = Client::new(&Settings::default()).unwrap_err().to_string();
        assert!(error.starts_with("the pod's service account"), "{error}");
        let error = Client::new(&settings(file!())).unwrap_err().to_string();
        assert!(error.starts_with(file!()), "{error}");
    }
}
