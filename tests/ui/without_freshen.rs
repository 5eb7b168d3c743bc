//! A call whose time was not judged can't be validated.

#![allow(unused_imports)]

include!("parts/world.rs");

async fn steps(world: World, call: Call<Full<Bytes>>) -> Result<Answer, Refusal> {
    let routed = route(&world.table, call)?;
    let authentic = authenticate(&world.clients, &world.arrivals, &world.metrics, routed).await?;
    let valid = validate(authentic)?;
    let bound = bind(&world.signatures, &world.arrivals, world.monotonic, world.now, valid)?;
    let claimable = throttle(&world.room, bound)?;
    idempotency(&world.gate, claimable).await
}

fn main() {
    let _ = steps;
}
