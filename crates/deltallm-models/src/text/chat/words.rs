//! Words and strings in the source of a template.

/// Whether a byte can be part of a name.
pub(super) fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii()
}

/// With its quotes; up to the end where the second one is missing.
pub(super) fn string_length(bytes: &[u8]) -> usize {
    let mut escaped = false;
    let end = bytes[1..].iter().position(|byte| {
        let ends = !escaped && *byte == bytes[0];
        escaped = !escaped && *byte == b'\\';
        ends
    });
    end.map_or(bytes.len(), |end| end + 2)
}
