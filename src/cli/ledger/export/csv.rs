//! CSV (RFC 4180) that a spreadsheet can't be tricked with.

use std::io::{self, Write};

use crate::cli::terminal::escape;

/// The first row, with a column for each of these fields.
pub(super) fn head(fields: &[&str]) -> Vec<String> {
    let before = [
        "id",
        "time",
        "changed",
        "route",
        "namespace",
        "client",
        "key",
        "state",
        "held_for",
        "attempt",
        "alarmed",
    ];
    let after = ["answer_status", "resolved_by", "other_fields"];
    let names = before.iter().chain(fields).chain(&after);
    names.map(|name| (*name).to_owned()).collect()
}

/// One row, ended with CR LF.
pub(super) fn write_row(out: &mut dyn Write, cells: &[String]) -> io::Result<()> {
    let mut row = String::new();
    for (place, cell) in cells.iter().enumerate() {
        if place > 0 {
            row.push(',');
        }
        push_cell(&mut row, cell);
    }
    row.push_str("\r\n");
    out.write_all(row.as_bytes())
}

/// A cell, quoted where it has to be.
///
/// Keys and fields come from outside. What could drive a terminal, line ends with it, is escaped; and
/// what a spreadsheet would run as a formula gets an apostrophe in front, which makes it text.
fn push_cell(row: &mut String, cell: &str) {
    let mut cell = escape(cell);
    if starts_formula(&cell) {
        cell.insert(0, '\'');
    }
    let plain = !cell.contains([',', '"', ';', '\'']) && cell.trim() == cell;
    if plain {
        row.push_str(&cell);
        return;
    }
    row.push('"');
    row.push_str(&cell.replace('"', "\"\""));
    row.push('"');
}

/// The characters that start a formula, and their wide forms, which some spreadsheets take as well.
/// White space before them is skipped by some, too.
fn starts_formula(cell: &str) -> bool {
    let first = cell.trim_start().chars().next();
    first.is_some_and(|first| "=+-@＝＋－＠".contains(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: &[&str]) -> String {
        let cells: Vec<_> = cells.iter().map(|cell| (*cell).to_owned()).collect();
        let mut out = Vec::new();
        write_row(&mut out, &cells).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn cells_are_quoted_where_they_have_to_be() {
        assert_eq!(row(&["a", "", "150000.50"]), "a,,150000.50\r\n");
        assert_eq!(
            row(&["a,b", "say \"x\"", " c"]),
            "\"a,b\",\"say \"\"x\"\"\",\" c\"\r\n"
        );
        assert_eq!(row(&["a;b"]), "\"a;b\"\r\n");
    }

    #[test]
    fn nothing_is_a_formula() {
        for formula in [
            "=1+1",
            "+1",
            "-1",
            "@SUM(A1)",
            " =1",
            "＝1",
            "=cmd|' /C calc'!A0",
        ] {
            let cell = row(&[formula]);
            assert!(cell.starts_with("\"'"), "{formula}: {cell}");
        }
        assert_eq!(row(&["1-1", "a=b"]), "1-1,a=b\r\n");
    }

    #[test]
    fn a_cell_stays_on_its_line() {
        let cell = row(&["a\r\nb\t=1\u{1b}[2J"]);
        assert_eq!(cell, "a\\u{d}\\u{a}b\\u{9}=1\\u{1b}[2J\r\n");
        // Escaped first: the character that stood in front doesn't hide the formula.
        assert!(row(&["\t=1"]).starts_with("\\u{9}"));
    }
}
