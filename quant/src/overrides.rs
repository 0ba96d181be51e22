//! `--override-kv KEY=TYPE:VALUE`: metadata that the user changes on the way.

use mmada::gguf::{MetaValue, is_split_key};
use mmada::{Error, Result};

/// A changed or added value.
#[derive(Clone, PartialEq, Debug)]
pub struct Override {
    key: String,
    value: Given,
}

#[derive(Clone, PartialEq, Debug)]
enum Given {
    Int(i64),
    Float(f64),
    Bool(bool),
    Str(String),
}

impl Override {
    /// Parses `KEY=TYPE:VALUE`, with one of llama.cpp's types int, float, bool and str.
    ///
    /// # Errors
    /// `InvalidArgument` says what is wrong with it.
    pub fn parse(text: &str) -> Result<Override> {
        let wrong = |reason: String| Error::invalid(format!("--override-kv {text}: {reason}"));
        let parts = text.split_once('=').and_then(|(key, rest)| Some((key, rest.split_once(':')?)));
        let Some((key, (kind, value))) = parts.filter(|(key, _)| !key.is_empty()) else {
            return Err(wrong("expected KEY=TYPE:VALUE".into()));
        };
        if is_split_key(key) {
            return Err(wrong("how a file is split is not for overriding".into()));
        }
        let no = || wrong(format!("{value:?} is no {kind}"));
        let value = match kind {
            "int" => Given::Int(value.parse().map_err(|_| no())?),
            "float" => Given::Float(value.parse().map_err(|_| no())?),
            "bool" => Given::Bool(value.parse().map_err(|_| no())?),
            "str" => Given::Str(value.to_owned()),
            _ => return Err(wrong(format!("the type {kind} is none of int, float, bool, str"))),
        };
        Ok(Override { key: key.to_owned(), value })
    }

    /// Changes the value in place, keeping its width, or adds it.
    ///
    /// # Errors
    /// `InvalidArgument` where the key has a value of another kind, or of fewer bits.
    pub fn apply(&self, metadata: &mut Vec<(String, MetaValue)>) -> Result<()> {
        let Some((_, old)) = metadata.iter_mut().find(|(key, _)| *key == self.key) else {
            metadata.push((self.key.clone(), self.fresh()));
            return Ok(());
        };
        let kind = old.value_type();
        let new = match &self.value {
            Given::Int(n) => integer(old, *n),
            Given::Float(x) => match old {
                MetaValue::F32(_) => Some(MetaValue::F32(*x as f32)),
                MetaValue::F64(_) => Some(MetaValue::F64(*x)),
                _ => None,
            },
            Given::Bool(b) => matches!(old, MetaValue::Bool(_)).then_some(MetaValue::Bool(*b)),
            Given::Str(s) => matches!(old, MetaValue::String(_)).then(|| MetaValue::String(s.clone())),
        };
        *old = new.ok_or_else(|| {
            let shown = match &self.value {
                Given::Int(n) => n.to_string(),
                Given::Float(x) => x.to_string(),
                Given::Bool(b) => b.to_string(),
                Given::Str(s) => format!("{s:?}"),
            };
            Error::invalid(format!("--override-kv: {} is of type {kind} in the file, which {shown} is not", self.key))
        })?;
        Ok(())
    }

    fn fresh(&self) -> MetaValue {
        match &self.value {
            Given::Int(n) => u32::try_from(*n).map_or(MetaValue::I64(*n), MetaValue::U32),
            Given::Float(x) => MetaValue::F32(*x as f32),
            Given::Bool(b) => MetaValue::Bool(*b),
            Given::Str(s) => MetaValue::String(s.clone()),
        }
    }
}

/// `n` in the type of `old`.
fn integer(old: &MetaValue, n: i64) -> Option<MetaValue> {
    Some(match old {
        MetaValue::U8(_) => u8::try_from(n).ok()?.into(),
        MetaValue::I8(_) => i8::try_from(n).ok()?.into(),
        MetaValue::U16(_) => u16::try_from(n).ok()?.into(),
        MetaValue::I16(_) => i16::try_from(n).ok()?.into(),
        MetaValue::U32(_) => u32::try_from(n).ok()?.into(),
        MetaValue::I32(_) => i32::try_from(n).ok()?.into(),
        MetaValue::U64(_) => u64::try_from(n).ok()?.into(),
        MetaValue::I64(_) => n.into(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_the_type_that_the_file_has() {
        let mut metadata: Vec<(String, MetaValue)> = vec![
            ("a".into(), 5u16.into()),
            ("b".into(), 1.5f32.into()),
            ("c".into(), "x".into()),
            ("d".into(), true.into()),
        ];
        for text in ["a=int:700", "b=float:2.5e-3", "c=str:y=z:w", "d=bool:false", "e=int:-3", "f=int:9"] {
            Override::parse(text).unwrap().apply(&mut metadata).unwrap();
        }
        let values: Vec<MetaValue> = metadata.into_iter().map(|(_, value)| value).collect();
        let expected: [MetaValue; 6] =
            [700u16.into(), 0.0025f32.into(), "y=z:w".into(), false.into(), (-3i64).into(), 9u32.into()];
        assert_eq!(values, expected);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (text, word) in [
            ("a", "KEY=TYPE:VALUE"),
            ("=int:1", "KEY=TYPE:VALUE"),
            ("a=int", "KEY=TYPE:VALUE"),
            ("a=int:x", "no int"),
            ("a=u32:1", "none of"),
            ("split.no=int:1", "split"),
        ] {
            let error = Override::parse(text).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(text), "{error}");
        }
        let metadata: Vec<(String, MetaValue)> =
            vec![("a".into(), 5u16.into()), ("list".into(), vec![1u32].into()), ("f".into(), 1f32.into())];
        for text in ["a=int:70000", "a=int:-1", "a=str:5", "list=int:1", "f=int:1", "a=bool:true"] {
            let error = Override::parse(text).unwrap().apply(&mut metadata.clone()).unwrap_err().to_string();
            assert!(error.contains(text.split('=').next().unwrap()), "{error}");
        }
    }
}
