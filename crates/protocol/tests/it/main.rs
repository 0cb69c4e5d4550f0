//! The worker protocol as other languages meet it. One binary, because linking is what is slow.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod vectors;
