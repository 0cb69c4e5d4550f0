//! What a person is told before gigabytes are downloaded. Facts and sentences only.

use atelier_protocol::Bytes;
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;

/// Free space that must be left over after an installation.
pub(super) const MARGIN: Bytes = Bytes::gib(1);

/// What the choice of a PyTorch build depends on; read from the driver by the device domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CardFacts {
    pub name: String,
    pub compute_capability: (u32, u32),
    /// Version of the NVIDIA driver, such as `580.65.06`.
    pub driver: String,
}

impl CardFacts {
    /// `None` when the driver's version has a form that we do not know: then nothing is claimed about it.
    pub(super) fn driver_major(&self) -> Option<u32> {
        self.driver.split('.').next()?.trim().parse().ok()
    }
}

/// Why an environment is installed now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    First,
    /// There are environments, but for other packages than this binary's.
    OtherPackages,
    /// An installation was interrupted.
    Interrupted,
    /// The environment's interpreter is gone or was replaced.
    PythonChanged,
    Repair,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::First => {
                "Pictures are made by worker processes in Python with PyTorch, and this machine has \
                 no environment for them yet."
            }
            Self::OtherPackages => {
                "This version of Atelier needs other packages than the environments that are here."
            }
            Self::Interrupted => {
                "An earlier installation was interrupted; what it downloaded is used again."
            }
            Self::PythonChanged => {
                "The Python that the environment was made with is gone or was replaced."
            }
            Self::Repair => "A repair was asked for: every file is installed and checked again.",
        })
    }
}

/// What an installation is going to do and what it costs.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Notice {
    pub why: Why,
    /// At most; packages in uv's cache are not downloaded again.
    pub download: Bytes,
    pub installed: Bytes,
    /// What must be free at `folder` for the installation to begin.
    pub needed: Bytes,
    pub free: Bytes,
    pub folder: PathBuf,
    /// Version and build, such as `2.15.0 for CUDA 13.2; …`.
    pub torch: String,
    pub python: PathBuf,
    pub python_version: String,
    pub uv_version: String,
    /// Absent: uv is fetched into a folder of our own first.
    pub uv: Option<PathBuf>,
    /// One sentence for every card that the locked PyTorch cannot use.
    pub cards_left_out: Vec<String>,
}

impl Notice {
    #[must_use]
    pub fn fits(&self) -> bool {
        self.free >= self.needed
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.why)?;
        writeln!(f, "  Download   {} at most", self.download)?;
        writeln!(
            f,
            "  Disk       {} in {} ({} free)",
            self.installed,
            self.folder.display(),
            self.free
        )?;
        writeln!(f, "  PyTorch    {}", self.torch)?;
        writeln!(f, "  Python     {} ({})", self.python_version, self.python.display())?;
        match &self.uv {
            Some(uv) => write!(f, "  Installer  uv {} ({})", self.uv_version, uv.display())?,
            None => write!(f, "  Installer  uv {}, fetched first", self.uv_version)?,
        }
        for sentence in &self.cards_left_out {
            write!(f, "\n{sentence}")?;
        }
        if !self.fits() {
            write!(f, "\nToo little disk space: {} needed, {} free.", self.needed, self.free)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_says_what_it_costs_where_and_why() {
        let notice = Notice {
            why: Why::First,
            download: Bytes::mib(3000),
            installed: Bytes::gib(5),
            needed: Bytes::gib(6),
            free: Bytes::gib(4),
            folder: "/data/envs".into(),
            torch: "2.15.0 for CUDA 13.2".into(),
            python: "/usr/bin/python3.11".into(),
            python_version: "3.11.7".into(),
            uv_version: "0.13.9".into(),
            uv: None,
            cards_left_out: vec!["Old card.".into()],
        };
        insta::assert_snapshot!(notice, @"
        Pictures are made by worker processes in Python with PyTorch, and this machine has no environment for them yet.
          Download   2.9 GiB at most
          Disk       5.0 GiB in /data/envs (4.0 GiB free)
          PyTorch    2.15.0 for CUDA 13.2
          Python     3.11.7 (/usr/bin/python3.11)
          Installer  uv 0.13.9, fetched first
        Old card.
        Too little disk space: 6.0 GiB needed, 4.0 GiB free.
        ");
    }
}
