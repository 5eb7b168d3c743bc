#![no_main]
#![doc = "See `tikigate_fuzz::proxy_header`."]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tikigate_fuzz::proxy_header(data));
