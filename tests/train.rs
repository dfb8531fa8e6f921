//! Training: what is learnt is what serving would see, and gradients are right.

mod command;
mod merged;
mod model;
mod rendering;
mod runs;
