//! Bytes to a checked header. Nothing that the file says is used before it was compared with what the file holds:
//! every read goes through `Cursor`, counts are bounded by the bytes that are left, sums and products are checked.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Arguments;
use std::ops::Range;

use super::header::{Header, TensorInfo};
use super::value::{ArrayRef, Value, ValueType};
use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, GgmlType, MAGIC, MAX_DIMS, is_alignment};
use crate::error::{Error, Result};
use crate::memory::{try_collect, try_push, try_reserve_entry, try_string};

/// Arrays may hold arrays this deep; nothing that exists goes beyond two.
const MAX_NESTING: usize = 4;
/// The format's limit for keys; tensor names are far shorter.
const MAX_NAME_BYTES: usize = 65535;
/// The least bytes of a metadata entry: length of the key, type, a one-byte value.
const MIN_ENTRY_BYTES: usize = 8 + 4 + 1;
/// The least bytes of a tensor info: length of the name, number of dimensions, one dimension, type, offset.
const MIN_INFO_BYTES: usize = 8 + 4 + 8 + 4 + 8;

/// A place in the file, and the only way to read from it. `what` names what is being read, for errors.
pub(super) struct Cursor<'a, 'f> {
    bytes: &'a [u8],
    at: usize,
    file: &'f str,
}

impl<'a, 'f> Cursor<'a, 'f> {
    /// Reads from a part of the file only.
    pub(super) fn over(bytes: &'a [u8], range: Range<usize>, file: &'f str) -> Result<Self> {
        match bytes.get(..range.end) {
            Some(bytes) if range.start <= range.end => Ok(Cursor { bytes, at: range.start, file }),
            _ => Err(Error::format(file, "these are not the bytes that the header was read from")),
        }
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, n: usize, what: Arguments<'_>) -> Result<&'a [u8]> {
        match self.bytes[self.at..].get(..n) {
            Some(taken) => {
                self.at += n;
                Ok(taken)
            }
            None => Err(self.cut_off(n, what)),
        }
    }

    #[cold]
    fn cut_off(&self, n: usize, what: Arguments<'_>) -> Error {
        let (at, end) = (self.at, self.bytes.len());
        self.bad(format_args!("{what} needs {n} bytes at {at} but the file ends at {end} (truncated download?)"))
    }

    fn bad(&self, reason: Arguments<'_>) -> Error {
        Error::format(self.file, reason)
    }

    fn fixed<const N: usize>(&mut self, what: Arguments<'_>) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, what)?);
        Ok(out)
    }

    fn u32(&mut self, what: Arguments<'_>) -> Result<u32> {
        self.fixed(what).map(u32::from_le_bytes)
    }

    /// A u64 that is a length, a count or an offset.
    fn size(&mut self, what: Arguments<'_>) -> Result<usize> {
        let v = u64::from_le_bytes(self.fixed(what)?);
        usize::try_from(v).map_err(|_| self.bad(format_args!("{what} is {v}, more than this machine can address")))
    }

    /// A count of things that take at least `least` bytes each in what is left of the file.
    fn count(&mut self, least: usize, what: Arguments<'_>) -> Result<usize> {
        let n = self.size(what)?;
        if n > self.left() / least {
            let left = self.left();
            return Err(self.bad(format_args!("{what} is {n} but only {left} bytes are left of the file")));
        }
        Ok(n)
    }

    pub(super) fn string(&mut self, what: Arguments<'_>) -> Result<&'a str> {
        let len = self.size(what)?;
        let at = self.at;
        std::str::from_utf8(self.take(len, what)?)
            .map_err(|e| self.bad(format_args!("{what} is not UTF-8 at byte {}", at + e.valid_up_to())))
    }

    fn value_type(&mut self, what: Arguments<'_>) -> Result<ValueType> {
        let id = self.u32(what)?;
        ValueType::from_id(id).ok_or_else(|| self.bad(format_args!("{what} has the unknown value type {id}")))
    }

    /// A value of fixed size.
    pub(super) fn scalar(&mut self, t: ValueType, what: Arguments<'_>) -> Result<Value> {
        Ok(match t {
            ValueType::U8 => Value::U8(u8::from_le_bytes(self.fixed(what)?)),
            ValueType::I8 => Value::I8(i8::from_le_bytes(self.fixed(what)?)),
            ValueType::U16 => Value::U16(u16::from_le_bytes(self.fixed(what)?)),
            ValueType::I16 => Value::I16(i16::from_le_bytes(self.fixed(what)?)),
            ValueType::U32 => Value::U32(u32::from_le_bytes(self.fixed(what)?)),
            ValueType::I32 => Value::I32(i32::from_le_bytes(self.fixed(what)?)),
            ValueType::F32 => Value::F32(f32::from_le_bytes(self.fixed(what)?)),
            ValueType::U64 => Value::U64(u64::from_le_bytes(self.fixed(what)?)),
            ValueType::I64 => Value::I64(i64::from_le_bytes(self.fixed(what)?)),
            ValueType::F64 => Value::F64(f64::from_le_bytes(self.fixed(what)?)),
            ValueType::Bool => match self.fixed(what)? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [v] => return Err(self.bad(format_args!("{what} is a bool with the value {v}"))),
            },
            ValueType::String | ValueType::Array => {
                return Err(self.bad(format_args!("{what} is of type {t}, expected a number")));
            }
        })
    }

    /// Element type and count of an array whose elements follow. The count is bounded by the bytes left.
    pub(super) fn array_start(&mut self, what: Arguments<'_>) -> Result<(ValueType, usize)> {
        let element = self.value_type(what)?;
        let least = match element {
            ValueType::Array => 4 + 8,
            ValueType::String => 8,
            fixed => fixed.size().unwrap_or(1),
        };
        Ok((element, self.count(least, format_args!("the length of {what}"))?))
    }

    /// Checks an array and passes over it.
    fn array(&mut self, nesting: usize, what: Arguments<'_>) -> Result<ArrayRef> {
        if nesting > MAX_NESTING {
            return Err(self.bad(format_args!("{what} holds arrays in arrays more than {MAX_NESTING} deep")));
        }
        let (element, len) = self.array_start(what)?;
        let start = self.at;
        match element {
            ValueType::String => {
                for _ in 0..len {
                    self.string(what)?;
                }
            }
            ValueType::Array => {
                for _ in 0..len {
                    self.array(nesting + 1, what)?;
                }
            }
            fixed => {
                // `array_start` has checked that the product is within the file.
                let taken = self.take(len * fixed.size().unwrap_or(1), what)?;
                if fixed == ValueType::Bool && taken.iter().any(|&v| v > 1) {
                    return Err(self.bad(format_args!("{what} holds bools that are neither 0 nor 1")));
                }
            }
        }
        Ok(ArrayRef { element, len, range: start..self.at })
    }

    fn value(&mut self, what: Arguments<'_>) -> Result<Value> {
        match self.value_type(what)? {
            ValueType::String => {
                // A hostile file may have a string as long as itself.
                let s = self.string(what)?;
                Ok(Value::String(try_string(s, &format!("{}: {what}", self.file))?))
            }
            ValueType::Array => self.array(1, what).map(Value::Array),
            fixed => self.scalar(fixed, what),
        }
    }
}

/// See `Header::parse`.
pub(super) fn parse(bytes: &[u8], file: &str) -> Result<Header> {
    let mut cursor = Cursor { bytes, at: 0, file };
    let version = preamble(&mut cursor)?;
    let tensor_count = cursor.count(MIN_INFO_BYTES, format_args!("the number of tensors"))?;
    let entry_count = cursor.count(MIN_ENTRY_BYTES, format_args!("the number of metadata entries"))?;
    let (metadata, keys) = metadata(&mut cursor, entry_count)?;
    let mut header = Header {
        version,
        alignment: DEFAULT_ALIGNMENT,
        metadata,
        tensors: Vec::new(),
        data_start: 0,
        file: file.to_owned(),
        keys,
        names: HashMap::new(),
    };
    if let Some(n) = header.opt_usize(ALIGNMENT_KEY)? {
        if !is_alignment(n) {
            return Err(Error::format(file, format_args!("{ALIGNMENT_KEY} is {n}, not a power of two from 8 on")));
        }
        header.alignment = n;
    }
    (header.tensors, header.names) = tensors(&mut cursor, tensor_count)?;
    header.data_start = cursor.at.checked_next_multiple_of(header.alignment).ok_or_else(|| {
        cursor.bad(format_args!("{ALIGNMENT_KEY} {} puts the tensors beyond what can be addressed", header.alignment))
    })?;
    place(&mut header, bytes.len())?;
    Ok(header)
}

/// Magic and version.
fn preamble(cursor: &mut Cursor<'_, '_>) -> Result<u32> {
    let magic: [u8; 4] = cursor.fixed(format_args!("the magic number"))?;
    if magic != MAGIC {
        let found = magic.escape_ascii();
        return Err(cursor.bad(format_args!("not a GGUF file: it begins with \"{found}\" instead of \"GGUF\"")));
    }
    let version = cursor.u32(format_args!("the version"))?;
    match version {
        // Version 2 differs only in that it says nothing of big-endian files.
        2 | 3 => Ok(version),
        v if v != 0 && v.trailing_zeros() >= 16 => {
            Err(Error::unsupported(cursor.file, "a big-endian GGUF file; only little-endian ones can be read"))
        }
        v => Err(Error::unsupported(cursor.file, format_args!("GGUF version {v}; versions 2 and 3 can be read"))),
    }
}

type Indexed<T> = (Vec<T>, HashMap<String, usize>);

fn metadata(cursor: &mut Cursor<'_, '_>, count: usize) -> Result<Indexed<(String, Value)>> {
    const WHAT: &str = "the metadata of a model";
    let mut entries = Vec::new();
    let mut index = HashMap::new();
    for i in 0..count {
        try_reserve_entry(&mut index, WHAT)?;
        let key = name(cursor, format_args!("the key of metadata entry {i}"))?;
        let value = cursor.value(format_args!("metadata {key}"))?;
        match index.entry(key.to_owned()) {
            Entry::Occupied(_) => return Err(cursor.bad(format_args!("metadata {key} occurs twice"))),
            Entry::Vacant(slot) => slot.insert(entries.len()),
        };
        try_push(&mut entries, (key.to_owned(), value), WHAT)?;
    }
    Ok((entries, index))
}

fn name<'a>(cursor: &mut Cursor<'a, '_>, what: Arguments<'_>) -> Result<&'a str> {
    let s = cursor.string(what)?;
    match s.len() {
        0 => Err(cursor.bad(format_args!("{what} is empty"))),
        n if n > MAX_NAME_BYTES => Err(cursor.bad(format_args!("{what} has {n} bytes, the limit is {MAX_NAME_BYTES}"))),
        _ => Ok(s),
    }
}

/// Tensor infos whose ranges are still relative to the start of the data.
fn tensors(cursor: &mut Cursor<'_, '_>, count: usize) -> Result<Indexed<TensorInfo>> {
    const WHAT: &str = "the list of a model's tensors";
    let mut infos = Vec::new();
    let mut index = HashMap::new();
    for i in 0..count {
        try_reserve_entry(&mut index, WHAT)?;
        let info = tensor(cursor, i)?;
        match index.entry(info.name.clone()) {
            Entry::Occupied(_) => return Err(cursor.bad(format_args!("tensor {} occurs twice", info.name))),
            Entry::Vacant(slot) => slot.insert(infos.len()),
        };
        try_push(&mut infos, info, WHAT)?;
    }
    Ok((infos, index))
}

fn tensor(cursor: &mut Cursor<'_, '_>, i: usize) -> Result<TensorInfo> {
    let name = name(cursor, format_args!("the name of tensor {i}"))?;
    let rank = cursor.u32(format_args!("the number of dimensions of tensor {name}"))? as usize;
    if !(1..=MAX_DIMS).contains(&rank) {
        return Err(cursor.bad(format_args!("tensor {name} has {rank} dimensions, not 1 to {MAX_DIMS}")));
    }
    let mut dims = Vec::with_capacity(rank);
    for d in 0..rank {
        dims.push(cursor.size(format_args!("dimension {d} of tensor {name}"))?);
    }
    let id = cursor.u32(format_args!("the type of tensor {name}"))?;
    let dtype = GgmlType::from_id(id)
        .ok_or_else(|| Error::unsupported(cursor.file, format_args!("tensor {name} has the unknown type {id}")))?;
    let offset = cursor.size(format_args!("the offset of tensor {name}"))?;
    let end = tensor_bytes(dtype, &dims)
        .and_then(|bytes| offset.checked_add(bytes).ok_or("its end overflows"))
        .map_err(|reason| cursor.bad(format_args!("tensor {name} of type {dtype} and shape {dims:?}: {reason}")))?;
    Ok(TensorInfo { name: name.to_owned(), dtype, dims, range: offset..end })
}

/// Bytes of a tensor, or why it cannot be.
pub(super) fn tensor_bytes(dtype: GgmlType, dims: &[usize]) -> std::result::Result<usize, &'static str> {
    if dims.contains(&0) {
        return Err("a dimension is zero");
    }
    let elements = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or("the number of elements overflows")?;
    let cols = dims.first().copied().unwrap_or(1);
    if !cols.is_multiple_of(dtype.block_len()) {
        return Err("its rows are not whole blocks");
    }
    dtype.row_bytes(cols).and_then(|row| row.checked_mul(elements / cols)).ok_or("its size in bytes overflows")
}

/// Makes the ranges absolute; each must be aligned, inside the file with its padding, and clear of the others.
fn place(header: &mut Header, file_len: usize) -> Result<()> {
    let Header { alignment, data_start, ref file, ref mut tensors, .. } = *header;
    for info in tensors.iter_mut() {
        let (name, Range { start, end }) = (&info.name, info.range.clone());
        if !start.is_multiple_of(alignment) {
            let reason = format_args!("tensor {name} is at offset {start}, not a multiple of {alignment}");
            return Err(Error::format(file, reason));
        }
        let overflow = || Error::format(file, format_args!("tensor {name} ends beyond what can be addressed"));
        // `start <= end`, so only the end can overflow.
        let absolute = end.checked_add(data_start).ok_or_else(overflow)?;
        info.range = start + data_start..absolute;
        if absolute > file_len {
            let Range { start, end } = info.range;
            let reason = format_args!(
                "tensor {name} needs bytes {start}..{end} but the file ends at {file_len} (truncated download?)"
            );
            return Err(Error::format(file, reason));
        }
    }
    let mut order = try_collect(tensors.iter(), "the order of a model's tensors")?;
    order.sort_unstable_by_key(|info| (info.range.start, info.range.end));
    if let Some(pair) = order.windows(2).find(|pair| pair[0].range.end > pair[1].range.start) {
        return Err(Error::format(file, format_args!("tensors {} and {} overlap", pair[0].name, pair[1].name)));
    }
    // The format pads every tensor, the last one too: a file without its end is cut off, even if only zeros are lost.
    let padded = |last: &TensorInfo| last.range.end.checked_next_multiple_of(alignment).unwrap_or(usize::MAX);
    match order.last() {
        Some(last) if padded(last) > file_len => {
            let (name, Range { start, end }, padded) = (&last.name, &last.range, padded(last));
            let reason = format_args!(
                "tensor {name} needs bytes {start}..{end} and padding up to {padded} but the file ends at {file_len} (truncated download?)"
            );
            Err(Error::format(file, reason))
        }
        _ => Ok(()),
    }
}
