//! Lists: whole or in pages, all pages of one revision.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::failure::Failure;
use crate::request::{Query, Scope, number, rendered};
use crate::store::{Key, Store};

/// Where the next page begins: behind `after`, at `revision`. Opaque to clients, so its form is nobody's business.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Token {
    revision: u64,
    after: Key,
}

impl Token {
    fn encoded(&self) -> String {
        let bytes = serde_json::to_vec(self).unwrap_or_default();
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn decoded(text: &str) -> Option<Self> {
        let digits = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let bytes: Vec<u8> = text.as_bytes().chunks(2).map(digits).collect::<Option<_>>()?;
        serde_json::from_slice(&bytes).ok()
    }
}

/// The list, or the page of it, that `query` asks for.
pub(crate) fn list(store: &Store, scope: &Scope, query: &Query) -> Result<Value, Failure> {
    let token = match query.get("continue").map(String::as_str) {
        None | Some("") => None,
        Some(text) => Some(Token::decoded(text).ok_or_else(|| Failure::bad_request("continue key is not valid"))?),
    };
    let wanted = number(query, "resourceVersion")?.unwrap_or(0);
    if wanted > store.revision() {
        let message = format!("Too large resource version: {wanted}, current: {}", store.revision());
        return Err(Failure::new(504, "Timeout", message));
    }
    let exact = query.get("resourceVersionMatch").is_some_and(|how| how == "Exact").then_some(wanted);
    let revision = token.as_ref().map(|token| token.revision).or(exact).unwrap_or(store.revision());
    let id = scope.resource.id();
    let matching = |(key, object): &(&Key, &Arc<Value>)| {
        token.as_ref().is_none_or(|token| **key > token.after) && scope.holds(key, object)
    };
    let owned = |(key, object): (&Key, &Arc<Value>)| (key.clone(), object.clone());
    let found: Vec<(Key, Arc<Value>)> = if revision == store.revision() {
        store.all(&id).filter(matching).map(owned).collect()
    } else {
        store.all_at(&id, revision)?.iter().filter(matching).map(owned).collect()
    };
    let limit = number(query, "limit")?.filter(|limit| *limit != 0).map_or(usize::MAX, |limit| limit as usize);
    Ok(page(scope, &found, limit, revision))
}

fn page(scope: &Scope, found: &[(Key, Arc<Value>)], limit: usize, revision: u64) -> Value {
    let resource = &scope.resource;
    let item = |(_, object): &(Key, Arc<Value>)| {
        let mut item = rendered(resource, object);
        // Items of the built-in resources come without them: their list says what they are.
        if let (false, Value::Object(fields)) = (resource.custom, &mut item) {
            fields.remove("kind");
            fields.remove("apiVersion");
        }
        item
    };
    let shown = &found[..limit.min(found.len())];
    let mut metadata = json!({ "resourceVersion": revision.to_string() });
    if let (Some((last, _)), true) = (shown.last(), shown.len() < found.len()) {
        metadata["continue"] = json!(Token { revision, after: last.clone() }.encoded());
        if scope.selector.is_empty() {
            metadata["remainingItemCount"] = json!(found.len() - shown.len());
        }
    }
    json!({
        "kind": format!("{}List", resource.kind), "apiVersion": resource.api_version(), "metadata": metadata,
        "items": shown.iter().map(item).collect::<Vec<_>>(),
    })
}
