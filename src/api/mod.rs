//! What operators ask: the answers of `tapirctl`'s verbs, and HTTP.
//!
//! | module | what |
//! |---|---|
//! | [`cluster`] | what the store holds, in words |
//! | [`types`] | the shapes of the answers |
//! | [`drops`] | the last drops, in words |
//! | [`routes`] | routes, in words |
//! | [`metrics`] | the same for Prometheus |
//! | [`http`] | `/metrics`, `/livez`, `/readyz` |

pub mod cluster;
pub mod drops;
pub mod http;
pub mod metrics;
pub mod routes;
mod time;
pub mod types;
