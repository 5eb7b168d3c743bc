//! How a gate lives and dies where it is installed: beside a service manager, in a pod's order of
//! starting and ending, over an upgrade; and what of its secrets is left behind.

mod deaths;
mod drain;
mod manager;
mod memory;
mod unit;
mod upgrade;
