//! A signature that was not bound to a route can't be throttled.

#![allow(unused_imports)]

include!("parts/world.rs");

async fn steps(world: World, call: Call<Full<Bytes>>) -> Result<Answer, Refusal> {
    let routed = route(&world.table, call)?;
    let authentic = authenticate(&world.clients, &world.arrivals, &world.metrics, routed).await?;
    let freshened = freshen(world.now, authentic);
    let valid = validate(freshened)?;
    let claimable = throttle(&world.room, valid)?;
    idempotency(&world.gate, claimable).await
}

fn main() {
    let _ = steps;
}
