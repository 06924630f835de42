//! Showing names that strangers chose.

/// Characters of a stranger's name that are shown; enough to recognize it.
const SHOWN: usize = 120;

/// A name as it may stand in a message, a log or a terminal: control
/// characters escaped, the end of a very long one cut.
pub fn shown(name: &str) -> String {
    let mut text = String::new();
    for (at, c) in name.chars().enumerate() {
        if at == SHOWN {
            text.push('…');
            break;
        }
        // Bidirectional controls can make a name read as another one.
        let bidi = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if c.is_control() || bidi {
            text.extend(c.escape_unicode());
        } else {
            text.push(c);
        }
    }
    text
}

/// A shape as Python users know it: `[3, 4]`, `[]` for a single value.
pub fn shape(shape: &[u64]) -> String {
    format!("{shape:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_steer_a_terminal() {
        assert_eq!(shown("fc.weight"), "fc.weight");
        assert_eq!(shown("a\x1b[31m\n"), "a\\u{1b}[31m\\u{a}");
        assert_eq!(shown("x\u{202e}y"), "x\\u{202e}y");
        assert_eq!(shown(&"é".repeat(200)).chars().count(), 121);
    }
}
