// What the steps are called with; shared by the cases beside this folder.

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
use tikigate::gate::throttle::{Room, throttle};
use tikigate::gate::validate::validate;
use tikigate::gate::{Answer, Gate, Refusal};
use tikigate::metrics::Worker;

struct World {
    table: RouteTable,
    clients: Clients,
    metrics: Worker,
    signatures: Signatures,
    arrivals: Arrivals,
    room: Room<'static>,
    gate: std::sync::Arc<Gate>,
    now: SystemTime,
    monotonic: Duration,
}
