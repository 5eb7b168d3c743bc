//! A step's result can't be made by anybody but the step.

use tikigate::gate::throttle::{Claimable, throttle};

fn forged(from: Claimable) -> Claimable {
    Claimable { ..from }
}

fn main() {
    let _ = forged;
    let _ = throttle;
}
