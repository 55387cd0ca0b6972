//! That `README.md` here names tests that exist, and all attacks.

use std::fs;
use std::path::Path;

#[test]
fn every_attack_has_its_line_and_every_test_in_it_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = fs::read_to_string(root.join("tests/it/attacks/README.md")).unwrap();
    let lines: Vec<&str> = table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| #")).collect();
    let numbers: Vec<u32> = lines.iter().map(|line| line[2..].split(' ').next().unwrap().parse().unwrap()).collect();
    assert_eq!(numbers, (1..=28).collect::<Vec<_>>());
    let mut named = 0;
    for test in table.split('`').filter(|text| text.contains(".rs::")) {
        let (file, name) = test.split_once("::").unwrap();
        let source = fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(source.contains(&format!("fn {name}(")), "{test} is not there");
        named += 1;
    }
    assert!(named > 25, "{named}");
}
