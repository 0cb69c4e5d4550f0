//! Who holds a TCP port, as far as this user may see it: the kernel's socket table, then the descriptors of processes.

use atelier_engine::files;
use std::path::Path;

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Holder {
    pub(crate) pid: u32,
    pub(crate) name: String,
}

/// The process that listens on a port; none when it is not ours to see.
pub(crate) fn of_port(port: u16) -> Option<Holder> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let inode = tables
        .iter()
        .find_map(|table| listening_inode(&files::read_to_string(Path::new(table)).ok()?, port))?;
    let wanted = format!("socket:[{inode}]");
    let processes = files::read_dir(Path::new("/proc")).ok()?;
    processes.into_iter().find_map(|process| {
        let pid = process.file_name()?.to_str()?.parse().ok()?;
        let descriptors = files::read_dir(&process.join("fd")).ok()?;
        descriptors
            .iter()
            .filter_map(|descriptor| std::fs::read_link(descriptor).ok())
            .any(|target| target.as_os_str() == wanted.as_str())
            .then(|| Holder { pid, name: name(&process) })
    })
}

fn name(process: &Path) -> String {
    files::read_to_string(&process.join("comm"))
        .map_or_else(|_| "a program".to_owned(), |name| name.trim().to_owned())
}

/// The socket that listens on a port, from the text of `/proc/net/tcp`.
fn listening_inode(table: &str, port: u16) -> Option<u64> {
    const LISTENING: &str = "0A";
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [_, local, _, state, _, _, _, _, _, inode, ..] = fields.as_slice() else { return None };
        let (_, hex_port) = local.rsplit_once(':')?;
        let is_it = *state == LISTENING && u16::from_str_radix(hex_port, 16).ok()? == port;
        is_it.then(|| inode.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listening_socket_is_found_and_connections_are_not() {
        let table = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:10B8 0100007F:C001 01 00000000:00000000 00:00000000 00000000  1000        0 111 1 0
   1: 0100007F:10B8 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 222 1 0
   2: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 333 1 0
";
        assert_eq!(listening_inode(table, 4280), Some(222));
        assert_eq!(listening_inode(table, 22), Some(333));
        assert_eq!(listening_inode(table, 80), None);
        assert_eq!(listening_inode("", 80), None);
    }
}
