#![no_main]
#![doc = "See `tikigate_fuzz::payload`."]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tikigate_fuzz::payload(data));
