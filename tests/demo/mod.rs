//! How well the demo model does its tasks: the world that they are about, the judge of its drawings, and the
//! scores. Shared by the test target `demo` and the example `eval`.

pub mod judge;
pub mod score;
pub mod world;
