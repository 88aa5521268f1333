//! Inputs and timing shared by the benchmarks.
