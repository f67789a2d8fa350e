//! `scripts/image`: the same programs make the same image, container engines take it, and what is in it runs without a
//! library.

#![allow(clippy::print_stdout, reason = "a test says what it skips")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const PROGRAMS: [&str; 3] = ["tapird", "tapirctl", "tapir-cni"];

/// A static program that stands in for each: the real ones take a release build of their own.
fn programs(folder: &Path) -> PathBuf {
    let (source, bin) = (folder.join("main.rs"), folder.join("bin"));
    fs::create_dir(&bin).expect("a folder");
    fs::write(&source, "fn main() { println!(\"{:?}\", std::env::args().next()) }").expect("written");
    for name in PROGRAMS {
        let mut rustc = Command::new("rustc");
        rustc.args([
            "--edition",
            "2024",
            "-C",
            "target-feature=+crt-static",
            "-C",
            "strip=symbols",
            "--crate-name",
            "main",
        ]);
        succeeds(rustc.arg("-o").arg(bin.join(name)).arg(&source));
    }
    bin
}

fn image(bin: &Path, output: &Path) -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/image"));
    command.arg("--bin-dir").arg(bin).arg("--output").arg(output).env_remove("SOURCE_DATE_EPOCH");
    command
}

#[track_caller]
fn succeeds(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("readable")).expect("JSON")
}

/// The blob that a descriptor is of; it is what the descriptor says.
#[track_caller]
fn blob(layout: &Path, descriptor: &Value) -> PathBuf {
    let digest = descriptor["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:")).expect("a digest");
    let path = layout.join("blobs/sha256").join(digest);
    assert_eq!(fs::metadata(&path).expect("it is there").len(), descriptor["size"]);
    let sum = succeeds(Command::new("sha256sum").arg(&path)).stdout;
    assert!(sum.starts_with(digest.as_bytes()), "{descriptor}");
    path
}

#[test]
fn the_same_programs_make_the_same_image_and_run_in_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let bin = programs(folder.path());
    let (first, second) = (folder.path().join("first.tar"), folder.path().join("second.tar"));
    succeeds(&mut image(&bin, &first));
    // As another person has them: other times, other modes, another folder.
    let elsewhere = folder.path().join("elsewhere");
    fs::create_dir(&elsewhere).expect("a folder");
    for name in PROGRAMS {
        fs::copy(bin.join(name), elsewhere.join(name)).expect("copied");
        fs::set_permissions(elsewhere.join(name), fs::Permissions::from_mode(0o700)).expect("set");
    }
    succeeds(&mut image(&elsewhere, &second));
    assert!(fs::read(&first).expect("readable") == fs::read(&second).expect("readable"), "they differ");

    let layout = folder.path().join("layout");
    fs::create_dir(&layout).expect("a folder");
    succeeds(Command::new("tar").arg("-xf").arg(&first).arg("-C").arg(&layout));
    assert_eq!(json(&layout.join("oci-layout"))["imageLayoutVersion"], "1.0.0");
    let described = json(&layout.join("index.json"))["manifests"][0].clone();
    let tag = format!("localhost/tapir:{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(described["annotations"]["io.containerd.image.name"], tag);
    let manifest = json(&blob(&layout, &described));
    let config = json(&blob(&layout, &manifest["config"]));
    let layer = blob(&layout, &manifest["layers"][0]);
    let plain = folder.path().join("layer.tar");
    fs::write(&plain, succeeds(Command::new("gzip").arg("-dc").arg(layer)).stdout).expect("written");
    let sum = String::from_utf8(succeeds(Command::new("sha256sum").arg(&plain)).stdout).expect("text");
    let expected = format!("sha256:{}", sum.split(' ').next().expect("a sum"));
    assert_eq!(config["rootfs"]["diff_ids"][0], expected);

    let root = folder.path().join("root");
    fs::create_dir(&root).expect("a folder");
    succeeds(Command::new("tar").arg("-xf").arg(&plain).arg("-C").arg(&root));
    assert_eq!(fs::read_link(root.join("var/run")).expect("a link"), Path::new("../run"));
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root to run what is in the image");
        return;
    }
    for name in PROGRAMS {
        let path = format!("/usr/local/bin/{name}");
        let said = succeeds(Command::new("chroot").arg(&root).arg(&path)).stdout;
        assert_eq!(String::from_utf8_lossy(&said), format!("Some({path:?})\n"));
    }
}

#[test]
fn a_program_that_would_not_start_in_it_is_refused_and_nothing_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let (bin, output) = (programs(folder.path()), folder.path().join("image.tar"));
    let refused = |why: &str| {
        let said = image(&bin, &output).output().expect("it runs");
        assert_eq!(said.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&said.stderr).contains(why), "{said:?}");
        assert!(!output.exists());
    };
    fs::copy(env!("CARGO_BIN_EXE_tapirctl"), bin.join("tapirctl")).expect("copied");
    refused("tapirctl is not static: build it with");
    fs::write(bin.join("tapirctl"), "#!/bin/sh\n").expect("written");
    refused("is no 64-bit little-endian ELF file");
    fs::remove_file(bin.join("tapirctl")).expect("removed");
    refused("No such file");
}

/// A containerd of this test's own, without the parts that a kubelet wants.
struct Containerd {
    folder: tempfile::TempDir,
    child: Child,
}

impl Containerd {
    fn start() -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n\
             disabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.internal.v1.opt']\n\
             [grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
            path("root"),
            path("state"),
            path("socket"),
            path("ttrpc"),
        );
        fs::write(path("config.toml"), config).expect("written");
        let log = fs::File::create(path("log")).expect("made");
        let mut command = Command::new("containerd");
        command.arg("--config").arg(path("config.toml")).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().ok()?;
        let daemon = Self { folder, child };
        let start = Instant::now();
        while !daemon.ctr(&["version"]).output().is_ok_and(|output| output.status.success()) {
            let log = fs::read_to_string(daemon.folder.path().join("log")).unwrap_or_default();
            assert!(start.elapsed() < Duration::from_secs(60), "containerd does not answer: {log}");
            std::thread::sleep(Duration::from_millis(100));
        }
        Some(daemon)
    }

    fn ctr(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.folder.path().join("socket")).args(arguments);
        command
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn containerd_takes_it() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root for containerd");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("image.tar");
    succeeds(image(&programs(folder.path()), &output).args(["--tag", "localhost/tapir:test"]));
    let Some(containerd) = Containerd::start() else {
        println!("skipped: containerd is not installed");
        return;
    };
    let output = output.to_str().expect("a readable path");
    succeeds(&mut containerd.ctr(&["image", "import", "--snapshotter", "native", output]));
    let listed = succeeds(&mut containerd.ctr(&["image", "check", "--quiet", "--snapshotter", "native"])).stdout;
    assert_eq!(String::from_utf8_lossy(&listed), "localhost/tapir:test\n");
}
