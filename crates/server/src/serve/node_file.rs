//! `DATA/node.json`: where the node of a data folder listens, for commands on the same machine.

use atelier_engine::files;
use atelier_protocol::http::NodeFile;
use rustix::process::{Pid, test_kill_process};
use std::io;
use std::path::{Path, PathBuf};

fn path(data: &Path) -> PathBuf {
    data.join("node.json")
}

/// The file while the node serves; removed when dropped. Only the holder of the data folder's lock may make one.
#[derive(Debug)]
pub(super) struct Announced(PathBuf);

impl Announced {
    pub(super) fn write(data: &Path, file: &NodeFile) -> io::Result<Self> {
        let text = serde_json::to_vec(file).map_err(io::Error::other)?;
        files::write_atomic(&path(data), &text)?;
        Ok(Self(path(data)))
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        let _ = files::remove_file(&self.0); // the data folder may be gone; a file left behind names a dead pid
    }
}

/// The node that says it serves this data folder, if its process lives. Ask it for its boot id before believing it: the
/// pid may have been given to another program.
pub(crate) fn read(data: &Path) -> Option<NodeFile> {
    let text = files::read(&path(data)).ok()?;
    let file: NodeFile = serde_json::from_slice(&text).ok()?;
    lives(file.pid).then_some(file)
}

fn lives(pid: u32) -> bool {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return false };
    // A process of another user lives too, though it may not be signalled.
    matches!(test_kill_process(pid), Ok(()) | Err(rustix::io::Errno::PERM))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(pid: u32) -> NodeFile {
        NodeFile { address: "127.0.0.1:1".to_owned(), pid, boot_id: "b".to_owned() }
    }

    #[test]
    fn a_node_is_announced_until_it_ends() {
        let data = tempfile::tempdir().unwrap();
        assert_eq!(read(data.path()), None);
        let own = file(std::process::id());
        let announced = Announced::write(data.path(), &own).unwrap();
        assert_eq!(read(data.path()), Some(own));
        drop(announced);
        assert_eq!(read(data.path()), None);
    }

    #[test]
    fn a_file_of_a_process_that_is_gone_is_not_believed() {
        let data = tempfile::tempdir().unwrap();
        let _announced = Announced::write(data.path(), &file(i32::MAX as u32)).unwrap();
        assert_eq!(read(data.path()), None);
    }
}
