//! Postprocessing: encoding and metadata.
