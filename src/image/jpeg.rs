//! Is a JPEG file whole? Decoders fill what is missing with gray; a picture that was cut off while it was copied
//! must be refused instead. Walks the markers of ITU-T T.81, annex B.

const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;
const SOS: u8 = 0xda;

/// Ok when the end-of-image marker is reached after at least one scan; else the reason why not.
pub fn check_complete(bytes: &[u8]) -> Result<(), String> {
    const CUT: &str = "the JPEG is cut off before its end";
    let mut at = 0;
    let mut scans = 0;
    loop {
        let marker = next_marker(bytes, &mut at).ok_or(CUT)?;
        match marker {
            SOI | 0x01 | 0xd0..=0xd7 => {} // start, TEM, restarts: no segment follows
            EOI if scans > 0 => return Ok(()),
            EOI => return Err("the JPEG holds no picture data".to_owned()),
            _ => {
                let length = bytes.get(at..at + 2).ok_or(CUT)?;
                let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
                if length < 2 {
                    return Err(format!("the JPEG is damaged: segment 0x{marker:02x} has length {length}"));
                }
                at += length;
                scans += usize::from(marker == SOS);
            }
        }
    }
}

/// The next marker from `at` on, which is moved behind it. Skips the entropy-coded data after a scan header,
/// where 0xff 0x00 stands for a byte 0xff, and fill bytes.
fn next_marker(bytes: &[u8], at: &mut usize) -> Option<u8> {
    loop {
        *at += bytes.get(*at..)?.iter().position(|&b| b == 0xff)? + 1;
        match *bytes.get(*at)? {
            0x00 => *at += 1,
            0xff => {} // a fill byte: the marker's first byte may follow
            marker => {
                *at += 1;
                return Some(marker);
            }
        }
    }
}
