//! The configuration that container runtimes read.

use std::path::Path;

use serde_json::{Value, json};

use super::InstallError;
use crate::ctl::check::plugin_types;

/// What it is called. Runtimes take the first name in order.
pub(super) const NAME: &str = "10-tapir.conflist";
/// The plugin's file name, and its type.
pub(super) const PLUGIN: &str = "tapir-cni";

/// The configuration for a daemon that listens on `socket`.
///
/// containerd before 2.0 knows versions up to 1.0.0 and refuses a higher one; those that know `cniVersions` choose 1.1.0,
/// with STATUS and GC (CNI specification 1.1.0, section 1).
pub(super) fn default(socket: &Path) -> String {
    let conflist = json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "name": "tapir",
        "plugins": [{
            "type": PLUGIN,
            "socket": socket,
            "capabilities": {"portMappings": true, "bandwidth": true, "ips": true, "mac": true, "ipRanges": true},
        }],
    });
    format!("{conflist:#}\n")
}

/// Refuses what no runtime would take, or what would not lead to tapir.
pub(super) fn validate(path: &Path, text: &str) -> Result<(), InstallError> {
    let wrong = |why: String| InstallError::Conflist { path: path.into(), why };
    let conflist: Value = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
    let name = conflist["name"].as_str().unwrap_or_default();
    if name.is_empty() {
        return Err(wrong("it has no name".into()));
    }
    if !conflist["plugins"].is_array() {
        return Err(wrong("it is no list: it has no plugins".into()));
    }
    let types = plugin_types(text).map_err(|error| wrong(error.to_string()))?;
    match types.first() {
        Some(first) if first == PLUGIN => Ok(()),
        first => Err(wrong(format!("its first plugin is {}, not {PLUGIN}", first.map_or("none", String::as_str)))),
    }
}

/// Whether runtimes read a file of this name in the folder of CNI configurations (libcni, `ConfFiles`).
pub(super) fn is_read(name: &str) -> bool {
    [".conf", ".conflist", ".json"].iter().any(|ending| name.ends_with(ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid() {
        let text = default(Path::new("/run/x.sock"));
        validate(Path::new("x"), &text).unwrap();
        let conflist: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(conflist["plugins"][0]["socket"], "/run/x.sock");
    }

    #[test]
    fn what_would_not_lead_to_tapir_is_refused() {
        let why = |text| validate(Path::new("x"), text).unwrap_err().to_string();
        assert!(why("{").contains("x: "), "{}", why("{"));
        assert!(why(r#"{"plugins":[{"type":"tapir-cni"}]}"#).contains("no name"));
        assert!(why(r#"{"name":"n","type":"tapir-cni"}"#).contains("no list"));
        assert!(why(r#"{"name":"n","plugins":[]}"#).contains("first plugin is none"));
        assert!(why(r#"{"name":"n","plugins":[{"type":"bridge"},{"type":"tapir-cni"}]}"#).contains("is bridge"));
    }
}
