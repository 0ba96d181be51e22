//! Tests of the reader on damaged files: it answers with an error, never with a panic or a huge allocation.

use super::*;
use crate::error::{Error, Result};

/// Builds files byte by byte, right or wrong.
#[derive(Clone, Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    /// Magic, version, and the two counts.
    fn start(version: u32, tensors: u64, entries: u64) -> Self {
        Bytes(MAGIC.to_vec()).u32(version).u64(tensors).u64(entries)
    }
    fn u32(mut self, v: u32) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }
    fn u64(mut self, v: u64) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }
    fn raw(mut self, v: &[u8]) -> Self {
        self.0.extend(v);
        self
    }
    fn string(self, s: &str) -> Self {
        self.u64(s.len() as u64).raw(s.as_bytes())
    }
    fn entry(self, key: &str, t: ValueType) -> Self {
        self.string(key).u32(t as u32)
    }
    fn tensor(self, name: &str, dims: &[u64], dtype: u32, offset: u64) -> Self {
        let start = self.string(name).u32(dims.len() as u32);
        dims.iter().fold(start, |bytes, &d| bytes.u64(d)).u32(dtype).u64(offset)
    }
    /// Padding, then `data` bytes of a pattern.
    fn data(mut self, data: usize) -> Self {
        self.0.resize(self.0.len().next_multiple_of(32), 0);
        self.0.extend((0..data).map(|i| (i * 31 + 7) as u8));
        self
    }
    fn parse(&self) -> Result<Header> {
        Header::parse(&self.0, "cat.gguf")
    }
    /// The error's message, which must begin with the file's name.
    fn refused(&self) -> String {
        let message = self.parse().expect_err("this file is damaged").to_string();
        message.strip_prefix("cat.gguf: ").unwrap_or_else(|| panic!("no file name: {message}")).to_owned()
    }
}

/// A file with every value type, nested arrays and three tensors; and the length of its header.
fn good() -> (Vec<u8>, usize) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("good.gguf");
    let nested = MetaArray::Array(vec![
        MetaArray::U32(vec![1, 2, 3]),
        MetaArray::String(vec!["a".into(), "ünïcode".into()]),
        MetaArray::Array(vec![MetaArray::Bool(vec![true])]),
    ]);
    let metadata: Vec<(String, MetaValue)> = vec![
        ("general.architecture".into(), "mmada".into()),
        ("general.alignment".into(), 64u32.into()),
        ("a.u8".into(), 200u8.into()),
        ("a.i8".into(), (-100i8).into()),
        ("a.u16".into(), 60_000u16.into()),
        ("a.i16".into(), (-30_000i16).into()),
        ("a.i32".into(), (-2_000_000_000i32).into()),
        ("a.f32".into(), 0.1f32.into()),
        ("a.u64".into(), u64::MAX.into()),
        ("a.i64".into(), i64::MIN.into()),
        ("a.f64".into(), 1e300f64.into()),
        ("a.bool".into(), true.into()),
        ("b.bools".into(), vec![true, false, true].into()),
        ("b.strings".into(), vec!["<|mdm_mask|>".to_owned(), String::new(), "日本".to_owned()].into()),
        ("b.i32s".into(), vec![4i32, 0, 2_000_000_000].into()),
        ("b.f32s".into(), vec![0.5f32, -1.5].into()),
        ("b.empty".into(), Vec::<u64>::new().into()),
        ("b.nested".into(), MetaValue::Array(nested)),
    ];
    let spec = |name: &str, dtype, dims: &[usize]| TensorSpec { name: name.into(), dtype, dims: dims.to_vec() };
    let tensors = [
        spec("token_embd.weight", GgmlType::Q4_0, &[64, 3]),
        spec("output_norm.weight", GgmlType::F32, &[7]),
        spec("vq.x", GgmlType::F16, &[2, 3, 5, 1]),
    ];
    let mut writer = Writer::create(&path, &metadata, &tensors).unwrap();
    for n in [64 * 3 / 32 * 18, 28, 60] {
        writer.write(&(0..n).map(|i| (i * 89 + n) as u8).collect::<Vec<_>>()).unwrap();
    }
    writer.finish().unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let header = Header::parse(&bytes, "good.gguf").unwrap();
    for (key, value) in &metadata {
        assert_eq!(&header.owned(&bytes, key).unwrap(), value);
    }
    (bytes, header.data_start)
}

#[test]
fn a_written_file_reads_back_as_it_was_meant() {
    let (bytes, _) = good();
    let h = Header::parse(&bytes, "good.gguf").unwrap();
    assert_eq!((h.version, h.alignment, h.metadata.len()), (3, 64, 18));
    assert_eq!(h.str("general.architecture").unwrap(), "mmada");
    assert_eq!(h.usize("a.u8").unwrap(), 200);
    assert_eq!(h.u64("a.u64").unwrap(), u64::MAX);
    assert_eq!(h.f32("a.f32").unwrap(), 0.1);
    assert_eq!(h.f32("a.f64").unwrap(), f32::INFINITY);
    assert!(h.bool("a.bool").unwrap());
    assert_eq!(h.strings(&bytes, "b.strings").unwrap(), ["<|mdm_mask|>", "", "日本"]);
    assert_eq!(h.usizes(&bytes, "b.i32s").unwrap(), [4, 0, 2_000_000_000]);
    assert_eq!(h.f32s(&bytes, "b.f32s").unwrap(), [0.5, -1.5]);
    assert_eq!(h.usizes(&bytes, "b.empty").unwrap(), [0usize; 0]);
    assert_eq!(h.opt_usizes(&bytes, "b.none").unwrap(), None);

    let names: Vec<&str> = h.tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["token_embd.weight", "output_norm.weight", "vq.x"]);
    for (name, dtype, dims, n) in [
        ("token_embd.weight", GgmlType::Q4_0, vec![64, 3], 108),
        ("output_norm.weight", GgmlType::F32, vec![7], 28),
        ("vq.x", GgmlType::F16, vec![2, 3, 5, 1], 60),
    ] {
        let t = h.require_tensor(name).unwrap();
        assert_eq!((t.dtype, &t.dims), (dtype, &dims));
        assert_eq!((t.cols(), t.rows()), (dims[0], dims[1..].iter().product()));
        assert!(t.range.start.is_multiple_of(64));
        assert!(t.data(&bytes).iter().copied().eq((0..n).map(|i| (i * 89 + n) as u8)), "{name}");
        assert!(t.data(&bytes[..t.range.end - 1]).is_empty());
    }
    assert!(bytes.len().is_multiple_of(64), "the last tensor is padded too");
}

#[test]
fn getters_say_which_key_of_which_file_is_missing_or_wrong() {
    let (bytes, _) = good();
    let h = Header::parse(&bytes, "good.gguf").unwrap();
    let checks: [(Error, &str); 14] = [
        (h.usize("x.y").unwrap_err(), "metadata x.y is missing"),
        (h.str("x.y").unwrap_err(), "metadata x.y is missing"),
        (h.strings(&bytes, "x.y").unwrap_err(), "metadata x.y is missing"),
        (h.str("a.u8").unwrap_err(), "metadata a.u8 is of type u8, expected a string"),
        (h.u32("a.f32").unwrap_err(), "metadata a.f32 is of type f32, expected an integer"),
        (h.u32("a.u64").unwrap_err(), "metadata a.u64 is 18446744073709551615, which is not between 0 and 4294967295"),
        (h.opt_u64("a.i8").unwrap_err(), "metadata a.i8 is -100, which is not between 0 and 18446744073709551615"),
        (h.opt_f32("a.i8").unwrap_err(), "metadata a.i8 is of type i8, expected a float"),
        (h.bool("a.u8").unwrap_err(), "metadata a.u8 is of type u8, expected a bool"),
        (h.usizes(&bytes, "b.f32s").unwrap_err(), "metadata b.f32s is an array of f32, expected an array of integers"),
        (
            h.f32s(&bytes, "b.strings").unwrap_err(),
            "metadata b.strings is an array of string, expected an array of floats",
        ),
        (
            h.usizes(&bytes, "b.nested").unwrap_err(),
            "metadata b.nested is an array of array, expected an array of integers",
        ),
        (h.strings(&bytes, "a.u8").unwrap_err(), "metadata a.u8 is of type u8, expected an array of strings"),
        (h.require_tensor("blk.0").unwrap_err(), "tensor blk.0 is missing"),
    ];
    for (error, reason) in checks {
        assert_eq!(error.to_string(), format!("good.gguf: {reason}"));
        assert_eq!(error.code(), 2);
    }
    for key in ["b.strings", "b.i32s", "b.nested"] {
        assert!(h.owned(&bytes[..200], key).is_err(), "bytes of another file");
    }
}

#[test]
fn a_file_cut_off_anywhere_is_refused() {
    let (bytes, data_start) = good();
    let end = Header::parse(&bytes, "good.gguf").unwrap().tensors[2].range.end;
    assert!(bytes.len() > end, "the last tensor is padded");
    for len in 0..bytes.len() {
        // A copy, so that reading beyond it is caught by tools that watch memory.
        let cut = bytes[..len].to_vec();
        let message = Header::parse(&cut, "good.gguf").unwrap_err().to_string();
        assert!(message.starts_with("good.gguf: "), "{message}");
        if len >= data_start {
            assert!(message.contains("needs bytes") && message.ends_with("(truncated download?)"), "{message}");
        }
    }
    let e = Header::parse(&bytes[..end - 1], "good.gguf").unwrap_err().to_string();
    let start = end - 60;
    let what = format!("good.gguf: tensor vq.x needs bytes {start}..{end}");
    assert_eq!(e, format!("{what} but the file ends at {} (truncated download?)", end - 1));
    let last = bytes.len() - 1;
    let e = Header::parse(&bytes[..last], "good.gguf").unwrap_err().to_string();
    let padded = bytes.len();
    assert_eq!(e, format!("{what} and padding up to {padded} but the file ends at {last} (truncated download?)"));
}

/// Parses, and reads everything that can be read if that worked.
fn exercise(bytes: &[u8]) -> bool {
    let Ok(h) = Header::parse(bytes, "x") else { return false };
    for (key, _) in &h.metadata {
        let _ = (h.owned(bytes, key), h.opt_strings(bytes, key), h.opt_usizes(bytes, key), h.opt_f32s(bytes, key));
        let _ = (h.opt_str(key), h.opt_usize(key), h.opt_f32(key), h.opt_bool(key));
    }
    for t in &h.tensors {
        assert_eq!(Some(t.data(bytes).len()), t.dtype.row_bytes(t.cols()).map(|n| n * t.rows()));
    }
    true
}

#[test]
fn no_damaged_byte_of_the_header_makes_the_reader_panic() {
    let (bytes, data_start) = good();
    let mut still_read = 0;
    for at in 0..data_start {
        let mut damaged = bytes.clone();
        for value in (0..8).map(|bit| bytes[at] ^ 1 << bit).chain([0, 1, 0x7F, 0x80, 0xFF]) {
            damaged[at] = value;
            still_read += usize::from(exercise(&damaged));
        }
    }
    assert!(still_read > 0, "letters of keys may change");
}

#[test]
fn no_random_damage_makes_the_reader_panic() {
    let (bytes, data_start) = good();
    let mut state = 1u64;
    let mut random = |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    let words = [0u64, 1, 255, 1 << 31, u32::MAX.into(), 1 << 32, 1 << 62, i64::MAX as u64, u64::MAX - 31, u64::MAX];
    for _ in 0..20_000 {
        let mut damaged = bytes.clone();
        for _ in 0..1 + random(4) {
            let at = random(data_start - 8);
            match random(3) {
                0 => damaged[at] = random(256) as u8,
                1 => damaged[at..at + 8].copy_from_slice(&words[random(words.len())].to_le_bytes()),
                _ => {
                    let (from, to) = (random(data_start - 64), random(data_start - 64));
                    damaged.copy_within(from..from + 1 + random(64), to);
                }
            }
        }
        damaged.truncate(if random(4) == 0 { random(bytes.len()) } else { bytes.len() });
        exercise(&damaged);
    }
}

#[test]
fn other_formats_and_versions_are_refused_by_name() {
    for (bytes, reason) in [
        (Bytes(vec![]), "the magic number needs 4 bytes at 0 but the file ends at 0 (truncated download?)"),
        (Bytes(b"PK\x03\x04....".to_vec()), "not a GGUF file: it begins with \"PK\\x03\\x04\" instead of \"GGUF\""),
        (Bytes::start(1, 0, 0), "GGUF version 1; versions 2 and 3 can be read"),
        (Bytes::start(4, 0, 0), "GGUF version 4; versions 2 and 3 can be read"),
        (Bytes::start(0, 0, 0), "GGUF version 0; versions 2 and 3 can be read"),
        (Bytes::start(3u32.swap_bytes(), 0, 0), "a big-endian GGUF file; only little-endian ones can be read"),
    ] {
        assert_eq!(bytes.refused(), reason);
    }
    for version in [2, 3] {
        let h = Bytes::start(version, 1, 0).tensor("t", &[8], 0, 0).data(32).parse().unwrap();
        assert_eq!((h.version, h.alignment, h.tensors[0].range.clone()), (version, 32, 64..96));
        assert!(Bytes::start(version, 0, 0).parse().unwrap().tensors.is_empty());
    }
}

#[test]
fn counts_and_lengths_beyond_the_file_are_refused_before_anything_is_allocated() {
    let huge = [1u64 << 20, 1 << 32, 1 << 40, 1 << 61, i64::MAX as u64, u64::MAX];
    for n in huge {
        let refused = |bytes: Bytes, what: &str| {
            let message = bytes.raw(&[1; 64]).refused();
            assert!(message.starts_with(what), "{n}: {message}");
        };
        refused(Bytes::start(3, n, 0), "the number of tensors is");
        refused(Bytes::start(3, 0, n), "the number of metadata entries is");
        refused(Bytes::start(3, 0, 1).u64(n), "the key of metadata entry 0 needs");
        refused(Bytes::start(3, 0, 1).entry("k", ValueType::String).u64(n), "metadata k needs");
        refused(Bytes::start(3, 1, 0).u64(n), "the name of tensor 0 needs");
        for t in (0..13).filter_map(ValueType::from_id) {
            let array = Bytes::start(3, 0, 1).entry("k", ValueType::Array).u32(t as u32).u64(n);
            refused(array, "the length of metadata k is");
        }
    }
}

#[test]
fn impossible_tensors_are_refused() {
    let one = |dims: &[u64], dtype, offset| Bytes::start(3, 1, 0).tensor("w", dims, dtype, offset).data(256).refused();
    assert_eq!(one(&[], 0, 0), "tensor w has 0 dimensions, not 1 to 4");
    assert_eq!(one(&[1, 1, 1, 1, 1], 0, 0), "tensor w has 5 dimensions, not 1 to 4");
    assert_eq!(one(&[4, 0], 0, 0), "tensor w of type F32 and shape [4, 0]: a dimension is zero");
    assert_eq!(one(&[33], 2, 0), "tensor w of type Q4_0 and shape [33]: its rows are not whole blocks");
    assert_eq!(one(&[8], 4, 0), "tensor w has the unknown type 4");
    assert_eq!(one(&[8], 4000, 0), "tensor w has the unknown type 4000");
    assert_eq!(one(&[8], 0, 8), "tensor w is at offset 8, not a multiple of 32");
    assert_eq!(one(&[8], 0, 256), "tensor w needs bytes 320..352 but the file ends at 320 (truncated download?)");
    assert_eq!(one(&[65], 0, 0), "tensor w needs bytes 64..324 but the file ends at 320 (truncated download?)");
    let overflowing: [(&[u64], u64); 5] = [
        (&[1 << 32, 1 << 32], 0),
        (&[1 << 21, 1 << 21, 1 << 21, 2], 0),
        (&[1 << 62], 0),
        (&[u64::MAX, u64::MAX, 3], 0),
        (&[8], u64::MAX - 31),
    ];
    for (dims, offset) in overflowing {
        let message = one(dims, 0, offset);
        assert!(message.contains("overflows") || message.contains("beyond what can be addressed"), "{message}");
    }
}

#[test]
fn overlapping_tensors_are_refused_in_any_order() {
    let two = |a, b| Bytes::start(3, 2, 0).tensor("a", &[16], 0, a).tensor("b", &[16], 0, b).data(256);
    assert_eq!(two(0, 32).refused(), "tensors a and b overlap");
    assert_eq!(two(96, 64).refused(), "tensors b and a overlap");
    assert_eq!(two(64, 64).refused(), "tensors a and b overlap");
    let swapped = two(64, 0).parse().unwrap();
    assert!(swapped.tensors[1].range.end <= swapped.tensors[0].range.start, "any order and gaps are fine");
}

#[test]
fn names_that_occur_twice_are_refused() {
    let u8_entry = |bytes: Bytes, key| bytes.entry(key, ValueType::U8).raw(&[3]);
    let twice = u8_entry(u8_entry(Bytes::start(3, 0, 2), "k"), "k").raw(&[0; 9]);
    assert_eq!(twice.refused(), "metadata k occurs twice");
    let twice = Bytes::start(3, 2, 0).tensor("t", &[8], 0, 0).tensor("t", &[8], 0, 32).data(64);
    assert_eq!(twice.refused(), "tensor t occurs twice");
    assert_eq!(u8_entry(Bytes::start(3, 0, 1), "").raw(&[0; 9]).refused(), "the key of metadata entry 0 is empty");
    let long = "k".repeat(65536);
    let message = u8_entry(Bytes::start(3, 0, 1), &long).refused();
    assert_eq!(message, "the key of metadata entry 0 has 65536 bytes, the limit is 65535");
}

#[test]
fn bad_values_are_refused() {
    let value = |t: ValueType| Bytes::start(3, 0, 1).entry("k", t);
    assert_eq!(value(ValueType::Bool).raw(&[2]).refused(), "metadata k is a bool with the value 2");
    let bools = value(ValueType::Array).u32(ValueType::Bool as u32).u64(3).raw(&[0, 1, 2]);
    assert_eq!(bools.refused(), "metadata k holds bools that are neither 0 nor 1");
    let text = value(ValueType::String).u64(4).raw(b"ab\xFFc");
    assert_eq!(text.refused(), format!("metadata k is not UTF-8 at byte {}", text.0.len() - 2));
    let texts = value(ValueType::Array).u32(ValueType::String as u32).u64(2).string("ok").u64(1).raw(b"\xC3");
    assert_eq!(texts.refused(), format!("metadata k is not UTF-8 at byte {}", texts.0.len() - 1));
    let unknown = Bytes::start(3, 0, 1).string("k").u32(13).raw(&[0; 8]);
    assert_eq!(unknown.refused(), "metadata k has the unknown value type 13");
}

#[test]
fn arrays_in_arrays_are_read_to_a_depth_and_refused_beyond() {
    let nested = |depth: usize| {
        let start = Bytes::start(3, 0, 1).entry("k", ValueType::Array);
        let bytes = (1..depth).fold(start, |bytes, _| bytes.u32(ValueType::Array as u32).u64(1));
        bytes.u32(ValueType::U8 as u32).u64(2).raw(&[5, 6])
    };
    for depth in 1..=4 {
        let file = nested(depth);
        let h = file.parse().unwrap();
        let Some(Value::Array(array)) = h.get("k") else { panic!("an array") };
        assert_eq!(array.range.end, file.0.len());
    }
    for depth in [5, 6, 100_000] {
        assert_eq!(nested(depth).refused(), "metadata k holds arrays in arrays more than 4 deep");
    }
}

#[test]
fn alignments_are_powers_of_two_from_8_on() {
    let aligned =
        |n: u32| Bytes::start(3, 1, 1).entry("general.alignment", ValueType::U32).u32(n).tensor("t", &[1], 0, 0);
    for n in [0, 1, 4, 7, 24, 33, u32::MAX] {
        assert_eq!(aligned(n).data(256).refused(), format!("general.alignment is {n}, not a power of two from 8 on"));
    }
    for n in [8, 16, 128] {
        assert_eq!(aligned(n).data(256).parse().unwrap().data_start % n as usize, 0);
    }
    assert!(aligned(1 << 31).data(256).refused().contains("truncated download?"));
    let text = Bytes::start(3, 0, 1).entry("general.alignment", ValueType::String).string("32");
    assert_eq!(text.refused(), "metadata general.alignment is of type string, expected an integer");
}

#[test]
fn a_vocabulary_of_130_thousand_strings_stays_in_the_file() {
    let tokens: Vec<String> = (0..130_000).map(|i| format!("token{i}")).collect();
    let start = Bytes::start(3, 0, 1).entry("t", ValueType::Array).u32(ValueType::String as u32).u64(130_000);
    let file = tokens.iter().fold(start, |bytes, t| bytes.string(t));
    let began = std::time::Instant::now();
    let h = file.parse().unwrap();
    // It takes a millisecond or two; the bound leaves room for a loaded machine and still tells it from seconds.
    assert!(began.elapsed().as_millis() < 500, "{:?}", began.elapsed());
    let Some(Value::Array(array)) = h.get("t") else { panic!("an array") };
    assert_eq!((array.len, array.range.end), (130_000, file.0.len()));
    assert!(h.strings(&file.0, "t").unwrap().iter().zip(&tokens).all(|(a, b)| a == b));
}
