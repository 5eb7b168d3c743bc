#![no_main]
#![doc = "See `tikigate_fuzz::signature_headers`."]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tikigate_fuzz::signature_headers(data));
