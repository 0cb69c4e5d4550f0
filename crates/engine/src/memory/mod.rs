//! Memory: a ledger of bytes promised and bytes observed.
