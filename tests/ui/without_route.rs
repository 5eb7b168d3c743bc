//! A call whose route was not found can't be authenticated.

#![allow(unused_imports)]

include!("parts/world.rs");

async fn steps(world: World, call: Call<Full<Bytes>>) -> Result<Answer, Refusal> {
    let authentic = authenticate(&world.clients, &world.arrivals, &world.metrics, call).await?;
    let freshened = freshen(world.now, authentic);
    let valid = validate(freshened)?;
    let bound = bind(&world.signatures, &world.arrivals, world.monotonic, world.now, valid)?;
    let claimable = throttle(&world.room, bound)?;
    idempotency(&world.gate, claimable).await
}

fn main() {
    let _ = steps;
}
