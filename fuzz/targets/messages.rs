//! Messages: on the daemon's socket, and from a container runtime to the plugin.

use std::io::Cursor;

use serde_json::Value;
use tapir_cni::conf::{Configuration, version_or_latest};
use tapir_cni::env::{Args, Command, Environment, Variables};
use tapir_cni::error::CniError;
use tapir_cni::protocol::{Reply, Request, encode, read_message};
use tapir_cni::result::{AddResult, Version};

/// What a client writes to the daemon's socket, and what a daemon answers: messages, one behind the other.
pub fn socket(data: &[u8]) {
    let mut stream = Cursor::new(data);
    while let Ok(request) = read_message::<Request>(&mut stream) {
        let again = encode(&request).expect("what fitted once fits again");
        let reread = read_message::<Request>(&mut Cursor::new(again)).expect("what we write we read");
        assert_eq!(request, reread);
    }
    let mut stream = Cursor::new(data);
    while let Ok(reply) = read_message::<Reply>(&mut stream) {
        let again = encode(&reply).expect("what fitted once fits again");
        read_message::<Reply>(&mut Cursor::new(again)).expect("what we write we read");
    }
}

/// One call of the plugin: lines of `NAME=VALUE`, an empty line, and the configuration.
pub fn cni(data: &[u8]) {
    let end = data.windows(2).position(|pair| pair == b"\n\n").unwrap_or(data.len());
    let stdin = data.get(end + 2..).unwrap_or_default();
    let Ok(text) = str::from_utf8(&data[..end]) else { return };
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    let variables: Variables = pairs.map(|(name, value)| (name.into(), value.into())).collect();
    let version = version_or_latest(stdin);
    let environment = match Environment::parse(&variables) {
        Ok(environment) => environment,
        Err(error) => return check_refusal(&error.into(), version),
    };
    check_environment(&environment);
    if environment.command == Command::Version {
        return check_versions(&variables, stdin);
    }
    let configuration = match Configuration::parse(stdin) {
        Ok(configuration) => configuration,
        Err(error) => return check_refusal(&error.into(), version),
    };
    assert_eq!(configuration.version, version);
    match Args::parse(&environment.args) {
        Ok(args) => check_wishes(&configuration, &args),
        Err(error) => check_refusal(&error.into(), version),
    }
    match configuration.previous_result() {
        Ok(Some(result)) => Version::ALL.iter().for_each(|version| check_result(&result, *version)),
        Ok(None) => {}
        Err(error) => check_refusal(&error.into(), version),
    }
    if let Err(error) = configuration.valid_attachments() {
        check_refusal(&error.into(), version);
    }
}

/// What becomes part of file and interface names can't lead elsewhere.
fn check_environment(environment: &Environment) {
    if !matches!(environment.command, Command::Add | Command::Del | Command::Check) {
        return;
    }
    let id = &environment.id;
    assert!(!id.container_id.contains(['/', '\0']) && (1..=200).contains(&id.container_id.len()), "{id:?}");
    assert!(!id.interface.contains(['/', '\0', '%']) && (1..=15).contains(&id.interface.len()), "{id:?}");
    assert!(environment.command == Command::Del || environment.netns.is_absolute(), "{environment:?}");
}

fn check_wishes(configuration: &Configuration, args: &Args) {
    match configuration.wishes(args) {
        Ok(wishes) => assert!(wishes.mac.is_none_or(|mac| mac.0[0] & 1 == 0), "a group MAC: {wishes:?}"),
        Err(error) => check_refusal(&error.into(), configuration.version),
    }
}

/// A result can be written in every version, and read again.
fn check_result(result: &AddResult, version: Version) {
    let written = result.clone().in_version(version);
    let text = serde_json::to_string(&written).expect("a result is JSON");
    let read: AddResult = serde_json::from_str(&text).expect("what we write we read");
    assert_eq!(read, written);
}

/// A refusal is the error object that the specification asks for.
fn check_refusal(error: &CniError, version: Version) {
    let object: Value = serde_json::from_str(&error.to_json(version)).expect("an error object is JSON");
    assert_eq!(object["cniVersion"], version.as_str());
    assert_eq!(object["code"], error.code);
    assert!(object["msg"].as_str().is_some_and(|message| !message.is_empty()), "{object}");
}

fn check_versions(variables: &Variables, stdin: &[u8]) {
    let mut stdout = Vec::new();
    let status = tapir_cni::run(variables, &mut Cursor::new(stdin), &mut stdout);
    let answer: Value = serde_json::from_slice(&stdout).expect("an answer is JSON");
    assert_eq!((status, answer["supportedVersions"].is_array()), (0, true), "{answer}");
}
