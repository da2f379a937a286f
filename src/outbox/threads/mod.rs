//! The two threads that write: one appends, the other settles and deletes.

pub(crate) mod maintenance;
pub(crate) mod writer;
