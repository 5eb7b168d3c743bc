//! All steps in their order compile: what fails beside this file fails for what it leaves out.

#![allow(unused_imports)]

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::Full;
use tikigate::gate::arrivals::Arrivals;
use tikigate::gate::authenticate::{Clients, authenticate};
use tikigate::gate::bind::bind;
use tikigate::gate::call::Call;
use tikigate::gate::freshen::freshen;
use tikigate::gate::idempotency::idempotency;
use tikigate::gate::route::{RouteTable, route};
use tikigate::gate::signatures::Signatures;
use tikigate::gate::throttle::throttle;
use tikigate::gate::validate::validate;
use tikigate::gate::{Answer, Gate, Refusal};
use tikigate::metrics::Worker;

struct World {
    table: RouteTable,
    clients: Clients,
    metrics: Worker,
    signatures: Signatures,
    arrivals: Arrivals,
    gate: std::sync::Arc<Gate>,
    now: SystemTime,
    monotonic: Duration,
}

async fn steps(world: World, call: Call<Full<Bytes>>) -> Result<Answer, Refusal> {
    let routed = route(&world.table, call)?;
    let authentic = authenticate(&world.clients, &world.arrivals, &world.metrics, routed).await?;
    let freshened = freshen(world.now, authentic);
    let valid = validate(freshened)?;
    let bound = bind(&world.signatures, &world.arrivals, world.monotonic, world.now, valid)?;
    let claimable = throttle(bound)?;
    idempotency(&world.gate, claimable).await
}

fn main() {
    let _ = steps;
}
