//! The byte alphabet of GPT-2's tokenizer: every byte written as one visible character, so that a vocabulary of byte
//! strings can be kept in JSON. Printable bytes of Latin-1 stand for themselves, the other 68 are U+0100 onward.

/// The character of each byte.
pub(super) const ALPHABET: [char; 256] = alphabet();

const fn alphabet() -> [char; 256] {
    let mut chars = ['\0'; 256];
    let (mut byte, mut next) = (0, 256);
    while byte < 256 {
        let printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let code = if printable { byte } else { next };
        chars[byte as usize] = match char::from_u32(code) {
            Some(c) => c,
            None => unreachable!(),
        };
        next += !printable as u32;
        byte += 1;
    }
    chars
}

/// The bytes that `word` spells in the alphabet; `None` when it holds a character that is not of it.
pub(super) fn spelled(word: &str) -> Option<Vec<u8>> {
    word.chars().map(byte_of).collect()
}

fn byte_of(c: char) -> Option<u8> {
    match c as u32 {
        // Of the 68, the first 33 are bytes 0x00..=0x20, then come 0x7f..=0xa0, then 0xad.
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(code as u8),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_character_of_its_own() {
        for (byte, c) in ALPHABET.into_iter().enumerate() {
            assert_eq!(byte_of(c), Some(byte as u8));
        }
        assert_eq!((ALPHABET[0x20], ALPHABET[0x0a], ALPHABET[0xad]), ('Ġ', 'Ċ', 'Ń'));
        let strangers = [' ', '\n', '\u{ad}', '\u{144}', '語', '\u{7f}', '\u{a0}'];
        assert!(strangers.into_iter().all(|c| byte_of(c).is_none()));
        assert_eq!(spelled("Ġna"), Some(b" na".to_vec()));
        assert_eq!(spelled("a b"), None);
    }
}
