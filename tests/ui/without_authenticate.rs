//! A call that nobody signed has no time to judge.

#![allow(unused_imports)]

include!("parts/world.rs");

async fn steps(world: World, call: Call<Full<Bytes>>) -> Result<Answer, Refusal> {
    let routed = route(&world.table, call)?;
    let freshened = freshen(world.now, routed);
    let valid = validate(freshened)?;
    let bound = bind(&world.signatures, &world.arrivals, world.monotonic, world.now, valid)?;
    let claimable = throttle(&world.room, bound)?;
    idempotency(&world.gate, claimable).await
}

fn main() {
    let _ = steps;
}
