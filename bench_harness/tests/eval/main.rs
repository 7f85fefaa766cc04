//! `attnbench eval`, from the outside: numbers against two independent implementations, files, and what is said when
//! something is wrong.

mod dense;
mod errors;
mod files;
mod onnx;
mod properties;
