use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as Client;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::json;
use tapir_cni::protocol::AttachmentId;

use super::*;

/// Serves on a socket while `client` runs on another thread; the control loop answers every call with its request.
fn with_server(client: impl FnOnce(&Path) + Send + 'static) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run/t.sock");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        rustix::process::umask(Mode::empty());
        let server = Server::bind(&path).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap()) & 0o022), (0o600, 0), "whatever the umask");
        let (to, mut from) = mpsc::channel(16);
        let client = {
            let path = path.clone();
            tokio::task::spawn_blocking(move || client(&path))
        };
        let mut seen = Vec::new();
        let mut control = async || {
            while let Some(message) = from.recv().await {
                match message {
                    Message::Closed(connection) => seen.push(format!("closed {connection}")),
                    Message::Call(call) => {
                        seen.push(format!("{:?} with {}", call.request, call.queues.len()));
                        let _ = call.reply.send(Reply::Ok(json!({"queues": call.queues.len()})));
                    }
                }
            }
        };
        tokio::select! {
            () = server.serve(to) => {}
            () = control() => {}
            done = client => done.unwrap(),
        }
        drop(server);
        assert!(!path.exists(), "the file goes with the server");
        seen
    })
}

fn ask(client: &mut Client, request: &Request) -> Reply {
    protocol::write_message(client, request).unwrap();
    protocol::read_message(client).unwrap()
}

fn send_with(client: &Client, bytes: &[u8], descriptors: usize) {
    let file = std::fs::File::open("/dev/null").unwrap();
    let descriptors = vec![file.as_fd(); descriptors];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    let sent = rustix::net::sendmsg(client, &[io::IoSlice::new(bytes)], &mut control, SendFlags::empty()).unwrap();
    assert_eq!(sent, bytes.len());
}

fn attach() -> Request {
    Request::Attach(AttachmentId { container_id: "c".into(), interface: "eth0".into() })
}

#[test]
fn calls_are_answered_in_order_and_the_end_is_told() {
    let seen = with_server(|path| {
        let mut client = Client::connect(path).unwrap();
        assert_eq!(ask(&mut client, &Request::Status), Reply::Ok(json!({"queues": 0})));
        let bytes = protocol::encode(&attach()).unwrap();
        send_with(&client, &bytes[..1], 3);
        client.write_all(&bytes[1..9]).unwrap();
        client.write_all(&bytes[9..]).unwrap();
        let reply: Reply = protocol::read_message(&mut client).unwrap();
        assert_eq!(reply, Reply::Ok(json!({"queues": 3})));
        drop(client);
        let mut last = Client::connect(path).unwrap();
        assert_eq!(ask(&mut last, &Request::Ready { delegated: false }), Reply::Ok(json!({"queues": 0})));
    });
    assert_eq!(seen[0], "Status with 0");
    assert!(seen[1].starts_with("Attach") && seen[1].ends_with("with 3"), "{seen:?}");
    assert!(seen.contains(&"closed 1".to_owned()), "{seen:?}");
}

#[test]
fn what_is_no_request_is_refused_and_the_connection_ends() {
    let seen = with_server(|path| {
        let too_long = u32::try_from(MAX_MESSAGE + 1).unwrap().to_be_bytes();
        let status = protocol::encode(&Request::Status).unwrap();
        let requests: Vec<(Vec<u8>, usize, &str)> = vec![
            (vec![0, 0, 0, 2, b'{', b'}'], 0, "not a request: missing field `verb`"),
            (vec![0, 0, 0, 1, 0xff], 0, "not a request: expected value"),
            (too_long.to_vec(), 0, "not a request: it is too long"),
            (status, 1, "not a request: descriptors where none belong"),
            (protocol::encode(&attach()).unwrap(), MAX_QUEUES + 1, "not a request: too many descriptors"),
        ];
        for (bytes, descriptors, message) in requests {
            let mut client = Client::connect(path).unwrap();
            send_with(&client, &bytes, descriptors);
            let Reply::Error(refusal) = protocol::read_message(&mut client).unwrap() else { panic!("accepted") };
            assert_eq!(refusal.code, DECODE_FAILURE);
            assert!(refusal.message.starts_with(message), "{}", refusal.message);
            assert!(matches!(client.read(&mut [0]), Ok(0) | Err(_)), "the connection ends");
        }
    });
    assert!(seen.iter().all(|message| message.starts_with("closed")), "{seen:?}");
}

#[test]
fn only_a_dead_daemons_socket_is_replaced() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _guard = runtime.enter();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.sock");
    let first = Server::bind(&path).unwrap();
    assert!(matches!(Server::bind(&path), Err(ServerError::InUse { .. })));
    drop(first);
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "left by a daemon that was killed");
    drop(Server::bind(&path).unwrap());
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(Server::bind(&path), Err(ServerError::NotASocket { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}
