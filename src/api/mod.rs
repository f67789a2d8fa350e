//! What operators ask: the answers of `tapirctl`'s verbs, and HTTP.
//!
//! | module | what |
//! |---|---|
//! | [`types`] | the shapes of the answers |
//! | [`drops`] | the last drops, in words |
//! | [`routes`] | routes, in words |
//! | [`liveness`] | which peers answer, and why not |
//! | [`metrics`] | the same for Prometheus |
//! | [`http`] | `/metrics`, `/livez`, `/readyz` |

pub mod drops;
pub mod http;
pub mod liveness;
pub mod metrics;
pub mod routes;
mod time;
pub mod types;
