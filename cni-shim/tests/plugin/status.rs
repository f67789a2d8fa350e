//! STATUS and GC.

use std::path::Path;

use serde_json::json;
use tapir_cni::protocol::{AttachmentId, Request};

use crate::call::Call;
use crate::daemon::{Daemon, Reaction};

#[test]
fn status_is_the_daemon_s() {
    let daemon = Daemon::good();
    Call::new("STATUS", Path::new(""), &daemon.socket).succeed();
    Call::new("STATUS", Path::new(""), &daemon.socket)
        .key("ipam", json!({"type": "nowhere"}))
        .variable("CNI_PATH", "/nonexistent")
        .fail(50, &["nowhere"]);
    assert_eq!(daemon.requests(), [false, true].map(|delegated| Request::Ready { delegated }));
    for (said, told) in [(50, 50), (51, 51), (11, 50)] {
        let daemon = Daemon::start(move |_| Reaction::Refuse(said, "no underlay"));
        Call::new("STATUS", Path::new(""), &daemon.socket).fail(told, &["no underlay", "advice"]);
    }
}

#[test]
fn without_a_daemon_pods_are_cut_off() {
    let (socket, _folder) = Daemon::down();
    Call::new("STATUS", Path::new(""), &socket).fail(51, &["doesn't listen", "cut off"]);
    let daemon = Daemon::start(|_| Reaction::HangUp);
    Call::new("STATUS", Path::new(""), &daemon.socket).fail(51, &["stopped answering"]);
    let daemon = Daemon::start(|_| Reaction::Garbage);
    Call::new("STATUS", Path::new(""), &daemon.socket).fail(50, &["doesn't understand", "version"]);
}

#[test]
fn gc_tells_what_to_keep() {
    let daemon = Daemon::good();
    let keep = json!([{"containerID": "c1", "ifname": "eth0"}]);
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        Call::new("GC", Path::new(""), &daemon.socket).key(key, keep.clone()).succeed();
        let valid = vec![AttachmentId { container_id: "c1".into(), interface: "eth0".into() }];
        assert_eq!(daemon.requests().last(), Some(&Request::Gc { network: "tapir".into(), valid }));
    }
    Call::new("GC", Path::new(""), &daemon.socket).fail(7, &["cni.dev/valid-attachments"]);
    assert_eq!(daemon.requests().len(), 2);
}

#[test]
fn gc_goes_on_after_an_error_and_tells_them_all() {
    let (socket, folder) = Daemon::down();
    let call = Call::new("GC", Path::new(""), &socket).key("cni.dev/valid-attachments", json!([]));
    call.fail(11, &["doesn't listen"]);
    call.key("ipam", json!({"type": "nowhere"}))
        .variable("CNI_PATH", folder.path().to_str().unwrap())
        .fail(11, &["doesn't listen", "nowhere"]);
}

#[test]
fn older_versions_have_neither() {
    let daemon = Daemon::good();
    for verb in ["STATUS", "GC"] {
        for version in ["0.3.1", "0.4.0", "1.0.0"] {
            Call::new(verb, Path::new(""), &daemon.socket).version(version).fail(1, &[verb, "1.1.0"]);
        }
    }
    assert_eq!(daemon.requests(), []);
}
