//! The worker protocol as other languages meet it. One binary, because linking is what is slow.

mod vectors;
