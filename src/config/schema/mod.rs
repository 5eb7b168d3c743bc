//! What may be written: one type per table, with nothing decided yet.

mod clients;
mod ledger;
mod outbound;
mod routes;
mod server;
mod tracing;
mod upstreams;

pub(crate) use clients::{Client, NotAfter, SecretEntry, SecretSource};
pub(crate) use ledger::{Ledger, Log, StoreWord};
pub(crate) use outbound::{Account, Outbound};
pub(crate) use routes::{
    Condition, Idempotency, MethodWord, Probe, Route, Scalar, Sign, SignedPath, Signs,
};
pub(crate) use server::{Admin, PerFamily, Rate, Server, Signature, Tls};
pub(crate) use tracing::Tracing;
pub(crate) use upstreams::{Breaker, HeaderSource, Health, Upstream, Urls};

use super::problem::Problems;
use super::tree::Node;
use super::value::{At, Field, Named, table};

/// The whole file.
pub(crate) struct Configuration {
    pub(crate) server: Server,
    pub(crate) admin: Admin,
    pub(crate) upstreams: Field<Named<Upstream>>,
    pub(crate) signature: Signature,
    pub(crate) clients: Field<Vec<At<Client>>>,
    pub(crate) routes: Field<Vec<At<Route>>>,
    pub(crate) ledger: Ledger,
    pub(crate) outbound: Field<Outbound>,
    pub(crate) tracing: Field<Tracing>,
    pub(crate) log: Log,
}

impl Configuration {
    /// Reads the tree; what is unknown or of a wrong type is reported.
    pub(crate) fn read(root: Node, problems: &mut Problems) -> Option<Self> {
        table(root, problems, |table| Self {
            server: table.section("server", Server::read),
            admin: table.section("admin", Admin::read),
            upstreams: table.field("upstreams"),
            signature: table.section("signature", Signature::read),
            clients: table.field("clients"),
            routes: table.field("routes"),
            ledger: table.section("ledger", Ledger::read),
            outbound: table.field("outbound"),
            tracing: table.field("tracing"),
            log: table.section("log", Log::read),
        })
    }
}
