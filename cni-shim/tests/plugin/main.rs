//! The plugin in real network namespaces, against a daemon that is played by the test on a real socket and gets real
//! descriptors. Tests that need root say `skipped` without it.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod add;
mod binary;
mod call;
mod check;
mod daemon;
mod del;
mod ipam;
mod kernel;
mod mutated;
mod namespace;
mod netlink;
mod responder;
mod status;

/// Whether namespaces and TAPs can be made here; says so if not.
fn privileged() -> bool {
    let privileged = rustix::process::geteuid().is_root() && std::path::Path::new("/dev/net/tun").exists();
    if !privileged {
        println!("skipped: needs root and /dev/net/tun");
    }
    privileged
}
