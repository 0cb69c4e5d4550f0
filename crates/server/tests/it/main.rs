//! The program as its users meet it: a real process, real HTTP, a real store; a scripted worker, or the demo model.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]
#![allow(clippy::disallowed_methods, reason = "tests start programs and look at files")]

mod crash;
mod demo;
mod doctor;
mod errors;
mod generate;
mod house;
mod http;
