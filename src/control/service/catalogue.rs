//! All services and their endpoints, by name, wherever they are from.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::object::{EndpointSlice, Name, Object, Service};

/// What several sources say of one object: the first of them, by name, counts.
type Said<T> = Vec<(Arc<str>, Arc<T>)>;

/// What tells an object from all others.
#[derive(Debug)]
enum Key {
    Service(Arc<Name>),
    /// Of that service, with a name of its own.
    Slice(Arc<Name>, Box<str>),
}

impl Key {
    /// The service that it is about.
    const fn service(&self) -> &Arc<Name> {
        match self {
            Self::Service(name) | Self::Slice(name, _) => name,
        }
    }
}

/// Services and slices. What it holds depends on what each source last said, and not on when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalogue {
    services: BTreeMap<Arc<Name>, Said<Service>>,
    /// By their service, and their own name.
    slices: BTreeMap<Arc<Name>, BTreeMap<Box<str>, Said<EndpointSlice>>>,
    /// What each source says, in order.
    sources: BTreeMap<Arc<str>, Vec<Object>>,
}

impl Catalogue {
    /// All that a source says, in place of what it said before. Comes back with the services that are others now, or have
    /// other endpoints.
    pub fn replace(&mut self, source: &Arc<str>, mut objects: Vec<Object>) -> BTreeSet<Arc<Name>> {
        objects.retain(|object| place(object).is_some());
        objects.sort_by(|left, right| place(left).cmp(&place(right)));
        objects.dedup_by(|later, first| place(later) == place(first));
        let before = self.sources.remove(source).unwrap_or_default();
        let mut touched = BTreeSet::new();
        let mut say = |object: &Object, is_gone: bool| {
            let Some(key) = self.key(object) else { return };
            if self.say(source, &key, (!is_gone).then(|| object.clone())) {
                touched.insert(key.service().clone());
            }
        };
        // Both are in order, and mostly the same: of those that are, nothing is looked up.
        let mut old = before.into_iter().peekable();
        for object in &mut objects {
            while let Some(gone) = old.next_if(|old| place(old) < place(object)) {
                say(&gone, true);
            }
            match old.next_if(|old| place(old) == place(object)) {
                Some(same) if same == *object => *object = same,
                _ => say(object, false),
            }
        }
        old.for_each(|gone| say(&gone, true));
        if !objects.is_empty() {
            self.sources.insert(source.clone(), objects);
        }
        touched
    }

    /// What tells it from all others; none: a slice of no service.
    fn key(&self, object: &Object) -> Option<Key> {
        match object {
            Object::Service(service) => Some(Key::Service(self.shared(service.metadata.full_name()))),
            Object::Slice(slice) => Some(Key::Slice(self.shared(slice.service()?), slice.metadata.name.clone())),
        }
    }

    /// A name that is kept once.
    fn shared(&self, name: Name) -> Arc<Name> {
        let known = self.services.get_key_value(&name).map(|(name, _)| name);
        known.or_else(|| self.slices.get_key_value(&name).map(|(name, _)| name)).cloned().unwrap_or_else(|| name.into())
    }

    /// True if what the source says of the object is news.
    fn say(&mut self, source: &Arc<str>, key: &Key, object: Option<Object>) -> bool {
        match (key, object) {
            (Key::Service(name), object) => {
                let said = self.services.entry(name.clone()).or_default();
                let changed = put(said, source, object.and_then(service));
                if said.is_empty() {
                    self.services.remove(name);
                }
                changed
            }
            (Key::Slice(name, own), object) => {
                let slices = self.slices.entry(name.clone()).or_default();
                let said = slices.entry(own.clone()).or_default();
                let changed = put(said, source, object.and_then(slice));
                if said.is_empty() {
                    slices.remove(own);
                }
                if slices.is_empty() {
                    self.slices.remove(name);
                }
                changed
            }
        }
    }

    /// The names of all services.
    pub fn names(&self) -> impl Iterator<Item = &Arc<Name>> {
        self.services.keys()
    }

    /// The service of that name, and who says so.
    pub fn service(&self, name: &Name) -> Option<(&Arc<str>, &Arc<Service>)> {
        self.services.get(name).and_then(|said| said.first()).map(|(source, service)| (source, service))
    }

    /// The slices of the service of that name.
    pub fn slices(&self, name: &Name) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        let slices = self.slices.get(name).into_iter().flat_map(BTreeMap::values);
        slices.filter_map(|said| said.first()).map(|(_, slice)| slice)
    }

    /// What several sources say something of, in words.
    pub fn doubles(&self) -> impl Iterator<Item = String> {
        let double =
            |what: String, first: &str, second: &str| format!("{what} is in {first} and in {second}; the first counts");
        let services = self.services.iter().filter_map(move |(name, said)| match &said[..] {
            [(first, _), (second, _), ..] => Some(double(format!("Service {name}"), first, second)),
            _ => None,
        });
        let slices = self.slices.iter().flat_map(|(service, slices)| slices.iter().map(move |slice| (service, slice)));
        services.chain(slices.filter_map(move |(service, (name, said))| match &said[..] {
            [(first, _), (second, _), ..] => {
                Some(double(format!("EndpointSlice {}/{name}", service.namespace), first, second))
            }
            _ => None,
        }))
    }
}

/// Where an object stands among others: by its service. None: a slice of no service.
fn place(object: &Object) -> Option<(&str, &str, Option<&str>)> {
    match object {
        Object::Service(service) => Some((service.metadata.namespace(), &service.metadata.name, None)),
        Object::Slice(slice) => {
            let of = slice.metadata.labels.service.as_deref()?;
            Some((slice.metadata.namespace(), of, Some(&slice.metadata.name)))
        }
    }
}

fn service(object: Object) -> Option<Arc<Service>> {
    match object {
        Object::Service(service) => Some(service),
        Object::Slice(_) => None,
    }
}

fn slice(object: Object) -> Option<Arc<EndpointSlice>> {
    match object {
        Object::Slice(slice) => Some(slice),
        Object::Service(_) => None,
    }
}

/// Puts in, or takes out, what a source says. True if that is news.
fn put<T: PartialEq>(said: &mut Said<T>, source: &Arc<str>, value: Option<Arc<T>>) -> bool {
    match (said.binary_search_by(|(other, _)| other.cmp(source)), value) {
        (Ok(index), Some(value)) => {
            let changed = !Arc::ptr_eq(&said[index].1, &value) && said[index].1 != value;
            if changed {
                said[index].1 = value;
            }
            changed
        }
        (Ok(index), None) => {
            said.remove(index);
            true
        }
        (Err(index), Some(value)) => {
            said.insert(index, (source.clone(), value));
            true
        }
        (Err(_), None) => false,
    }
}
