//! The order of the gate's steps is a matter of types: a step that is left out does not compile.

#[test]
fn a_step_that_is_left_out_does_not_compile() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/ui/in_order.rs");
    cases.compile_fail("tests/ui/without_*.rs");
    cases.compile_fail("tests/ui/made_by_hand.rs");
}
