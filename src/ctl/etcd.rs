//! The etcd that a config names, for who has no daemon to ask.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::CtlError;
use crate::store::Etcd;
use crate::store::etcd::Settings;

/// What is read of a config: the rest may be a node's, and that of another node.
#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    store: Table,
}

/// `[store]`.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Table {
    kind: String,
    endpoints: Vec<String>,
    prefix: Option<String>,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    username: Option<String>,
    password_file: Option<PathBuf>,
    #[serde(rename = "kubeconfig")]
    _kubeconfig: String,
}

/// The etcd that the config at `path` names. Nothing is connected yet.
///
/// # Errors
/// [`CtlError`]: the config can't be read, or names no etcd.
pub(super) fn open(path: &Path) -> Result<Etcd, CtlError> {
    let text = fs::read_to_string(path).map_err(|source| CtlError::File { path: path.into(), source })?;
    let wrong = |problem: String| CtlError::Config { path: path.into(), problem };
    let named: Named = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let settings = settings(named.store).map_err(wrong)?;
    Etcd::new(settings).map_err(|error| wrong(error.to_string()))
}

fn settings(table: Table) -> Result<Settings, String> {
    match table.kind.as_str() {
        "etcd" => {}
        "" | "embedded" => {
            return Err("store.kind is embedded: such a store is made from tapird.toml, and tapirctl store export \
                        asks the running tapird for it"
                .into());
        }
        other => return Err(format!("store.kind is {other}; this works with etcd")),
    }
    let identity = match (table.cert, table.key) {
        (None, Some(_)) | (Some(_), None) => return Err("store.cert and store.key go together".into()),
        (cert, key) => cert.zip(key),
    };
    let user = match (table.username, table.password_file) {
        (None, Some(_)) | (Some(_), None) => return Err("store.username and store.password_file go together".into()),
        (name, file) => name.zip(file),
    };
    let usual = Settings::default();
    let prefix = table.prefix.map(|prefix| prefix.trim_end_matches('/').to_owned());
    Ok(Settings {
        endpoints: table.endpoints,
        prefix: prefix.unwrap_or(usual.prefix),
        ca: table.ca,
        identity,
        user,
        timeout: usual.timeout,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings, String> {
        settings(toml::from_str::<Named>(text).map_err(|error| error.to_string())?.store)
    }

    #[test]
    fn what_a_config_names_is_opened() {
        let full = "[node]\nname = \"a\"\n[store]\nkind = \"etcd\"\nendpoints = [\"https://e:2379\"]\nprefix = \"/p/\"\n\
                    ca = \"/ca\"\ncert = \"/c\"\nkey = \"/k\"\nusername = \"u\"\npassword_file = \"/pw\"\n";
        let expected = Settings {
            endpoints: vec!["https://e:2379".into()],
            prefix: "/p".into(),
            ca: Some("/ca".into()),
            identity: Some(("/c".into(), "/k".into())),
            user: Some(("u".into(), "/pw".into())),
            ..Settings::default()
        };
        assert_eq!(read(full), Ok(expected));
        assert_eq!(read("[store]\nkind = \"etcd\"\n").map(|settings| settings.prefix), Ok("/tapir/v1".into()));
        for (text, says) in [
            ("", "embedded"),
            ("[store]\nkind = \"kubernetes\"\n", "works with etcd"),
            ("[store]\nkind = \"etcd\"\ncert = \"/c\"\n", "store.key"),
            ("[store]\nkind = \"etcd\"\nusername = \"u\"\n", "store.password_file"),
            ("[store]\nkind = \"etcd\"\nendpoint = \"x\"\n", "unknown field"),
        ] {
            let problem = read(text).expect_err(text);
            assert!(problem.contains(says), "{text}: {problem}");
        }
    }
}
