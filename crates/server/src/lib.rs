//! The face of Atelier: settings, the HTTP API and the command line. It translates and decides nothing that a test of the
//! engine could not see; everything goes through [`atelier_engine::node::Node`].

pub mod cli;
pub mod config;
pub mod http;
mod log;
mod serve;
