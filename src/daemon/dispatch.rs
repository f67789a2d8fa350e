//! Requests and their answers.

use std::path::PathBuf;

use tapir_cni::protocol::{Refusal, Reply, Request};
use tokio::sync::oneshot;

use super::cluster_verbs::Question;
use super::{Daemon, Deferred};
use crate::api::explain;
use crate::cni::{Call, Message};

/// Whom to tell that something is done.
#[derive(Debug)]
pub(super) enum Done {
    /// A client.
    Reply(oneshot::Sender<Reply>),
    /// Nobody: the file that asked for it is removed.
    Entry(PathBuf),
}

impl Daemon {
    /// Takes in what connections say.
    pub(super) fn take(&mut self, message: Message) {
        let call = match message {
            Message::Closed(connection) => return self.abandon(connection),
            Message::Call(call) => *call,
        };
        let Call { connection, request, queues, reply } = call;
        let done = Done::Reply(reply);
        match request {
            Request::Add(add) => self.add(*add, connection, done),
            Request::Attach(id) => self.attach(id, connection, queues, done),
            Request::Del(del) => self.del(&del.id, done),
            Request::Check { id, addresses, mac } => done.answer(self.check(&id, &addresses, &mac)),
            Request::Gc { network, valid } => self.gc(&network, &valid, done),
            Request::Ready { delegated } => done.answer(self.could_add(delegated)),
            Request::Status => done.answer(Ok(self.status())),
            Request::Endpoints => done.answer(Ok(self.endpoints())),
            Request::Routes { prefix, fib: false } => done.answer(Ok(self.with_routes(|routes| routes.known(prefix)))),
            Request::Routes { prefix, fib: true } => {
                done.answer(Ok(self.with_routes(|routes| routes.forwarded(prefix))));
            }
            Request::RouteGet { address } => done.answer(self.route(address)),
            Request::Peers => done.answer(Ok(self.peers())),
            Request::IpamShow => done.answer(Ok(self.ipam())),
            Request::IpamRelease { address } => self.release(address, done),
            Request::IpamCheck { fix } => self.ask(Question::Check { fix, before: None, done }),
            Request::NodeDelete { name } => self.ask(Question::Delete { name, done }),
            Request::StoreEntries { after, limit } => self.entries(connection, after, limit, done),
            Request::StoreAccept => done.answer(Ok(serde_json::json!({ "accepted": self.accept() }))),
            Request::Services { after, limit } => done.answer(self.services_after(after.as_deref(), limit)),
            Request::Flows { after, limit, pod } => done.answer(self.flows_after(after, limit, pod.as_deref())),
            Request::Explain { source, destination, protocol, port, source_port } => {
                let question = explain::Question { source, destination, protocol, port, source_port };
                done.answer(self.explain(&question));
            }
            Request::Drops { after } => done.answer(Ok(self.drops(after))),
        }
    }

    /// Tells `done` once the state is on disk.
    pub(super) fn defer(&mut self, done: Done, answer: impl serde::Serialize) {
        let answer = serde_json::to_value(answer).expect("answers are JSON");
        self.deferred.push(Deferred { done, answer, undo: None });
    }
}

impl Done {
    /// Answers a client, now.
    pub(super) fn answer(self, result: Result<impl serde::Serialize, Refusal>) {
        match result {
            Ok(value) => self.succeed(serde_json::to_value(value).expect("answers are JSON")),
            Err(refusal) => self.refuse(refusal),
        }
    }

    /// It is done, and on disk.
    pub(super) fn succeed(self, value: serde_json::Value) {
        match self {
            // Nobody listens when the connection has ended.
            Self::Reply(to) => drop(to.send(Reply::Ok(value))),
            Self::Entry(path) => {
                if let Err(error) = std::fs::remove_file(&path)
                    && error.kind() != std::io::ErrorKind::NotFound
                {
                    tracing::warn!(%error, path = %path.display(), "can't remove a DEL that was replayed");
                }
            }
        }
    }

    /// It is not done. A file stays, to be read again.
    pub(super) fn refuse(self, refusal: Refusal) {
        if let Self::Reply(to) = self {
            drop(to.send(Reply::Error(refusal)));
        }
    }

    /// Nobody waits for it any more.
    pub(super) fn is_abandoned(&self) -> bool {
        match self {
            Self::Reply(to) => to.is_closed(),
            Self::Entry(_) => false,
        }
    }
}
