//! Text of strangers in messages: on one line, of bounded length, and without what a terminal would obey.

use std::fmt::{self, Display, Formatter, Write};

/// What a message shows of a name, a key or a value.
const MAX_QUOTED_BYTES: usize = 200;
/// What is shown of a whole message.
const MAX_MESSAGE_BYTES: usize = 4000;

/// Text that is shown with its control characters escaped (`\u{1b}`), and cut with `… (N bytes)` where it is long.
#[derive(Debug, Clone, Copy)]
pub struct Quoted<T> {
    text: T,
    most: usize,
}

/// A name, key or value out of a file.
pub fn quoted<T: Display>(text: T) -> Quoted<T> {
    Quoted { text, most: MAX_QUOTED_BYTES }
}

/// A message that may have such text in it.
pub fn message<T: Display>(text: T) -> Quoted<T> {
    Quoted { text, most: MAX_MESSAGE_BYTES }
}

impl<T: Display> Display for Quoted<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut out = Escaped { out: f, most: self.most, length: 0 };
        write!(out, "{}", self.text)?;
        let length = out.length;
        if length > self.most { write!(f, "… ({length} bytes)") } else { Ok(()) }
    }
}

struct Escaped<'a, 'f> {
    out: &'a mut Formatter<'f>,
    most: usize,
    /// Bytes so far, before they are escaped.
    length: usize,
}

impl Write for Escaped<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            self.length += character.len_utf8();
            if self.length > self.most {
                // Only counted.
            } else if character == '\0' {
                self.out.write_str("\\0")?;
            } else if is_obeyed(character) {
                write!(self.out, "{}", character.escape_default())?;
            } else {
                self.out.write_char(character)?;
            }
        }
        Ok(())
    }
}

/// Whether a terminal or a viewer may do something else than show the character: control characters of both sets, line and paragraph ends,
/// marks that turn the direction of writing, and those that have no width.
fn is_obeyed(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{61C}' | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}')
        || matches!(character, '\u{2060}'..='\u{206F}' | '\u{FEFF}' | '\u{E0000}'..='\u{E007F}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_escaped() {
        let text = "a\u{1b}[31m\n\r\t\0\u{7f}\u{9b}\u{202e}\u{2066}\u{feff}é😀\\";
        assert_eq!(quoted(text).to_string(), r"a\u{1b}[31m\n\r\t\0\u{7f}\u{9b}\u{202e}\u{2066}\u{feff}é😀\");
        assert_eq!(quoted(quoted(text)).to_string(), quoted(text).to_string());
    }

    #[test]
    fn long_text_is_cut_between_characters_and_says_its_length() {
        let text = "é".repeat(1_500_000);
        assert_eq!(quoted(&text).to_string(), format!("{}… (3000000 bytes)", "é".repeat(100)));
        assert_eq!(message(&text).to_string(), format!("{}… (3000000 bytes)", "é".repeat(2000)));
        let short = "a".repeat(MAX_QUOTED_BYTES);
        assert_eq!(quoted(&short).to_string(), short);
    }
}
