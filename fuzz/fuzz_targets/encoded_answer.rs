#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dataplane_agent::fuzzing::encoded_answer(data));
