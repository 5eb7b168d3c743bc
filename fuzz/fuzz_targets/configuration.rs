#![no_main]
#![doc = "See `tikigate_fuzz::configuration`."]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tikigate_fuzz::configuration(data));
