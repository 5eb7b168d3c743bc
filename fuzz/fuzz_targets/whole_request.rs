#![no_main]
#![doc = "See `tikigate_fuzz::whole_request`."]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tikigate_fuzz::whole_request(data));
