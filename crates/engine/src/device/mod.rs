//! Device: what hardware is here and what it can do. (Filled in below.)
