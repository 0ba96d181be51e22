//! What a file says of itself: metadata with typed, checked access, and where every tensor lies.

use std::collections::HashMap;
use std::ops::Range;

use super::GgmlType;
use super::reader::{self, Cursor};
use super::value::{ArrayRef, MetaArray, MetaValue, Value, ValueType};
use crate::error::{Error, Result};
use crate::memory::{try_push, try_string, try_with_capacity};

/// Where a tensor lies and how it is stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TensorInfo {
    pub name: String,
    pub dtype: GgmlType,
    /// In ggml's order, the fastest first: a matrix is `[cols, rows]`. One to four dimensions, none of them zero.
    pub dims: Vec<usize>,
    /// Its bytes, absolute in the file; inside the file and overlapping no other tensor.
    pub range: Range<usize>,
}

impl TensorInfo {
    /// Elements of a row: the fastest dimension.
    pub fn cols(&self) -> usize {
        self.dims.first().copied().unwrap_or(1)
    }

    /// Rows: the product of the other dimensions (which was checked not to overflow).
    pub fn rows(&self) -> usize {
        self.dims.iter().skip(1).product()
    }

    /// The tensor's bytes. `bytes` is the file that was parsed; empty if it is another, shorter one.
    pub fn data<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        bytes.get(self.range.clone()).unwrap_or_default()
    }
}

/// The checked header of a GGUF file. It owns what is small; arrays and tensors stay in the file's bytes.
#[derive(Clone, Debug)]
pub struct Header {
    pub version: u32,
    /// Tensors start at multiples of this.
    pub alignment: usize,
    /// In the order of the file; keys are unique.
    pub metadata: Vec<(String, Value)>,
    /// In the order of the file; names are unique.
    pub tensors: Vec<TensorInfo>,
    /// Where the tensors' bytes begin.
    pub data_start: usize,
    pub(super) file: String,
    pub(super) keys: HashMap<String, usize>,
    pub(super) names: HashMap<String, usize>,
}

impl Header {
    /// Reads the header of the file whose content is `bytes`; `file` names it in errors. Every count, offset and
    /// string is checked, and that every tensor lies inside `bytes` with its padding. Of `bytes` only the header is
    /// touched.
    ///
    /// # Errors
    /// `Format` for what is not GGUF, is cut off or contradicts itself; `Unsupported` for other versions,
    /// big-endian files and unknown types.
    pub fn parse(bytes: &[u8], file: &str) -> Result<Header> {
        reader::parse(bytes, file)
    }

    /// The name that errors about this file begin with.
    pub fn file(&self) -> &str {
        &self.file
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).and_then(|&at| self.metadata.get(at)).map(|(_, value)| value)
    }

    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.names.get(name).and_then(|&at| self.tensors.get(at))
    }

    /// The tensor, or an error that names the file and the tensor.
    pub fn require_tensor(&self, name: &str) -> Result<&TensorInfo> {
        self.tensor(name).ok_or_else(|| Error::format(&self.file, format_args!("tensor {name} is missing")))
    }

    pub fn str(&self, key: &str) -> Result<&str> {
        self.opt_str(key)?.ok_or_else(|| self.missing(key))
    }
    pub fn usize(&self, key: &str) -> Result<usize> {
        self.opt_usize(key)?.ok_or_else(|| self.missing(key))
    }
    pub fn u32(&self, key: &str) -> Result<u32> {
        self.opt_u32(key)?.ok_or_else(|| self.missing(key))
    }
    pub fn u64(&self, key: &str) -> Result<u64> {
        self.opt_u64(key)?.ok_or_else(|| self.missing(key))
    }
    pub fn f32(&self, key: &str) -> Result<f32> {
        self.opt_f32(key)?.ok_or_else(|| self.missing(key))
    }
    pub fn bool(&self, key: &str) -> Result<bool> {
        self.opt_bool(key)?.ok_or_else(|| self.missing(key))
    }

    pub fn opt_str(&self, key: &str) -> Result<Option<&str>> {
        self.get(key)
            .map(|value| match value {
                Value::String(s) => Ok(s.as_str()),
                other => Err(self.wrong(key, other, "a string")),
            })
            .transpose()
    }
    pub fn opt_usize(&self, key: &str) -> Result<Option<usize>> {
        self.integer(key, usize::MAX)
    }
    pub fn opt_u32(&self, key: &str) -> Result<Option<u32>> {
        self.integer(key, u32::MAX)
    }
    pub fn opt_u64(&self, key: &str) -> Result<Option<u64>> {
        self.integer(key, u64::MAX)
    }
    pub fn opt_f32(&self, key: &str) -> Result<Option<f32>> {
        self.get(key)
            .map(|value| match *value {
                Value::F32(v) => Ok(v),
                Value::F64(v) => Ok(v as f32),
                ref other => Err(self.wrong(key, other, "a float")),
            })
            .transpose()
    }
    pub fn opt_bool(&self, key: &str) -> Result<Option<bool>> {
        self.get(key)
            .map(|value| match value {
                Value::Bool(v) => Ok(*v),
                other => Err(self.wrong(key, other, "a bool")),
            })
            .transpose()
    }

    /// The integers of an array of any integer type. `bytes` is the file that was parsed, here and below.
    pub fn usizes(&self, bytes: &[u8], key: &str) -> Result<Vec<usize>> {
        self.opt_usizes(bytes, key)?.ok_or_else(|| self.missing(key))
    }
    pub fn f32s(&self, bytes: &[u8], key: &str) -> Result<Vec<f32>> {
        self.opt_f32s(bytes, key)?.ok_or_else(|| self.missing(key))
    }
    pub fn strings<'a>(&self, bytes: &'a [u8], key: &str) -> Result<Vec<&'a str>> {
        self.opt_strings(bytes, key)?.ok_or_else(|| self.missing(key))
    }

    pub fn opt_usizes(&self, bytes: &[u8], key: &str) -> Result<Option<Vec<usize>>> {
        self.numbers(bytes, key, "integers", |value| {
            let v = value.as_integer()?;
            Some(usize::try_from(v).map_err(|_| self.bad(key, format_args!("holds {v}, which is out of range"))))
        })
    }

    pub fn opt_f32s(&self, bytes: &[u8], key: &str) -> Result<Option<Vec<f32>>> {
        self.numbers(bytes, key, "floats", |value| match value {
            Value::F32(v) => Some(Ok(*v)),
            Value::F64(v) => Some(Ok(*v as f32)),
            _ => None,
        })
    }

    pub fn opt_strings<'a>(&self, bytes: &'a [u8], key: &str) -> Result<Option<Vec<&'a str>>> {
        let Some(array) = self.array(key, "strings")? else { return Ok(None) };
        if array.element != ValueType::String {
            return Err(self.wrong_array(key, array, "strings"));
        }
        let mut cursor = self.elements(bytes, array)?;
        let mut strings = try_with_capacity(array.len, ARRAY)?;
        for _ in 0..array.len {
            strings.push(cursor.string(format_args!("metadata {key}"))?);
        }
        Ok(Some(strings))
    }

    /// Reads an array of numbers; `convert` gives `None` for elements that are not `wanted`.
    fn numbers<T>(
        &self,
        bytes: &[u8],
        key: &str,
        wanted: &str,
        convert: impl Fn(&Value) -> Option<Result<T>>,
    ) -> Result<Option<Vec<T>>> {
        let Some(array) = self.array(key, wanted)? else { return Ok(None) };
        if array.element.size().is_none() {
            return Err(self.wrong_array(key, array, wanted));
        }
        let mut cursor = self.elements(bytes, array)?;
        let mut numbers = try_with_capacity(array.len, ARRAY)?;
        for _ in 0..array.len {
            let value = cursor.scalar(array.element, format_args!("metadata {key}"))?;
            numbers.push(convert(&value).unwrap_or_else(|| Err(self.wrong_array(key, array, wanted)))?);
        }
        Ok(Some(numbers))
    }

    /// The value with its array read, as the writer takes it: for copying metadata from file to file.
    pub fn owned(&self, bytes: &[u8], key: &str) -> Result<MetaValue> {
        Ok(match self.get(key).ok_or_else(|| self.missing(key))? {
            Value::U8(v) => MetaValue::U8(*v),
            Value::I8(v) => MetaValue::I8(*v),
            Value::U16(v) => MetaValue::U16(*v),
            Value::I16(v) => MetaValue::I16(*v),
            Value::U32(v) => MetaValue::U32(*v),
            Value::I32(v) => MetaValue::I32(*v),
            Value::F32(v) => MetaValue::F32(*v),
            Value::U64(v) => MetaValue::U64(*v),
            Value::I64(v) => MetaValue::I64(*v),
            Value::F64(v) => MetaValue::F64(*v),
            Value::Bool(v) => MetaValue::Bool(*v),
            Value::String(v) => MetaValue::String(try_string(v, "a string of the metadata")?),
            Value::Array(array) => {
                let mut cursor = self.elements(bytes, array)?;
                MetaValue::Array(owned_array(&mut cursor, array.element, array.len, key)?)
            }
        })
    }

    fn integer<T: TryFrom<i128> + std::fmt::Display>(&self, key: &str, max: T) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let v = value.as_integer().ok_or_else(|| self.wrong(key, value, "an integer"))?;
        let fits = T::try_from(v);
        fits.map(Some).map_err(|_| self.bad(key, format_args!("is {v}, which is not between 0 and {max}")))
    }

    fn array(&self, key: &str, wanted: &str) -> Result<Option<&ArrayRef>> {
        self.get(key)
            .map(|value| match value {
                Value::Array(array) => Ok(array),
                other => Err(self.wrong(key, other, format_args!("an array of {wanted}"))),
            })
            .transpose()
    }

    fn elements<'a, 'f>(&'f self, bytes: &'a [u8], array: &ArrayRef) -> Result<Cursor<'a, 'f>> {
        Cursor::over(bytes, array.range.clone(), &self.file)
    }

    fn missing(&self, key: &str) -> Error {
        self.bad(key, "is missing")
    }
    fn wrong(&self, key: &str, found: &Value, wanted: impl std::fmt::Display) -> Error {
        self.bad(key, format_args!("is of type {}, expected {wanted}", found.value_type()))
    }
    fn wrong_array(&self, key: &str, found: &ArrayRef, wanted: &str) -> Error {
        self.bad(key, format_args!("is an array of {}, expected an array of {wanted}", found.element))
    }
    fn bad(&self, key: &str, reason: impl std::fmt::Display) -> Error {
        Error::format(&self.file, format_args!("metadata {key} {reason}"))
    }
}

/// What memory for an array is asked for.
const ARRAY: &str = "an array of the metadata";

/// Reads `len` elements at the cursor. Nesting was limited when the file was parsed.
fn owned_array(cursor: &mut Cursor<'_, '_>, element: ValueType, len: usize, key: &str) -> Result<MetaArray> {
    macro_rules! read {
        ($($variant:ident),*) => {
            match element {
                $(ValueType::$variant => {
                    let mut v = Vec::new();
                    for _ in 0..len {
                        if let Value::$variant(x) = cursor.scalar(element, format_args!("metadata {key}"))? {
                            try_push(&mut v, x, ARRAY)?;
                        }
                    }
                    MetaArray::$variant(v)
                })*
                ValueType::String => {
                    let mut v = Vec::new();
                    for _ in 0..len {
                        let s = try_string(cursor.string(format_args!("metadata {key}"))?, ARRAY)?;
                        try_push(&mut v, s, ARRAY)?;
                    }
                    MetaArray::String(v)
                }
                ValueType::Array => {
                    let mut v = Vec::new();
                    for _ in 0..len {
                        let (element, len) = cursor.array_start(format_args!("metadata {key}"))?;
                        try_push(&mut v, owned_array(cursor, element, len, key)?, ARRAY)?;
                    }
                    MetaArray::Array(v)
                }
            }
        };
    }
    Ok(read!(U8, I8, U16, I16, U32, I32, F32, U64, I64, F64, Bool))
}
