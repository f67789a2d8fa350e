//! Probes of what the container runtime calls.

use std::path::Path;

use serde_json::Value;

use super::Item;

/// The plugin's type, which is its file name.
const PLUGIN: &str = "tapir-cni";

/// The plugin types of a CNI configuration, single or list, in order.
pub fn plugin_types(text: &str) -> Result<Vec<String>, serde_json::Error> {
    let conf: Value = serde_json::from_str(text)?;
    let type_of = |plugin: &Value| plugin.get("type").and_then(Value::as_str).map(ToOwned::to_owned);
    Ok(match conf.get("plugins").and_then(Value::as_array) {
        Some(plugins) => plugins.iter().filter_map(type_of).collect(),
        None => type_of(&conf).into_iter().collect(),
    })
}

/// The first configuration in lexical order, which runtimes take, is one of ours.
pub fn configuration(folder: &Path, confs: &[(String, String)]) -> Item {
    const NAME: &str = "cni_conf";
    let Some((first, text)) = confs.first() else {
        return Item::warn(
            NAME,
            format!("no CNI configuration in {}: the node stays NotReady", folder.display()),
            format!("write {} with a plugin of type {PLUGIN}", folder.join("10-tapir.conflist").display()),
        );
    };
    let path = folder.join(first);
    let types = match plugin_types(text) {
        Ok(types) => types,
        Err(error) => {
            let found = format!("{} comes first and is no JSON: {error}", path.display());
            return Item::fail(NAME, found, "correct or remove it");
        }
    };
    if types.iter().any(|name| name == PLUGIN) {
        return Item::ok(NAME, format!("{} comes first, with {}", path.display(), types.join(", ")));
    }
    let is_ours =
        |(_, text): &&(String, String)| plugin_types(text).is_ok_and(|types| types.iter().any(|name| name == PLUGIN));
    match confs.iter().find(is_ours) {
        Some((ours, _)) => Item::fail(
            NAME,
            format!("{} comes before {ours}: runtimes take the first", path.display()),
            format!("move {} away, or rename {ours} so that it sorts before it", path.display()),
        ),
        None => Item::warn(
            NAME,
            format!("{} has no plugin of type {PLUGIN}: runtimes use another network", path.display()),
            format!("write {} and move the others away", folder.join("10-tapir.conflist").display()),
        ),
    }
}

/// The plugin is there and can be run.
pub fn plugin(path: &Path, mode: Option<u32>) -> Item {
    const NAME: &str = "cni_plugin";
    match mode {
        Some(mode) if mode & 0o111 != 0 => Item::ok(NAME, path.display().to_string()),
        Some(_) => {
            Item::fail(NAME, format!("{} is not executable", path.display()), format!("chmod 755 {}", path.display()))
        }
        None => Item::warn(
            NAME,
            format!("no {}", path.display()),
            format!("install -m 755 target/release/{PLUGIN} {}", path.display()),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::check::Outcome::{Fail, Ok as Fine, Warn};

    const OURS: &str = r#"{"cniVersion":"1.1.0","name":"tapir","plugins":[{"type":"tapir-cni"},{"type":"portmap"}]}"#;
    const THEIRS: &str = r#"{"name":"k8s-pod-network","type":"calico"}"#;

    fn judged(confs: &[(&str, &str)]) -> Item {
        let confs: Vec<_> = confs.iter().map(|(name, text)| ((*name).into(), (*text).into())).collect();
        configuration(Path::new("/etc/cni/net.d"), &confs)
    }

    #[test]
    fn the_first_configuration_is_the_one_that_counts() {
        assert_eq!(judged(&[]).result, Warn);
        let item = judged(&[("10-tapir.conflist", OURS), ("20-calico.conf", THEIRS)]);
        assert_eq!((item.result, item.fix.as_str()), (Fine, ""));
        assert!(item.found.ends_with("10-tapir.conflist comes first, with tapir-cni, portmap"), "{item:?}");
        let item = judged(&[("10-calico.conf", THEIRS), ("10-tapir.conflist", OURS)]);
        assert_eq!(item.result, Fail);
        assert!(item.found.contains("10-calico.conf comes before 10-tapir.conflist"), "{item:?}");
        assert_eq!(judged(&[("10-calico.conf", THEIRS)]).result, Warn);
        assert_eq!(judged(&[("05-broken.conf", "{"), ("10-tapir.conflist", OURS)]).result, Fail);
        assert_eq!(judged(&[("10-tapir.conf", r#"{"type":"tapir-cni"}"#)]).result, Fine);
    }

    #[test]
    fn the_plugin_has_to_be_executable() {
        let path = Path::new("/opt/cni/bin/tapir-cni");
        assert_eq!(plugin(path, Some(0o100_755)).result, Fine);
        assert_eq!(plugin(path, Some(0o100_644)).result, Fail);
        assert_eq!(plugin(path, None).result, Warn);
    }
}
