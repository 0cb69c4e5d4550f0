//! Slots: sealed memory files through which pixels pass.
//!
//! The orchestrator makes a slot, seals it against shrinking and growing and names it to the worker by path. It never maps
//! it: it reads into a buffer of its own, checks, then uses. A worker that truncates a mapped file would kill the mapper.

use atelier_protocol::worker::Slot;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// One slot. The memory goes back when this is dropped and the worker has closed its side.
#[derive(Debug)]
pub struct SlotFile {
    file: File,
    name: String,
    bytes: u64,
}

/// Why what a worker left in a slot is not used.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    #[error("the worker answered with slot {got}, expected {expected}")]
    Other { got: String, expected: String },
    #[error("{bytes} bytes at {offset} do not fit in a slot of {size} bytes")]
    OutOfRange { offset: u64, bytes: u64, size: u64 },
    #[error("{bytes} bytes are not {width} × {height} × {channels}")]
    Shape { bytes: u64, width: u32, height: u32, channels: u32 },
    #[error("the checksum is {got:08x}, the worker said {expected:08x}")]
    Checksum { got: u32, expected: u32 },
    #[error("failed to read the slot: {0}")]
    Io(#[from] io::Error),
}

/// What a worker says about the pixels that it wrote.
#[derive(Clone, Copy, Debug)]
pub struct SlotClaim<'a> {
    pub slot: &'a str,
    pub offset: u64,
    pub bytes: u64,
    pub width: u32,
    pub height: u32,
    pub channels: u32,
    pub crc32c: u32,
}

impl SlotFile {
    /// A slot of exactly this many bytes.
    pub fn new(bytes: u64) -> io::Result<Self> {
        let fd = memfd_create("atelier-slot", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, bytes)?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let name = uuid::Uuid::now_v7().simple().to_string();
        Ok(Self { file: File::from(fd), name, bytes })
    }

    /// How the worker finds it.
    #[must_use]
    pub fn describe(&self) -> Slot {
        let path = format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd());
        Slot { slot: self.name.clone(), path, bytes: self.bytes }
    }

    /// Reads and checks what the worker claims to have written.
    pub fn read(&self, claim: SlotClaim<'_>) -> Result<Vec<u8>, SlotError> {
        let SlotClaim { slot, offset, bytes, width, height, channels, crc32c } = claim;
        if slot != self.name {
            return Err(SlotError::Other { got: slot.to_owned(), expected: self.name.clone() });
        }
        if offset.checked_add(bytes).is_none_or(|end| end > self.bytes) {
            return Err(SlotError::OutOfRange { offset, bytes, size: self.bytes });
        }
        let pixels = u128::from(width) * u128::from(height) * u128::from(channels);
        if pixels != u128::from(bytes) || !(3..=4).contains(&channels) {
            return Err(SlotError::Shape { bytes, width, height, channels });
        }
        let mut buffer = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX)];
        self.file.read_exact_at(&mut buffer, offset)?;
        let got = crc32c::crc32c(&buffer);
        if got != crc32c {
            return Err(SlotError::Checksum { got, expected: crc32c });
        }
        Ok(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim<'a>(slot: &'a Slot, pixels: &[u8]) -> SlotClaim<'a> {
        SlotClaim {
            slot: &slot.slot,
            offset: 0,
            bytes: pixels.len() as u64,
            width: 2,
            height: 1,
            channels: 3,
            crc32c: crc32c::crc32c(pixels),
        }
    }

    #[test]
    fn pixels_written_by_path_are_read_back() {
        let file = SlotFile::new(6).unwrap();
        let slot = file.describe();
        std::fs::OpenOptions::new()
            .write(true)
            .open(&slot.path)
            .unwrap()
            .write_all_at(b"abcdef", 0)
            .unwrap();
        assert_eq!(file.read(claim(&slot, b"abcdef")).unwrap(), b"abcdef");
    }

    #[test]
    fn a_slot_can_be_neither_shrunk_nor_grown() {
        let file = SlotFile::new(6).unwrap();
        let other = std::fs::OpenOptions::new().write(true).open(file.describe().path).unwrap();
        other.set_len(0).expect_err("sealed against shrinking");
        other.set_len(1 << 20).expect_err("sealed against growing");
    }

    #[test]
    fn a_claim_that_does_not_hold_is_refused_before_it_is_used() {
        let file = SlotFile::new(6).unwrap();
        let slot = file.describe();
        let good = claim(&slot, &[0; 6]);
        file.read(good).unwrap();
        let bad = [
            SlotClaim { slot: "another", ..good },
            SlotClaim { offset: 1, ..good },
            SlotClaim { offset: u64::MAX, ..good },
            SlotClaim { width: 3, ..good },
            SlotClaim { width: u32::MAX, height: u32::MAX, ..good },
            SlotClaim { crc32c: 1, ..good },
            SlotClaim { bytes: 0, width: 0, channels: 0, ..good },
        ];
        for claim in bad {
            file.read(claim).expect_err("must be refused");
        }
    }
}
