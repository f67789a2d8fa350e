//! What operators ask: the answers of `tapirctl`'s verbs, and HTTP.
//!
//! | module | what |
//! |---|---|
//! | [`cluster`] | what the store holds, in words |
//! | [`types`] | the shapes of the answers |
//! | [`flows`] | connections, in words |
//! | [`explain`] | what becomes of a packet, and why |
//! | [`drops`] | the last drops, in words |
//! | [`routes`] | routes, in words |
//! | [`metrics`] | the same for Prometheus |
//! | [`services`] | services, in parts |
//! | [`http`] | `/metrics`, `/livez`, `/readyz` |
//! | [`health_check`] | what load balancers ask about a service |

pub mod cluster;
pub mod drops;
pub mod explain;
pub mod flows;
pub mod health_check;
pub mod http;
pub mod metrics;
pub mod routes;
pub mod services;
mod time;
pub mod types;
