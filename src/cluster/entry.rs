//! Entries of the store, and how they are written.

use std::fmt;

/// When an entry was last written, in the store's own count. It only grows, and counts the writes to all entries, so
/// of two it tells which came later.
pub type Revision = u64;

/// What an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The layout's version: one entry, `version`.
    Format,
    /// A pool of addresses, by its prefix.
    Pool,
    /// A node, by its name.
    Node,
    /// A block of addresses and its owner, by its prefix.
    Block,
    /// Which pods of a node have which addresses, as the node last told; by its name.
    Usage,
    /// Which node has an underlay address, by the address.
    Address,
    /// That a node's daemon runs, by the node's name: it goes by itself when the daemon stops renewing it.
    Alive,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 7] =
        [Self::Format, Self::Pool, Self::Node, Self::Block, Self::Usage, Self::Address, Self::Alive];
    /// The kinds that every node follows. The others are read when somebody asks, or by their owners: they change too
    /// often, or matter to too few, to be told to all.
    pub const WATCHED: [Self; 4] = [Self::Format, Self::Pool, Self::Node, Self::Block];

    /// The folder that the entries of this kind are in.
    pub const fn folder(self) -> &'static str {
        match self {
            Self::Format => "cluster/format",
            Self::Pool => "cluster/pools",
            Self::Node => "cluster/nodes",
            Self::Block => "cluster/blocks",
            Self::Usage => "usage",
            Self::Address => "addresses",
            Self::Alive => "alive",
        }
    }

    /// Whether every node follows this kind.
    pub fn is_watched(self) -> bool {
        Self::WATCHED.contains(&self)
    }
}

/// The name of an entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// What it is about.
    pub kind: Kind,
    /// Which of that kind. Never empty, and without `/`: of a prefix that becomes `-`.
    pub name: String,
}

impl Key {
    /// The key of that kind and name.
    pub fn new(kind: Kind, name: impl fmt::Display) -> Self {
        Self { kind, name: name.to_string().replace('/', "-") }
    }

    /// Reads `FOLDER/NAME`; none when it is no key of this layout.
    pub fn parse(path: &str) -> Option<Self> {
        let (folder, name) = path.rsplit_once('/')?;
        let kind = Kind::ALL.into_iter().find(|kind| kind.folder() == folder)?;
        (!name.is_empty()).then(|| Self { kind, name: name.to_owned() })
    }
}

/// `FOLDER/NAME`, below the store's prefix.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.folder(), self.name)
    }
}

/// An entry as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub key: Key,
    /// JSON.
    pub value: String,
    /// When it was last written.
    pub revision: Revision,
}

/// What happened to an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was made, or written again.
    Put(Entry),
    /// It was removed.
    Deleted {
        /// Which.
        key: Key,
        /// When.
        revision: Revision,
    },
}

/// What the writer believes of the entry as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// There is none.
    Absent,
    /// It was last written at this revision.
    Revision(Revision),
}

/// One write. It takes effect only if what it expects is true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Which entry.
    pub key: Key,
    /// What it becomes, JSON; none: it is removed.
    pub value: Option<String>,
    /// What it has to be like before.
    pub expect: Expect,
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is done, at this revision.
    Done(Revision),
    /// It is not done: the entry is like this, or there is none.
    Conflict(Option<Entry>),
    /// Nobody knows: the store did not answer. It may be done, or may yet be.
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_paths() {
        for (kind, name, path) in [
            (Kind::Format, "version", "cluster/format/version"),
            (Kind::Block, "10.244.1.0/26", "cluster/blocks/10.244.1.0-26"),
            (Kind::Pool, "fd00:10::/48", "cluster/pools/fd00:10::-48"),
            (Kind::Alive, "node-1", "alive/node-1"),
        ] {
            let key = Key::new(kind, name);
            assert_eq!((key.to_string().as_str(), Key::parse(path)), (path, Some(key)));
        }
        for path in ["", "alive", "alive/", "cluster/alive/n", "cluster/nodes/a/b", "nodes/n"] {
            assert_eq!(Key::parse(path), None, "{path}");
        }
    }
}
