//! Processing: the durable queue and the attempts at each job.

mod finish;

pub use finish::{Encoded, Finisher, PictureFacts, RawImage};
