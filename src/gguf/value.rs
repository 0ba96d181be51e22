//! Values of metadata: as read (`Value`, arrays stay in the file) and as written (`MetaValue`, owned).

use std::fmt;
use std::ops::Range;

use crate::error::{Error, Result};
use crate::memory::Growing;

/// The numbers that GGUF gives to the types of its metadata values (`enum gguf_metadata_value_type`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    pub fn from_id(id: u32) -> Option<Self> {
        use ValueType::*;
        [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64].get(usize::try_from(id).ok()?).copied()
    }

    /// Bytes of a value of fixed size; `None` for strings and arrays.
    pub fn size(self) -> Option<usize> {
        match self {
            ValueType::U8 | ValueType::I8 | ValueType::Bool => Some(1),
            ValueType::U16 | ValueType::I16 => Some(2),
            ValueType::U32 | ValueType::I32 | ValueType::F32 => Some(4),
            ValueType::U64 | ValueType::I64 | ValueType::F64 => Some(8),
            ValueType::String | ValueType::Array => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            ValueType::U8 => "u8",
            ValueType::I8 => "i8",
            ValueType::U16 => "u16",
            ValueType::I16 => "i16",
            ValueType::U32 => "u32",
            ValueType::I32 => "i32",
            ValueType::F32 => "f32",
            ValueType::Bool => "bool",
            ValueType::String => "string",
            ValueType::Array => "array",
            ValueType::U64 => "u64",
            ValueType::I64 => "i64",
            ValueType::F64 => "f64",
        }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An array that stays in the file: 130,000 strings cost nothing until they are asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ArrayRef {
    pub element: ValueType,
    /// Number of elements.
    pub len: usize,
    /// The bytes of the elements (after the array's type and count), absolute in the file; checked when parsed.
    pub range: Range<usize>,
}

/// A value of the metadata of a file.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    U64(u64),
    I64(i64),
    F64(f64),
    Bool(bool),
    String(String),
    Array(ArrayRef),
}

impl Value {
    pub fn value_type(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::F32(_) => ValueType::F32,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F64(_) => ValueType::F64,
            Value::Bool(_) => ValueType::Bool,
            Value::String(_) => ValueType::String,
            Value::Array(_) => ValueType::Array,
        }
    }

    /// An integer of any width; `None` for other types.
    pub fn as_integer(&self) -> Option<i128> {
        Some(match *self {
            Value::U8(v) => v.into(),
            Value::I8(v) => v.into(),
            Value::U16(v) => v.into(),
            Value::I16(v) => v.into(),
            Value::U32(v) => v.into(),
            Value::I32(v) => v.into(),
            Value::U64(v) => v.into(),
            Value::I64(v) => v.into(),
            _ => return None,
        })
    }
}

/// A value to be written. As JSON it is the bare value.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
#[serde(untagged)]
pub enum MetaValue {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    U64(u64),
    I64(i64),
    F64(f64),
    Bool(bool),
    String(String),
    Array(MetaArray),
}

/// An array to be written.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
#[serde(untagged)]
pub enum MetaArray {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    String(Vec<String>),
    Array(Vec<MetaArray>),
}

impl MetaValue {
    /// A string as it is, anything else as JSON.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn into_text(self) -> Result<String> {
        let what = || "the text of a value of the metadata".to_owned();
        let value = match self {
            MetaValue::String(text) => return Ok(text),
            other => other,
        };
        let mut out = Growing::default();
        serde_json::to_writer(&mut out, &value).map_err(|e| match out.refused {
            0 => Error::Internal(format!("{} cannot be written: {e}", what())),
            bytes => Error::OutOfMemory { what: what(), bytes },
        })?;
        String::from_utf8(out.bytes).map_err(|e| Error::Internal(format!("{} is no text: {e}", what())))
    }
}

impl From<&str> for MetaValue {
    fn from(v: &str) -> Self {
        MetaValue::String(v.to_owned())
    }
}

/// For the types whose bytes are `to_le_bytes`: conversions, and `put` for a value and for an array of it.
macro_rules! numbers {
    ($($variant:ident $rust:ty),*) => {
        $(
            impl From<$rust> for MetaValue {
                fn from(v: $rust) -> Self { MetaValue::$variant(v) }
            }
            impl From<Vec<$rust>> for MetaValue {
                fn from(v: Vec<$rust>) -> Self { MetaValue::Array(MetaArray::$variant(v)) }
            }
        )*

        impl MetaValue {
            pub fn value_type(&self) -> ValueType {
                match self {
                    $(MetaValue::$variant(_) => ValueType::$variant,)*
                    MetaValue::Bool(_) => ValueType::Bool,
                    MetaValue::String(_) => ValueType::String,
                    MetaValue::Array(_) => ValueType::Array,
                }
            }

            /// Appends the type's number and the value, as the format has them after a key.
            pub(super) fn put(&self, out: &mut Vec<u8>) {
                out.extend((self.value_type() as u32).to_le_bytes());
                match self {
                    $(MetaValue::$variant(v) => out.extend(v.to_le_bytes()),)*
                    MetaValue::Bool(v) => out.push(u8::from(*v)),
                    MetaValue::String(v) => put_string(v, out),
                    MetaValue::Array(v) => v.put(out),
                }
            }
        }

        impl MetaArray {
            pub fn element(&self) -> ValueType {
                match self {
                    $(MetaArray::$variant(_) => ValueType::$variant,)*
                    MetaArray::Bool(_) => ValueType::Bool,
                    MetaArray::String(_) => ValueType::String,
                    MetaArray::Array(_) => ValueType::Array,
                }
            }

            #[allow(clippy::len_without_is_empty)]
            pub fn len(&self) -> usize {
                match self {
                    $(MetaArray::$variant(v) => v.len(),)*
                    MetaArray::Bool(v) => v.len(),
                    MetaArray::String(v) => v.len(),
                    MetaArray::Array(v) => v.len(),
                }
            }

            fn put(&self, out: &mut Vec<u8>) {
                out.extend((self.element() as u32).to_le_bytes());
                out.extend((self.len() as u64).to_le_bytes());
                match self {
                    $(MetaArray::$variant(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),)*
                    MetaArray::Bool(v) => out.extend(v.iter().map(|&v| u8::from(v))),
                    MetaArray::String(v) => v.iter().for_each(|v| put_string(v, out)),
                    MetaArray::Array(v) => v.iter().for_each(|v| v.put(out)),
                }
            }
        }
    };
}

numbers!(U8 u8, I8 i8, U16 u16, I16 i16, U32 u32, I32 i32, F32 f32, U64 u64, I64 i64, F64 f64);

macro_rules! others {
    ($($variant:ident $rust:ty),*) => { $(
        impl From<$rust> for MetaValue {
            fn from(v: $rust) -> Self { MetaValue::$variant(v) }
        }
        impl From<Vec<$rust>> for MetaValue {
            fn from(v: Vec<$rust>) -> Self { MetaValue::Array(MetaArray::$variant(v)) }
        }
    )* };
}

others!(Bool bool, String String);

pub(super) fn put_string(s: &str, out: &mut Vec<u8>) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}
