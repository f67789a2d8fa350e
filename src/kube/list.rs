//! Everything of a kind, as of one moment.

use kube::api::ListParams;
use serde_json::Value;

use super::client::{Client, request};
use super::error::{Call, Error};
use super::object::Object;
use super::resource::{Resource, Selection};

/// As many objects are read at once, as `kubectl` does.
const PAGE: u32 = 500;
/// More pages than this are no cluster's: a server that always has more would fill the memory.
const PAGES: usize = 2000;
/// A list is begun anew as often when the server forgets its version between two pages.
const ATTEMPTS: usize = 3;

/// A page of a list.
struct Page {
    objects: Vec<Object>,
    resource_version: String,
    more: Option<String>,
}

impl Client {
    /// Reads every selected object, as they are at one moment, which is not before the call; and that moment's resource
    /// version, from which a watch misses nothing. Each page has the whole of [`super::Settings::timeout`].
    ///
    /// # Errors
    /// [`Error`].
    pub async fn list(&self, resource: &Resource, selection: &Selection) -> Result<(Vec<Object>, String), Error> {
        let (mut attempt, mut again) = (1, true);
        loop {
            let spoken = self.spoken(resource);
            match self.pages(&spoken, selection).await {
                Err(Error::Gone { .. }) if attempt < ATTEMPTS => attempt += 1,
                Err(error) if again && self.speak_otherwise(resource, &spoken, &error) => again = false,
                result => return result,
            }
        }
    }

    /// The server's present resource version, and whether it can be asked for these objects.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn version(&self, resource: &Resource, selection: &Selection) -> Result<String, Error> {
        let spoken = self.spoken(resource);
        Ok(self.page(&spoken, selection, 1, None).await?.resource_version)
    }

    async fn pages(&self, resource: &Resource, selection: &Selection) -> Result<(Vec<Object>, String), Error> {
        let mut all = self.page(resource, selection, PAGE, None).await?;
        for _ in 1..PAGES {
            let Some(more) = all.more.take() else { return Ok((all.objects, all.resource_version)) };
            let page = self.page(resource, selection, PAGE, Some(more)).await?;
            if page.resource_version != all.resource_version {
                let (first, later) = (all.resource_version, page.resource_version);
                return Err(failing(
                    &self.listing(resource, selection),
                    format!("a list of {first} went on as {later}"),
                ));
            }
            all.objects.extend(page.objects);
            all.more = page.more;
        }
        Err(failing(&self.listing(resource, selection), format!("a list of more than {PAGES} pages")))
    }

    async fn page(
        &self,
        resource: &Resource,
        selection: &Selection,
        limit: u32,
        more: Option<String>,
    ) -> Result<Page, Error> {
        let params = ListParams {
            label_selector: selection.labels.clone(),
            field_selector: selection.fields.clone(),
            limit: Some(limit),
            continue_token: more,
            ..ListParams::default()
        };
        let call = self.listing(resource, selection);
        let answer = self.ask(&call, request(resource, selection.namespace.as_deref()).list(&params)).await?;
        page(resource, answer).ok_or_else(|| failing(&call, "its answer is no list".into()))
    }

    fn listing(&self, resource: &Resource, selection: &Selection) -> Call {
        self.call("list", resource, selection.namespace.as_deref(), "")
    }
}

fn failing(call: &Call, reason: String) -> Error {
    Error::Failing { call: Box::new(call.clone()), reason }
}

fn page(resource: &Resource, mut answer: Value) -> Option<Page> {
    let metadata = answer.get("metadata")?;
    let text = |key| metadata.get(key).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
    let (resource_version, more) = (text("resourceVersion")?, text("continue"));
    // A server that has none may say so with `null`.
    let items = match answer.get_mut("items")?.take() {
        Value::Array(items) => items,
        Value::Null => Vec::new(),
        _ => return None,
    };
    let objects = items.into_iter().map(|item| Object::read(resource, item)).collect::<Option<_>>()?;
    Some(Page { objects, resource_version, more })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::resource::PODS;
    use super::*;

    #[test]
    fn pages_are_read_whole_or_not_at_all() {
        let answer =
            json!({"metadata": {"resourceVersion": "9", "continue": "x"}, "items": [{"metadata": {"name": "p"}}]});
        let read = page(&PODS, answer).unwrap();
        assert_eq!((read.objects.len(), read.resource_version.as_str(), read.more.as_deref()), (1, "9", Some("x")));
        let read = page(&PODS, json!({"metadata": {"resourceVersion": "9", "continue": ""}, "items": null})).unwrap();
        assert_eq!((read.objects.len(), read.more), (0, None));
        for answer in [
            json!({}),
            json!({"metadata": {"resourceVersion": ""}, "items": []}),
            json!({"metadata": {"resourceVersion": "9"}, "items": {}}),
            json!({"metadata": {"resourceVersion": "9"}, "items": [{}]}),
        ] {
            assert!(page(&PODS, answer.clone()).is_none(), "{answer}");
        }
    }
}
