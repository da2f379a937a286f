//! The outbox driven step by step on one thread: nothing happens between two steps, so each step can be made to fail.

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
