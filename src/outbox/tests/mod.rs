//! The outbox driven step by step, on one thread: what it does between two steps is known, so it can fail at each.

mod appends;
mod audit;
mod damage;
mod expiry;
mod faults;
mod inspect;
mod maintenance;
mod model;
mod oldest;
mod rig;
mod salvage;
mod space;
mod tail_cache;
mod transfer;
