//! Whether a node runs here, and if not, whether one could listen.

use super::finding::Finding;
use crate::config::Config;
use crate::serve::{holder, lock, node_file};
use std::io;
use std::net::TcpListener;

pub(super) fn look(config: &Config) -> Finding {
    let what = "node";
    if lock::is_held(&config.data) {
        let seen = match node_file::read(&config.data) {
            Some(file) => {
                format!("a node serves this data folder at {} (pid {})", file.address, file.pid)
            }
            None => "a node of this data folder is starting or ending".to_owned(),
        };
        return Finding::good(what, seen);
    }
    let address = config.listen;
    match TcpListener::bind(address) {
        Ok(_) => Finding::good(what, format!("none runs; {address} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let holder = holder::of_port(address.port()).map_or_else(
                || "a program of another user".to_owned(),
                |holder| format!("{} (pid {})", holder.name, holder.pid),
            );
            Finding::note(
                what,
                format!("none runs; {address} is taken by {holder}"),
                "stop that program, or choose another port with `listen` or `serve --listen`",
            )
        }
        Err(error) => Finding::note(
            what,
            format!("none runs; {address} cannot be listened on: {error}"),
            "choose another address with `listen` or `serve --listen`",
        ),
    }
}
