//! A container image from nothing (OCI image specification 1.0): one layer with busybox, in the archive that `ctr image import`
//! and `podman load` read.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::lab::succeed;

/// Its name. It does nothing until it is told to end, so it serves as the sandbox's as well.
pub const IMAGE: &str = "localhost/tapir-test:1";

/// Writes the archive into `folder`.
#[track_caller]
pub fn write(folder: &Path) -> PathBuf {
    let (root, layout, archive) = (folder.join("image-root"), folder.join("image"), folder.join("image.tar"));
    for name in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in ["sh", "sleep", "ip", "ping", "nc", "echo"] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let layer = folder.join("layer.tar");
    archive_of(&root, &layer);
    let layer = blob(&layout, "application/vnd.oci.image.layer.v1.tar", &fs::read(layer).unwrap());
    let config = json!({
        "architecture": architecture(), "os": "linux",
        "config": {"Cmd": ["/bin/sh", "-c", "trap exit TERM; while :; do sleep 1000 & wait $!; done"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    });
    let config = blob(&layout, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]});
    let mut manifest = blob(&layout, kind, manifest.to_string().as_bytes());
    manifest["annotations"] = json!({"io.containerd.image.name": IMAGE, "org.opencontainers.image.ref.name": IMAGE});
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    fs::write(layout.join("index.json"), json!({"schemaVersion": 2, "manifests": [manifest]}).to_string()).unwrap();
    archive_of(&layout, &archive);
    archive
}

/// The machine's name in Go's words, which images use.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn archive_of(folder: &Path, archive: &Path) {
    succeed(
        Command::new("tar").arg("--owner=0").arg("--group=0").arg("-C").arg(folder).arg("-cf").arg(archive).arg("."),
    );
}

/// Adds content to the layout, and returns its descriptor.
fn blob(layout: &Path, kind: &str, content: &[u8]) -> Value {
    let file = layout.join("blobs/sha256/new");
    fs::write(&file, content).unwrap();
    let sum = succeed(Command::new("sha256sum").arg(&file));
    let sum = sum.split(' ').next().unwrap();
    fs::rename(&file, layout.join("blobs/sha256").join(sum)).unwrap();
    json!({"mediaType": kind, "digest": format!("sha256:{sum}"), "size": content.len()})
}
