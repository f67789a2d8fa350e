//! From YAML, which JSON is a part of, to objects.
//!
//! A file has documents, and a document an object or a list of objects. Where it is not plain to see what kind is in one, it
//! is read twice: for that, and as what it then is. Errors have line and key that way, which they would not have of a value
//! that was read first.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Options;

use super::{Place, SourceError};
use crate::control::service::object::{EndpointSlice, Invalid, Object, Service};

/// The most objects of one file.
const MAX_OBJECTS: usize = 200_000;
/// The most documents of one file.
const MAX_DOCUMENTS: usize = MAX_OBJECTS;
/// The most nodes (maps, lists, scalars) of one document.
const MAX_NODES: usize = 20_000_000;

/// What a document or an item of a list is.
#[derive(Debug)]
enum Shape {
    Service,
    Slice,
    List(Vec<Shape>),
    Other,
}

/// What tells what it is.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Header {
    api_version: Option<String>,
    kind: Option<String>,
    items: Option<Vec<Header>>,
}

impl Header {
    /// `of`: the kind of the list that it is in, of which an item needn't say its own.
    fn shape(self, of: Option<&str>) -> Shape {
        let kind = self.kind.as_deref().or(of).unwrap_or_default();
        let version = self.api_version.as_deref();
        match kind {
            "Service" if version.is_none_or(|version| version == "v1") => Shape::Service,
            "EndpointSlice" if version.is_none_or(|version| version == "discovery.k8s.io/v1") => Shape::Slice,
            "List" | "ServiceList" | "EndpointSliceList" => {
                let of = kind.strip_suffix("List").filter(|of| !of.is_empty());
                Shape::List(self.items.unwrap_or_default().into_iter().map(|item| item.shape(of)).collect())
            }
            _ => {
                tracing::debug!(kind, version, "an object is of no kind that services are made of; ignored");
                Shape::Other
            }
        }
    }
}

/// Takes what is of a shape.
struct Taken<'a> {
    shape: &'a Shape,
    objects: &'a RefCell<Vec<Object>>,
    invalid: &'a RefCell<Option<Invalid>>,
}

impl<'a> Taken<'a> {
    const fn of(&self, shape: &'a Shape) -> Self {
        Self { shape, ..*self }
    }

    fn take<E: serde::de::Error>(&self, object: Object, checked: Result<(), Invalid>) -> Result<(), E> {
        if let Err(invalid) = checked {
            let message = invalid.message.clone();
            self.invalid.replace(Some(invalid));
            return Err(E::custom(message));
        }
        let mut objects = self.objects.borrow_mut();
        objects.push(object);
        if objects.len() > MAX_OBJECTS {
            return Err(E::custom(format!("there are more than {MAX_OBJECTS} objects")));
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Taken<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.shape {
            Shape::Service => {
                let service = Service::deserialize(deserializer)?;
                let checked = service.check();
                self.take(Object::Service(Arc::new(service)), checked)
            }
            Shape::Slice => {
                let slice = EndpointSlice::deserialize(deserializer)?;
                let checked = slice.check();
                self.take(Object::Slice(Arc::new(slice)), checked)
            }
            Shape::List(_) => deserializer.deserialize_map(self),
            Shape::Other => IgnoredAny::deserialize(deserializer).map(drop),
        }
    }
}

impl<'de> Visitor<'de> for Taken<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            if key == "items" {
                map.next_value_seed(Items(self.of(self.shape)))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// The items of a list.
struct Items<'a>(Taken<'a>);

impl<'de> DeserializeSeed<'de> for Items<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Shape::List(shapes) = self.0.shape else { return Err(A::Error::custom("no list")) };
        for shape in shapes {
            list.next_element_seed(self.0.of(shape))?;
        }
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

/// The objects of a file: all of them, or none. Kinds that mean nothing here are left out.
///
/// # Errors
/// The first thing that is wrong; `path` is named in it, and not read.
pub fn parse(text: &str, path: &Path) -> Result<Vec<Object>, SourceError> {
    let at =
        |line, key: String, message: String| SourceError { place: Place { path: path.into(), line, key }, message };
    let objects = RefCell::new(Vec::new());
    for (number, (first, document)) in documents(text).enumerate() {
        if number >= MAX_DOCUMENTS {
            return Err(at(Some(first), String::new(), format!("there are more than {MAX_DOCUMENTS} documents")));
        }
        read(document, &objects).map_err(|(line, key, message)| {
            // JSON that is no object has no line any more, but a key.
            at((line > 0).then(|| line + first - 1), key, message)
        })?;
    }
    let objects = objects.into_inner();
    let mut seen = BTreeSet::new();
    if let Some((kind, name)) = objects.iter().map(Object::identity).find(|identity| !seen.insert(identity.clone())) {
        return Err(at(None, String::new(), format!("{kind} {name} is in it twice")));
    }
    Ok(objects)
}

/// What is wrong, with its line in the document, from 1 or 0 where it is not known, and the key.
type Refused = (u64, String, String);

/// Takes the objects of one document.
fn read(document: &str, objects: &RefCell<Vec<Object>>) -> Result<(), Refused> {
    if document.trim_start().starts_with('{')
        && let Some(result) = read_json(document, objects)
    {
        return result;
    }
    let line_of = |error: &serde_saphyr::Error| error.location().map_or(1, |location| location.line());
    let header = match plain_header(document) {
        Some(header) => Ok(Some(header)),
        None => serde_saphyr::from_str_with_options::<Option<Header>>(document, options()),
    };
    let header = header.map_err(|error| (line_of(&error), String::new(), words(&error)))?;
    let Some(header) = header else { return Ok(()) };
    let shape = header.shape(None);
    if matches!(shape, Shape::Other) {
        return Ok(());
    }
    let invalid = RefCell::new(None);
    let taken = Taken { shape: &shape, objects, invalid: &invalid };
    let mut track = serde_path_to_error::Track::new();
    let result = serde_saphyr::with_deserializer_from_str_with_options(document, options(), |deserializer| {
        taken.deserialize(serde_path_to_error::Deserializer::new(deserializer, &mut track))
    });
    result.map_err(|error| refused(line_of(&error), track, invalid.take(), words(&error)))
}

/// The same of JSON, which is read many times faster as what it is; none: it is something else.
fn read_json(document: &str, objects: &RefCell<Vec<Object>>) -> Option<Result<(), Refused>> {
    let header: Header = serde_json::from_str(document).ok()?;
    let shape = header.shape(None);
    let invalid = RefCell::new(None);
    let taken = Taken { shape: &shape, objects, invalid: &invalid };
    let mut track = serde_path_to_error::Track::new();
    let mut deserializer = serde_json::Deserializer::from_str(document);
    let result = taken.deserialize(serde_path_to_error::Deserializer::new(&mut deserializer, &mut track));
    Some(result.map_err(|error| {
        let message = error.to_string();
        let message = message.rsplit_once(" at line ").map_or(&*message, |(message, _)| message);
        refused(error.line() as u64, track, invalid.take(), message.into())
    }))
}

/// `invalid`: what is wrong with an object that can be read.
fn refused(line: u64, track: serde_path_to_error::Track, invalid: Option<Invalid>, message: String) -> Refused {
    let path = track.path().to_string();
    let path = if path == "." { String::new() } else { path };
    let (key, message) = invalid.map_or((String::new(), message), |invalid| (invalid.key, invalid.message));
    let keys: Vec<String> = [path, key].into_iter().filter(|key| !key.is_empty()).collect();
    (line, keys.join("."), message)
}

/// The header of a document that is a map in block style, whose keys begin lines; none: that takes a parser to tell.
fn plain_header(document: &str) -> Option<Header> {
    let value = |key: &str| {
        let text = document.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))?;
        let text = text.trim();
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"./".contains(&byte);
        (!text.is_empty() && text.bytes().all(is_plain)).then(|| text.to_owned())
    };
    let (kind, api_version) = (value("kind")?, value("apiVersion")?);
    (!kind.ends_with("List")).then_some(Header { kind: Some(kind), api_version: Some(api_version), items: None })
}

/// The documents of a file, each with the number of its first line. No content of YAML begins a line with three dashes.
fn documents(text: &str) -> impl Iterator<Item = (u64, &str)> {
    let mut rest = Some((1, text));
    std::iter::from_fn(move || {
        let (first, text) = rest.take()?;
        let mut offset = 0;
        for (number, line) in text.split_inclusive('\n').enumerate() {
            let ends = line
                .strip_prefix("---")
                .is_some_and(|after| after.trim_start().len() < after.len() || after.is_empty());
            if number > 0 && ends {
                rest = Some((first + number as u64, &text[offset..]));
                break;
            }
            offset += line.len();
        }
        Some((first, &text[..offset]))
    })
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_nodes: MAX_NODES,
            max_events: 3 * MAX_NODES,
            max_documents: 2,
            max_total_scalar_bytes: super::folder::MAX_SIZE as usize,
        },
    }
}

/// The parser's message, without the text around it.
fn words(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let text = text.lines().next().unwrap_or_default();
    let text = text.split_once(" at line ").map_or(text, |(text, _)| text);
    text.chars().take(300).collect()
}

#[cfg(test)]
mod tests;
