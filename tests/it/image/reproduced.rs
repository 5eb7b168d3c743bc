//! The same sources give the same bytes, wherever and whenever they are built.

use super::{layer, output, script};

/// With `TIKIGATE_REPRODUCE=1` all of it is built a second time elsewhere, which takes minutes; without it, only the
/// layer is made again of the same binary.
#[test]
fn made_again_it_is_the_same_bytes() {
    let again = tempfile::NamedTempFile::new().unwrap();
    output(&mut script(
        "deploy/image/layer",
        &[again.path().to_str().unwrap()],
    ));
    let (first, second) = (
        std::fs::read(layer()).unwrap(),
        std::fs::read(again.path()).unwrap(),
    );
    assert!(
        first == second,
        "the layer differs: cmp {} of both",
        layer().display()
    );
    if std::env::var_os("TIKIGATE_REPRODUCE").is_none() {
        return;
    }
    let told = output(&mut script("deploy/image/reproduce", &[]));
    for what in ["binary: ", "layer: "] {
        let line = told
            .lines()
            .find_map(|line| line.strip_prefix(what))
            .unwrap();
        let (one, other) = line.split_once(" and ").unwrap();
        assert!(one.len() == 64 && one == other, "{told}");
    }
    println!("{told}");
}
