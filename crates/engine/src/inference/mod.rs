//! Inference: requests, schedulers, the planner.
