//! Cells of tables that people open in a spreadsheet.
//!
//! Owns the quoting (RFC 4180) and one safety beyond it: a cell that a spreadsheet would take for a formula begins with an
//! apostrophe. Never reads a table.

use std::borrow::Cow;

/// What spreadsheets take for the beginning of a formula, wide forms included.
const FORMULA: [char; 8] = ['=', '+', '-', '@', '＝', '＋', '－', '＠'];

/// One cell, ready to be written.
pub fn cell(text: &str) -> Cow<'_, str> {
    let first = text.chars().next();
    // Blanks and control characters at the beginning are dropped by some, and what follows counts.
    let hidden = text.trim_start_matches(|c: char| c.is_whitespace() || c.is_control());
    let formula = hidden.starts_with(FORMULA) || first.is_some_and(char::is_control);
    if !formula && !text.contains([',', '"', '\n', '\r']) {
        return Cow::Borrowed(text);
    }
    let safe = if formula { "'" } else { "" };
    Cow::Owned(format!("\"{safe}{}\"", text.replace('\0', "").replace('"', "\"\"")))
}

/// A line of cells, with its end.
pub fn line<'a>(cells: impl IntoIterator<Item = &'a str>) -> String {
    let cells: Vec<Cow<'_, str>> = cells.into_iter().map(cell).collect();
    cells.join(",") + "\r\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cell_is_a_formula() {
        for bad in ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\0=cmd", "\r=1", " =1", "＝1"] {
            let made = cell(bad);
            assert!(made.starts_with("\"'"), "{bad:?} became {made:?}");
            assert!(!made.contains('\0'));
        }
        assert_eq!(cell("plain"), "plain");
        assert_eq!(cell("a,b"), "\"a,b\"");
        assert_eq!(line(["a\"b", "", "x"]), "\"a\"\"b\",,x\r\n");
    }
}
