//! What `tapirctl` asks of the whole cluster, and what it changes there: a job reads the store, or a write is answered,
//! and then the client is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnet::IpNet;
use tapir_cni::error::code;
use tapir_cni::protocol::{AttachmentId, Refusal};

use super::attachment::{Outcome, Stage};
use super::listings::Listings;
use super::verbs::refusal;
use super::{Daemon, Done};
use crate::api::cluster as answers;
use crate::api::types::{Check, Entries, Fix};
use crate::cluster::check::{self, Local, Violation};
use crate::cluster::record;
use crate::cluster::{Entry, Key, Kind, Revision, Snapshot, Write, Written};
use crate::cni::ConnectionId;
use crate::host::{clock, pod};
use crate::store::{Listing, StoreError};

/// How often the addresses are checked.
const CHECK: Duration = Duration::from_secs(60);
/// After how long a check that found something is made again: longer than a node takes to tell what it has.
const AGAIN: Duration = Duration::from_secs(2);
/// As many violations are told as problems; `tapirctl ipam check` tells all.
const TOLD: usize = 5;
/// The most questions that wait for the store at once.
const MAX_ASKED: usize = 16;

/// What is under way.
#[derive(Debug, Default)]
pub(super) struct Verbs {
    /// Questions that wait for the store.
    asked: usize,
    /// What was read for those who ask for it in parts.
    pub listings: Listings,
    /// Checks that found something, to be asked again, and when.
    again: Vec<(Question, Duration)>,
    /// Changes that wait to be answered.
    changes: Vec<Changes>,
    /// When the addresses are checked next.
    due: Duration,
    checking: bool,
    /// Blocks that were pending when they were checked last.
    pending: BTreeSet<(IpNet, Revision)>,
    /// What the last one found.
    found: Found,
    /// What two checks in a row found, by code.
    pub standing: BTreeMap<&'static str, u64>,
}

/// Writes of one request.
#[derive(Debug)]
struct Changes {
    waiting: Vec<Write>,
    /// What is answered, when all are.
    answer: Answer,
    done: Done,
}

#[derive(Debug)]
enum Answer {
    Check(Check),
    Deleted(String),
}

/// What needs the store to be read.
#[derive(Debug)]
pub(super) enum Question {
    /// Who is alive, before a node is deleted.
    Delete { name: String, done: Done },
    /// Everything, for `ipam check`; `before`: what was found a moment ago.
    Check { fix: bool, before: Option<Found>, done: Done },
    /// Everything, in parts.
    Entries { limit: u32, connection: ConnectionId, done: Done },
    /// Everything, or nothing but this node: checked now and then.
    Watch { all: bool },
}

/// What a check has found: code and subject.
type Found = BTreeSet<(&'static str, String)>;

/// What was read for a question.
#[derive(Debug)]
pub(super) struct Facts {
    listing: Result<Listing, StoreError>,
    /// The interfaces with this node's mark, where they were looked for.
    interfaces: Option<BTreeSet<AttachmentId>>,
}

impl Daemon {
    /// Reads what a question needs; [`Outcome::Asked`] follows.
    pub(super) fn ask(&mut self, question: Question) {
        if !self.cluster.verbs.admits(&question) {
            return question.refuse(refusal(code::NOT_AVAILABLE, "too many questions wait for the store", "try again"));
        }
        let kinds: &[Kind] = match question {
            Question::Delete { .. } => &[Kind::Alive],
            Question::Watch { all: false } => &[],
            _ => &Kind::ALL,
        };
        let read = (!kinds.is_empty()).then(|| self.cluster.session.read(kinds));
        let looks = matches!(question, Question::Check { .. } | Question::Watch { .. });
        let instance = looks.then(|| self.store.instance().to_owned());
        self.jobs.spawn(async move {
            let interfaces = match instance {
                Some(instance) => tokio::task::spawn_blocking(move || pod::discover(&instance)).await.ok(),
                None => None,
            };
            let listing = match read {
                Some(read) => match read.await {
                    Ok(listing) => listing,
                    // The session ends with the daemon only.
                    Err(_) => std::future::pending().await,
                },
                None => Ok(Listing::default()),
            };
            let interfaces = interfaces.map(|found| found.into_iter().map(|one| one.id).collect());
            Outcome::Asked { question, facts: Facts { listing, interfaces } }
        });
    }

    /// The store was read.
    pub(super) fn found(&mut self, question: Question, facts: Facts) {
        let Facts { listing, interfaces } = facts;
        self.cluster.verbs.asked = self.cluster.verbs.asked.saturating_sub(1);
        match (question, listing) {
            (Question::Entries { done, .. }, _) if done.is_abandoned() => {}
            (Question::Entries { limit, connection, done }, listing) => {
                let (listing, stale) = match listing {
                    Ok(listing) => (listing, None),
                    Err(error) => (self.remembered(), Some(error.to_string())),
                };
                self.cluster.verbs.listings.keep(connection, listing, stale, clock::now());
                done.answer(self.part(connection, None, limit));
            }
            (Question::Watch { all: true }, Err(_)) => self.cluster.verbs.checking = false,
            (Question::Watch { all }, listing) => {
                self.cluster.verbs.checking = false;
                self.watched_over(all, &listing.unwrap_or_default().entries, interfaces);
            }
            (question, Err(error)) => {
                question.refuse(refusal(code::NOT_AVAILABLE, error.to_string(), "see tapirctl status"));
            }
            (Question::Delete { name, done }, Ok(listing)) => self.delete(name, &listing, done),
            (Question::Check { fix, before, done }, Ok(listing)) => {
                let mut violations = check::check(&listing.entries, &self.local(interfaces));
                let found = violations.iter().map(name).collect();
                match before {
                    None if !violations.is_empty() => {
                        let question = Question::Check { fix, before: Some(found), done };
                        self.cluster.verbs.again.push((question, clock::now() + AGAIN));
                    }
                    before => {
                        violations.retain(|violation| {
                            before.as_ref().is_some_and(|before| before.contains(&name(violation)))
                        });
                        self.answer_check(violations, fix, done);
                    }
                }
            }
        }
    }

    /// What the node remembers of the store, and has told it.
    fn remembered(&self) -> Listing {
        let replica = self.cluster.member.replica();
        let usage = self.usage();
        let mut entries = replica.entries();
        let key = Key::new(Kind::Usage, &self.config.node.name);
        entries.push(Entry { key, value: record::text(&usage), revision: 0 });
        entries.sort_by(|one, other| one.key.cmp(&other.key));
        Listing { entries, revision: replica.revision(), ..Listing::default() }
    }

    /// Answers with what comes after a key, of what was read when the connection asked for the first part.
    pub(super) fn entries(&mut self, connection: ConnectionId, after: Option<String>, limit: u32, done: Done) {
        match after {
            None => self.ask(Question::Entries { limit, connection, done }),
            Some(after) => done.answer(self.part(connection, Some(&after), limit)),
        }
    }

    fn part(&mut self, connection: ConnectionId, after: Option<&str>, limit: u32) -> Result<Entries, Refusal> {
        let key = after.map(|after| Key::parse(after).ok_or(after)).transpose();
        let key = key.map_err(|after| refusal(code::DECODE_FAILURE, format!("{after} is no key of the store"), ""))?;
        let part = self.cluster.verbs.listings.part(connection, key.as_ref(), limit, clock::now());
        let forgotten = "what was read of the store is forgotten";
        part.ok_or_else(|| refusal(code::NOT_AVAILABLE, forgotten, "ask from the beginning, on one connection"))
    }

    /// The loss of what the store held is meant.
    pub(super) fn accept(&mut self) -> usize {
        let held = self.cluster.member.replica().held().len();
        tracing::info!(entries = held, "the loss of what the store held is accepted");
        self.cluster.member.replica_mut().accept();
        self.cluster.stale = true;
        held
    }

    fn delete(&mut self, name: String, listing: &Listing, done: Done) {
        let now = clock::now();
        let mut holdings = self.holdings(now);
        holdings.reachable.extend(self.answers(&name).then(|| name.clone()));
        self.cluster.member.alive(&listing.entries, now);
        match self.cluster.member.delete_node(&name, &holdings, now) {
            Err(reason) => done.refuse(refusal(code::NOT_AVAILABLE, reason, "")),
            Ok(write) => {
                tracing::info!(node = name, "a node is deleted; what it has is freed once it is silent");
                self.change(vec![write], Answer::Deleted(name), done);
            }
        }
    }

    fn answer_check(&mut self, found: Vec<Violation>, fix: bool, done: Done) {
        let answer = answers::violations(&found);
        let mut writes: Vec<Write> = Vec::new();
        for violation in found.into_iter().filter(|_| fix) {
            let Some(write) = violation.fix else { continue };
            if writes.iter().all(|other| other.key != write.key) {
                tracing::info!(key = %write.key, code = violation.code, "ipam check --fix: {}", violation.message);
                writes.push(write);
            }
        }
        self.change(writes, Answer::Check(answer), done);
    }

    /// Writes, and answers when all is written, or not.
    fn change(&mut self, writes: Vec<Write>, answer: Answer, done: Done) {
        if writes.is_empty() {
            return answer.give(done);
        }
        for write in &writes {
            self.cluster.session.write(write.clone());
        }
        self.cluster.verbs.changes.push(Changes { waiting: writes, answer, done });
    }

    /// A write was answered. True if it was of a verb's, and concerns nothing that the member follows or owns.
    pub(super) fn changed(&mut self, write: &Write, result: &Written, error: Option<&StoreError>) -> bool {
        let changes = &mut self.cluster.verbs.changes;
        let Some(index) = changes.iter().position(|changes| changes.waiting.contains(write)) else { return false };
        changes[index].waiting.retain(|waiting| waiting != write);
        let result = match (result, error) {
            (Written::Done(_), _) if write.value.is_some() => "written".to_owned(),
            (Written::Done(_), _) => "removed".to_owned(),
            (Written::Conflict(_), _) => "changed meanwhile".to_owned(),
            (Written::Unknown, Some(error)) => format!("not known: {error}"),
            (Written::Unknown, None) => "not known: the store gave no answer".to_owned(),
        };
        let done = matches!(result.as_str(), "written" | "removed");
        match &mut changes[index].answer {
            Answer::Check(check) => check.fixes.push(Fix { key: write.key.to_string(), result }),
            Answer::Deleted(name) if !done => {
                let message = format!("node {name} was not deleted: {result}");
                let Changes { done, .. } = changes.remove(index);
                done.refuse(refusal(code::NOT_AVAILABLE, message, "try again"));
                return !write.key.kind.is_watched();
            }
            Answer::Deleted(_) => {}
        }
        if changes[index].waiting.is_empty() {
            let Changes { answer, done, .. } = changes.remove(index);
            answer.give(done);
        }
        !write.key.kind.is_watched()
    }

    /// Once a second.
    pub(super) fn tend_verbs(&mut self, now: Duration) {
        let verbs = &mut self.cluster.verbs;
        for (question, _) in verbs.again.extract_if(.., |(_, at)| *at <= now).collect::<Vec<_>>() {
            self.ask(question);
        }
        let verbs = &mut self.cluster.verbs;
        verbs.listings.tend(now);
        verbs.changes.retain(|changes| !changes.done.is_abandoned());
        if self.cluster.member.is_connected() && self.cluster.verbs.is_due(now) {
            let all = self.is_first();
            self.ask(Question::Watch { all });
        }
    }

    /// Whether this node is the one that checks the whole cluster: the first by name of those that answer.
    fn is_first(&self) -> bool {
        let me = &self.config.node.name;
        let nodes = self.cluster.member.replica().nodes();
        let mut before = nodes.iter().take_while(|(name, _)| *name < me);
        !before.any(|(name, known)| !known.record.leaving && self.answers(name))
    }

    /// The addresses were checked by and by. What is there twice in a row is no change that was caught half-way.
    fn watched_over(&mut self, all: bool, entries: &[Entry], interfaces: Option<BTreeSet<AttachmentId>>) {
        let local = self.local(interfaces);
        let violations = if all {
            let violations = check::check(entries, &local);
            self.cluster.verbs.pending = Snapshot::read(entries).pending();
            violations
        } else {
            check::check_own(&self.remembered().entries, &local)
        };
        let verbs = &mut self.cluster.verbs;
        let before = std::mem::replace(&mut verbs.found, violations.iter().map(name).collect());
        let standing: Vec<&Violation> = violations.iter().filter(|one| before.contains(&name(one))).collect();
        verbs.standing = BTreeMap::new();
        standing.iter().for_each(|violation| *verbs.standing.entry(violation.code).or_default() += 1);
        let told = standing.iter().take(TOLD).map(|violation| format!("{}: {}", violation.message, violation.advice));
        let more = standing.len().saturating_sub(TOLD);
        let more = (more > 0).then(|| format!("{more} more are told by tapirctl ipam check"));
        let problems = told.chain(more).collect();
        self.note("ipam", problems);
    }

    /// What this node has, beside the store.
    fn local(&self, interfaces: Option<BTreeSet<AttachmentId>>) -> Local {
        // One that comes or goes has no interface for a moment, or an interface already.
        let settled = |stage: &Stage| matches!(stage, Stage::Attached { .. } | Stage::Detached { .. });
        let unsettled = self.attachments.iter().filter(|(_, attachment)| !settled(&attachment.stage));
        let unsettled = unsettled.map(|(id, _)| id.clone());
        let addresses = |attachment: &super::Attachment| attachment.record.addresses.iter().copied().collect();
        Local {
            node: self.config.node.name.clone(),
            attachments: self.attachments.iter().map(|(id, one)| (id.clone(), addresses(one))).collect(),
            interfaces: interfaces.map(|found| found.into_iter().chain(unsettled).collect()),
            durable: self.cluster.member.durable().clone(),
            pending: self.cluster.verbs.pending.clone(),
        }
    }
}

impl Verbs {
    /// Whether a question may be asked now; then it counts as asked.
    fn admits(&mut self, question: &Question) -> bool {
        if self.asked >= MAX_ASKED {
            return false;
        }
        self.asked += 1;
        self.checking |= matches!(question, Question::Watch { .. });
        true
    }

    /// Whether the addresses are to be checked now; the next time is set then.
    fn is_due(&mut self, now: Duration) -> bool {
        if self.due == Duration::ZERO {
            self.due = now + CHECK;
        }
        let due = now >= self.due && !self.checking;
        if due {
            self.due = now + CHECK;
        }
        due
    }
}

/// Which violation it is, whatever it says.
fn name(violation: &Violation) -> (&'static str, String) {
    (violation.code, violation.subject.clone())
}

impl Question {
    fn refuse(self, refusal: Refusal) {
        match self {
            Self::Delete { done, .. } | Self::Check { done, .. } | Self::Entries { done, .. } => done.refuse(refusal),
            Self::Watch { .. } => {}
        }
    }
}

impl Answer {
    fn give(self, done: Done) {
        match self {
            Self::Check(check) => done.answer(Ok(check)),
            Self::Deleted(name) => done.answer(Ok(serde_json::json!({ "deleted": name }))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_that_was_refused_comes_again() {
        let (mut verbs, watch) = (Verbs::default(), Question::Watch { all: false });
        let mut now = Duration::from_secs(1);
        assert!(!verbs.is_due(now), "not at start");
        verbs.asked = MAX_ASKED;
        for _ in 0..2 {
            now += CHECK;
            assert!(verbs.is_due(now) && !verbs.is_due(now));
            assert!(!verbs.admits(&watch));
        }
        verbs.asked = 0;
        now += CHECK;
        assert!(verbs.is_due(now) && verbs.admits(&watch));
        now += CHECK;
        assert!(!verbs.is_due(now), "one is under way");
    }
}
