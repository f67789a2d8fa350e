//! Files with Kubernetes objects.

use std::path::Path;
use std::sync::Arc;

use tapir::control::service::{Services, Settings};
use tapir::source::parse;

/// A file of services: what is taken compiles, changes nothing when it is read again, and goes without a trace.
pub fn services(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let path = Path::new("f.yaml");
    let objects = match parse(text, path) {
        Ok(objects) => objects,
        Err(error) => return assert!(error.to_string().starts_with("f.yaml:"), "{error}"),
    };
    let mut services = Services::default();
    services.configure(Settings { native: true, node: "node-1".into(), ..Settings::default() });
    services.follow_host(&[[127, 0, 0, 1].into(), [172, 31, 0, 1].into()]);
    let empty = services.clone();
    let source: Arc<str> = "f.yaml".into();
    services.replace(&source, objects.clone());
    assert!(services == services.anew(), "it is as if compiled from nothing");
    assert!(!services.replace(&source, objects), "the same again is no news");
    let rows = services.rows(None).count();
    assert_eq!(rows, services.table(1).frontends.len());
    assert!(services.problems().iter().all(|problem| !problem.contains('\n')));
    services.replace(&source, Vec::new());
    assert!(services == empty, "it is gone");
}
