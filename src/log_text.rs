//! Owns: what text of others may do in the error log: an exception's, an application's, a client's.
//! Rule: it cannot pass for a line of the server's, which begins with `[`: such a line of it is indented. Control characters,
//! by which a terminal would show something else, are escaped as Python writes them; line ends and tabs stay.
//! Never: shortens text, or changes a traceback that has none of this.

use std::borrow::Cow;
use std::fmt::Write;

/// Where the text begins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// At the start of a line, for all that is known.
    Start,
    /// Behind what the server has written.
    Inside,
}

const INDENT: &str = "  ";

pub fn unforgeable(text: &str, column: Column) -> Cow<'_, str> {
    let text = match text.contains(is_harmful) {
        true => Cow::Owned(escaped(text)),
        false => Cow::Borrowed(text),
    };
    if !text.contains("\n[") && (column == Column::Inside || !text.starts_with('[')) {
        return text;
    }
    let mut lines = text.replace("\n[", &format!("\n{INDENT}["));
    if column == Column::Start && lines.starts_with('[') {
        lines.insert_str(0, INDENT);
    }
    Cow::Owned(lines)
}

/// Those of C0 and C1, and what else is a line's end to somebody (Unicode, "Newline Guidelines").
fn is_harmful(c: char) -> bool {
    c.is_control() && !matches!(c, '\n' | '\t') || matches!(c, '\u{2028}' | '\u{2029}')
}

fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        // To a String, which takes everything.
        let _ = match c {
            '\r' => write!(safe, "\\r"),
            c if !is_harmful(c) => write!(safe, "{c}"),
            c if c <= '\u{ff}' => write!(safe, "\\x{:02x}", u32::from(c)),
            c => write!(safe, "\\u{:04x}", u32::from(c)),
        };
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceback_stays_as_it_is() {
        let text = "Error handling request GET /\nTraceback (most recent call last):\n  File \"a.py\", line 1\n\tx[0]\nKeyError: 'ü'";
        assert!(matches!(unforgeable(text, Column::Inside), Cow::Borrowed(same) if same == text));
    }

    #[test]
    fn what_looks_like_a_line_of_the_server_is_indented() {
        assert_eq!(unforgeable("[1, 2]\n[3]\n\n[4]", Column::Inside), "[1, 2]\n  [3]\n\n  [4]");
        assert_eq!(unforgeable("[1]", Column::Start), "  [1]");
    }

    #[test]
    fn control_characters_are_escaped() {
        let text = "a\r[b\u{1b}[31m\u{7f}\u{85}\u{2028}\tc\0";
        assert_eq!(unforgeable(text, Column::Start), "a\\r[b\\x1b[31m\\x7f\\x85\\u2028\tc\\x00");
    }

    #[test]
    fn no_line_of_any_text_begins_as_the_servers_do() {
        let letters = ['[', 'a', '\n', '\r', ' ', '\u{85}'];
        for number in 0..letters.len().pow(6) {
            let text: String =
                (0..6).map(|at| letters[number / letters.len().pow(at) % letters.len()]).collect();
            for column in [Column::Start, Column::Inside] {
                let safe = unforgeable(&text, column);
                assert!(!safe.contains(is_harmful), "{text:?}");
                let before = if column == Column::Inside { "x" } else { "" };
                assert!(format!("{before}{safe}").split('\n').all(|line| !line.starts_with('[')), "{text:?}");
                assert_eq!(safe.matches('\n').count(), text.matches('\n').count(), "{text:?}");
            }
        }
    }
}
