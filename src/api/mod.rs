//! What operators ask: the answers of `tapirctl`'s verbs, and HTTP.

pub mod types;
