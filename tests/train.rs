//! Training: the trained tokens are those that serving sees, and gradients are right.

mod command;
mod merged;
mod model;
mod rendering;
mod runs;
