//! A pickle machine for the state dicts of `torch.save` and nothing else. It executes nothing: the only globals it
//! knows are a handful of names that stand for plain data, and any other name or opcode is refused.
//! Opcodes: Python's pickletools. What torch writes: torch/serialization.py and torch/_utils.py.
//!
//! All containers live in one arena and refer to each other by index, so that no nesting in a hostile file can
//! exhaust the stack.

use std::collections::HashMap;

/// The element type of a storage, as its Python class says it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StorageType {
    F32,
    F16,
    BF16,
    /// A type that no weight has: its name and bytes per element.
    Other(&'static str, u64),
}

/// A tensor of a state dict: a window into a storage. Offsets and strides count elements.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PickledTensor {
    pub dtype: StorageType,
    /// The storage's file is `data/KEY`.
    pub key: String,
    /// Elements of the storage.
    pub storage_len: u64,
    pub offset: u64,
    pub shape: Vec<u64>,
    pub strides: Vec<u64>,
}

#[derive(Clone, Copy, Debug)]
enum Value {
    None,
    Bool,
    Int(i64),
    Float,
    /// Index into the arena.
    Ref(usize),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(StorageType),
}

#[derive(Debug)]
enum Object {
    Text(String),
    Tuple(Vec<Value>),
    List(Vec<Value>),
    Dict(Vec<(Value, Value)>),
    Global(Global),
    Storage { dtype: StorageType, key: String, len: u64 },
    Tensor(PickledTensor),
}

/// The globals of a state dict.
fn global(module: &str, name: &str) -> Option<Global> {
    use StorageType::{BF16, F16, F32, Other};
    Some(match (module, name) {
        ("collections", "OrderedDict") => Global::OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
        ("torch", "FloatStorage") => Global::Storage(F32),
        ("torch", "HalfStorage") => Global::Storage(F16),
        ("torch", "BFloat16Storage") => Global::Storage(BF16),
        ("torch", "DoubleStorage") => Global::Storage(Other("f64", 8)),
        ("torch", "LongStorage") => Global::Storage(Other("i64", 8)),
        ("torch", "IntStorage") => Global::Storage(Other("i32", 4)),
        ("torch", "ShortStorage") => Global::Storage(Other("i16", 2)),
        ("torch", "CharStorage") => Global::Storage(Other("i8", 1)),
        ("torch", "ByteStorage") => Global::Storage(Other("u8", 1)),
        ("torch", "BoolStorage") => Global::Storage(Other("bool", 1)),
        _ => return None,
    })
}

/// The tensors of a pickled state dict, by name, in the file's order. Entries that are no tensors are left out.
/// The error is a reason without the file's name.
pub fn state_dict(pickle: &[u8]) -> Result<Vec<(String, PickledTensor)>, String> {
    let mut machine =
        Machine { input: pickle, at: 0, stack: vec![], marks: vec![], memo: HashMap::new(), arena: vec![] };
    let top = machine.run().map_err(|reason| format!("{reason} (at byte {} of data.pkl)", machine.at))?;
    let Some(Object::Dict(entries)) = machine.object(top) else {
        return Err("data.pkl holds no dictionary of tensors".into());
    };
    let mut tensors = Vec::new();
    for &(key, value) in entries {
        if let (Ok(key), Some(Object::Tensor(tensor))) = (machine.text(key), machine.object(value)) {
            tensors.push((key.to_owned(), tensor.clone()));
        }
    }
    if tensors.is_empty() {
        return Err("data.pkl holds a dictionary with no tensors at its top".into());
    }
    Ok(tensors)
}

struct Machine<'a> {
    input: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Stack heights at the MARK opcodes.
    marks: Vec<usize>,
    memo: HashMap<u64, Value>,
    arena: Vec<Object>,
}

type Outcome<T> = Result<T, String>;

impl<'a> Machine<'a> {
    fn run(&mut self) -> Outcome<Value> {
        loop {
            let op = self.byte()?;
            match op {
                b'.' => return self.pop(), // STOP
                0x80 => match self.byte()? {
                    2..=5 => {}
                    n => return Err(format!("pickle protocol {n} is not supported")),
                },
                0x95 => drop(self.take(8)?), // FRAME
                b'(' => self.marks.push(self.stack.len()),
                b'N' => self.stack.push(Value::None),
                0x88 | 0x89 => self.stack.push(Value::Bool),
                b'K' => self.int(1)?,
                b'M' => self.int(2)?,
                b'J' => self.int(4)?,
                0x8a => self.long()?,
                b'G' => {
                    self.take(8)?;
                    self.stack.push(Value::Float);
                }
                b'X' => self.unicode(4)?,
                0x8c => self.unicode(1)?,
                0x8d => self.unicode(8)?,
                b')' => self.put_object(Object::Tuple(vec![])),
                0x85..=0x87 => {
                    let n = usize::from(op - 0x84);
                    let items = self.pop_many(n)?;
                    self.put_object(Object::Tuple(items));
                }
                b't' => {
                    let items = self.pop_mark()?;
                    self.put_object(Object::Tuple(items));
                }
                b']' => self.put_object(Object::List(vec![])),
                b'a' | b'e' => self.append(op == b'e')?,
                b'}' => self.put_object(Object::Dict(vec![])),
                b's' | b'u' => self.set_items(op == b'u')?,
                b'q' | b'r' | 0x94 => self.memoize(op)?,
                b'h' | b'j' => self.recall(op)?,
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.push_global(module, name)?;
                }
                0x93 => self.stack_global()?,
                b'Q' => self.persistent()?,
                b'R' => self.reduce()?,
                b'b' => {
                    // BUILD: torch hangs `_metadata` on the dictionary; it says nothing about the tensors.
                    self.pop()?;
                    self.top()?;
                }
                other => return Err(format!("pickle opcode {other:#04x} does not belong to a state dict")),
            }
        }
    }

    fn take(&mut self, n: usize) -> Outcome<&'a [u8]> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.input.len()).ok_or("the pickle is cut off")?;
        let bytes = &self.input[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn byte(&mut self) -> Outcome<u8> {
        Ok(self.take(1)?[0])
    }

    /// A little-endian number of up to 8 bytes.
    fn unsigned(&mut self, bytes: usize) -> Outcome<u64> {
        Ok(self.take(bytes)?.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)))
    }

    /// BININT is signed, BININT1 and BININT2 are not.
    fn int(&mut self, bytes: usize) -> Outcome<()> {
        let n = self.unsigned(bytes)?;
        self.stack.push(Value::Int(if bytes == 4 { i64::from(n as u32 as i32) } else { n as i64 }));
        Ok(())
    }

    fn long(&mut self) -> Outcome<()> {
        let n = usize::from(self.byte()?);
        if n > 8 {
            return Err("a number is larger than 64 bits".into());
        }
        let bits = self.unsigned(n)?;
        let unused = 64 - 8 * n as u32;
        self.stack.push(Value::Int(if n == 0 { 0 } else { ((bits << unused) as i64) >> unused }));
        Ok(())
    }

    fn unicode(&mut self, length_bytes: usize) -> Outcome<()> {
        let n = self.unsigned(length_bytes)?;
        let bytes = self.take(usize::try_from(n).map_err(|_| "the pickle is cut off")?)?;
        let text = std::str::from_utf8(bytes).map_err(|_| "a string is not UTF-8")?.to_owned();
        self.put_object(Object::Text(text));
        Ok(())
    }

    fn line(&mut self) -> Outcome<&'a str> {
        let rest = &self.input[self.at..];
        let n = rest.iter().position(|&b| b == b'\n').ok_or("the pickle is cut off")?;
        self.at += n + 1;
        std::str::from_utf8(&rest[..n]).map_err(|_| "a global's name is not UTF-8".into())
    }

    fn put_object(&mut self, object: Object) {
        self.stack.push(Value::Ref(self.arena.len()));
        self.arena.push(object);
    }

    fn pop(&mut self) -> Outcome<Value> {
        // What lies below the last mark is not this opcode's to take.
        if self.marks.last().is_some_and(|&mark| self.stack.len() <= mark) {
            return Err("the pickle's stack runs empty".into());
        }
        self.stack.pop().ok_or_else(|| "the pickle's stack runs empty".into())
    }

    fn top(&self) -> Outcome<Value> {
        self.stack.last().copied().ok_or_else(|| "the pickle's stack runs empty".into())
    }

    fn pop_many(&mut self, n: usize) -> Outcome<Vec<Value>> {
        let mut items = (0..n).map(|_| self.pop()).collect::<Outcome<Vec<_>>>()?;
        items.reverse();
        Ok(items)
    }

    fn pop_mark(&mut self) -> Outcome<Vec<Value>> {
        let mark = self.marks.pop().ok_or("the pickle has no mark where one is needed")?;
        if mark > self.stack.len() {
            return Err("the pickle's stack runs empty".into());
        }
        Ok(self.stack.split_off(mark))
    }

    fn append(&mut self, many: bool) -> Outcome<()> {
        let items = if many { self.pop_mark()? } else { vec![self.pop()?] };
        match self.top()? {
            Value::Ref(i) => match self.arena.get_mut(i) {
                Some(Object::List(list)) => list.extend(items),
                _ => return Err("something is appended to what is no list".into()),
            },
            _ => return Err("something is appended to what is no list".into()),
        }
        Ok(())
    }

    fn set_items(&mut self, many: bool) -> Outcome<()> {
        let items = if many { self.pop_mark()? } else { self.pop_many(2)? };
        if !items.len().is_multiple_of(2) {
            return Err("a dictionary has a key without a value".into());
        }
        match self.top()? {
            Value::Ref(i) => match self.arena.get_mut(i) {
                Some(Object::Dict(dict)) => dict.extend(items.chunks_exact(2).map(|kv| (kv[0], kv[1]))),
                _ => return Err("an item is set in what is no dictionary".into()),
            },
            _ => return Err("an item is set in what is no dictionary".into()),
        }
        Ok(())
    }

    fn memoize(&mut self, op: u8) -> Outcome<()> {
        let slot = match op {
            b'q' => self.unsigned(1)?,
            b'r' => self.unsigned(4)?,
            _ => self.memo.len() as u64,
        };
        let top = self.top()?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn recall(&mut self, op: u8) -> Outcome<()> {
        let slot = self.unsigned(if op == b'h' { 1 } else { 4 })?;
        let value = *self.memo.get(&slot).ok_or("the pickle recalls what it never kept")?;
        self.stack.push(value);
        Ok(())
    }

    fn push_global(&mut self, module: &str, name: &str) -> Outcome<()> {
        let global = global(module, name)
            .ok_or_else(|| format!("it asks for {module}.{name}, which no state dict needs; refused"))?;
        self.put_object(Object::Global(global));
        Ok(())
    }

    fn stack_global(&mut self) -> Outcome<()> {
        let (name, module) = (self.pop()?, self.pop()?);
        let (module, name) = (self.text(module)?.to_owned(), self.text(name)?.to_owned());
        self.push_global(&module, &name)
    }

    fn object(&self, value: Value) -> Option<&Object> {
        match value {
            Value::Ref(i) => self.arena.get(i),
            _ => None,
        }
    }

    fn text(&self, value: Value) -> Outcome<&str> {
        match self.object(value) {
            Some(Object::Text(text)) => Ok(text),
            _ => Err("a string is expected and something else found".into()),
        }
    }

    fn tuple(&self, value: Value) -> Outcome<&[Value]> {
        match self.object(value) {
            Some(Object::Tuple(items)) => Ok(items),
            _ => Err("a tuple is expected and something else found".into()),
        }
    }

    fn count(value: Value) -> Outcome<u64> {
        match value {
            Value::Int(n) => u64::try_from(n).map_err(|_| format!("{n} is no count")),
            _ => Err("a count is expected and something else found".into()),
        }
    }

    fn counts(&self, value: Value) -> Outcome<Vec<u64>> {
        self.tuple(value)?.iter().map(|&v| Self::count(v)).collect()
    }

    /// BINPERSID: ('storage', torch.FloatStorage, key, location, elements).
    fn persistent(&mut self) -> Outcome<()> {
        let id = self.pop()?;
        let &[kind, class, key, _location, len] = self.tuple(id)? else {
            return Err("a persistent id is not that of a storage".into());
        };
        let (true, Some(&Object::Global(Global::Storage(dtype)))) = (self.text(kind)? == "storage", self.object(class))
        else {
            return Err("a persistent id is not that of a storage".into());
        };
        let storage = Object::Storage { dtype, key: self.text(key)?.to_owned(), len: Self::count(len)? };
        self.put_object(storage);
        Ok(())
    }

    fn reduce(&mut self) -> Outcome<()> {
        let (args, callable) = (self.pop()?, self.pop()?);
        let Some(&Object::Global(global)) = self.object(callable) else {
            return Err("the pickle calls what is no known global".into());
        };
        let args = self.tuple(args)?;
        match global {
            Global::OrderedDict if args.is_empty() => self.put_object(Object::Dict(vec![])),
            Global::RebuildParameter if !args.is_empty() => self.stack.push(args[0]),
            // (storage, offset, size, stride, requires_grad, backward_hooks[, metadata])
            Global::RebuildTensor if args.len() >= 4 => {
                let (offset, shape, strides) = (Self::count(args[1])?, self.counts(args[2])?, self.counts(args[3])?);
                let Some(Object::Storage { dtype, key, len }) = self.object(args[0]) else {
                    return Err("a tensor has no storage".into());
                };
                if shape.len() != strides.len() {
                    return Err("a tensor has more or fewer strides than dimensions".into());
                }
                let (dtype, key, storage_len) = (*dtype, key.clone(), *len);
                self.put_object(Object::Tensor(PickledTensor { dtype, key, storage_len, offset, shape, strides }));
            }
            _ => return Err("a known global is called with arguments that it does not take".into()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_global_that_could_run_code_is_refused_by_name() {
        // os.system("true"), as `pickle.dumps` would write it with a __reduce__ method.
        let error = state_dict(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.").unwrap_err();
        assert!(error.contains("os.system"), "{error}");
        let error = state_dict(b"\x80\x04\x8c\x02os\x8c\x06system\x93.").unwrap_err();
        assert!(error.contains("os.system"), "{error}");
    }

    #[test]
    fn endless_nesting_and_self_reference_end_in_an_error() {
        let nested = [&b"\x80\x02)"[..], &vec![0x85; 1_000_000], b"."].concat();
        assert!(state_dict(&nested).unwrap_err().contains("no dictionary"));
        // d = {}; d["k"] = d
        assert!(state_dict(b"\x80\x02}q\x00X\x01\x00\x00\x00kh\x00s.").unwrap_err().contains("no tensors"));
    }

    #[test]
    fn damaged_pickles_end_in_an_error_wherever_they_are_cut() {
        let whole = b"\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01(X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n\
            ((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQK\x01K\x02K\x02\x86\
            K\x02K\x01\x86\x89h\x00)RtRu.";
        let (name, tensor) = state_dict(whole).unwrap().remove(0);
        assert_eq!((name.as_str(), tensor.offset, tensor.storage_len), ("a", 1, 6));
        assert_eq!((tensor.shape, tensor.strides), (vec![2, 2], vec![2, 1]));
        for end in 0..whole.len() {
            state_dict(&whole[..end]).unwrap_err();
        }
        // Any single damaged byte may change the meaning, but never panics.
        for i in 0..whole.len() {
            for byte in [0, b'(', b't', b'R', b'.', 0x87, 0xff] {
                let mut bytes = whole.to_vec();
                bytes[i] = byte;
                let _ = state_dict(&bytes);
            }
        }
    }
}
