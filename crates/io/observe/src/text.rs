//! Strangers' text made safe to show: a trainer may print anything.

use std::borrow::Cow;

/// The text without characters that steer a terminal: each control character
/// but the line feed and the tab is shown as an escape.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    let steers = |c: char| {
        (c.is_control() && c != '\n' && c != '\t')
            // Direction overrides make a line read as another one.
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if c == '\r' {
            // Progress bars rewrite their line; what they wrote is kept apart.
            shown.push(' ');
        } else if steers(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// The same with every line after the first moved in, so that no line of a
/// message can pass for a record of its own.
pub(crate) fn indented(text: &str) -> Cow<'_, str> {
    let text = match printable(text) {
        Cow::Borrowed(text) => Cow::Borrowed(text.trim_end_matches('\n')),
        Cow::Owned(text) => Cow::Owned(text.trim_end_matches('\n').to_owned()),
    };
    if text.contains('\n') {
        Cow::Owned(text.replace('\n', "\n    "))
    } else {
        text
    }
}

/// Columns that a text takes on a terminal: two for the wide characters of
/// East Asia and emoji, none for combining marks.
pub(crate) fn columns(text: &str) -> usize {
    text.chars().map(char_columns).sum()
}

fn char_columns(c: char) -> usize {
    match u32::from(c) {
        0x0300..=0x036f | 0x200b..=0x200f | 0xfe00..=0xfe0f => 0,
        0x1100..=0x115f
        | 0x2e80..=0xa4cf
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f
        | 0xff00..=0xff60
        | 0xffe0..=0xffe6
        | 0x1f300..=0x1faff
        | 0x20000..=0x3fffd => 2,
        _ => 1,
    }
}

/// The text cut to `width` columns, with `…` where something is missing.
pub(crate) fn fitted(text: &str, width: usize) -> Cow<'_, str> {
    if columns(text) <= width {
        return Cow::Borrowed(text);
    }
    let mut cut = String::new();
    let mut used = 0;
    for c in text.chars() {
        used += char_columns(c);
        if used + 1 > width {
            break;
        }
        cut.push(c);
    }
    if width > 0 {
        cut.push('…');
    }
    Cow::Owned(cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_cannot_be_steered() {
        assert_eq!(printable("plain\ttext"), "plain\ttext");
        assert_eq!(printable("\x1b[2Jgone\x07"), "\\u{1b}[2Jgone\\u{7}");
        assert_eq!(printable("10%\r20%"), "10% 20%");
        assert_eq!(printable("a\u{202e}b"), "a\\u{202e}b");
    }

    #[test]
    fn no_line_passes_for_a_record() {
        let forged = "done\n2026-11-22 12:00:00,000 - firesteel.server - ERROR - [-] lost\n";
        let shown = indented(forged);
        assert_eq!(shown.lines().count(), 2);
        assert!(shown.lines().nth(1).unwrap().starts_with("    2026"));
    }

    #[test]
    fn texts_are_cut_by_columns() {
        assert_eq!(fitted("abcdef", 6), "abcdef");
        assert_eq!(fitted("abcdefg", 6), "abcde…");
        assert_eq!(fitted("東京大学", 6), "東京…");
        assert_eq!(fitted("abc", 0), "");
    }
}
