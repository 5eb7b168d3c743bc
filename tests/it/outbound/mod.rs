//! The other direction: what a backend posts leaves signed, and what was accepted gets there.

mod bad_input;
mod confirm;
mod direct;
mod faults;
mod killing;
mod lab;
mod outbox;
mod people;
mod process;
mod replicas;
mod tls;
