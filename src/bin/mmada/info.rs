//! `mmada info`: what a model file holds and what running it takes; what this build runs on.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use mmada::gguf::{Header, MetaArray, MetaValue, TensorInfo, Value};
use mmada::kernels::Kernels;
use mmada::mmap::Mapping;
use mmada::parallel::Threads;
use mmada::{Backend, Device};
use serde_json::{Value as Json, json};

use crate::args::{Common, InfoArgs};
use crate::failure::Failure;
use crate::output::{self, Output};
use crate::{estimate, instruction_set, model_path};

/// Arrays up to this length, and strings up to this many bytes, are shown whole.
const ARRAY_SHOWN: usize = 32;
const STRING_SHOWN: usize = 100;
/// In JSON longer strings are kept (chat templates), but not a tokenizer of megabytes.
const JSON_STRING_SHOWN: usize = 16 << 10;

pub fn run(common: &Common, args: &InfoArgs, output: &Output) -> Result<(), Failure> {
    if args.system {
        return system(common, output);
    }
    let path = model_path::find(args.file.as_deref().or(common.model.as_deref()))?;
    let mapping = Mapping::open(&path)?;
    let header = Header::parse(mapping.bytes(), &path.display().to_string())?;
    let file = File { path: &path, bytes: mapping.bytes(), header: &header };
    // A well-formed file of another architecture can still be looked into; that it cannot be run is said aside.
    let estimate = match estimate::of(&path, common, output) {
        Ok(estimate) => Some(estimate),
        Err(failure) => {
            output.warn(&failure.to_string());
            None
        }
    };
    if output.json {
        let mut object = file.json()?;
        (object["estimates"], object["pack"]) = estimate.map_or((Json::Null, Json::Null), |e| e.json());
        return output::print_json(&object);
    }
    let mut text = file.text()?;
    if let Some(estimate) = estimate {
        text.push_str(&estimate.text());
    }
    output::print(&text)
}

fn system(common: &Common, output: &Output) -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    let isa = instruction_set::forced()?.map_or(Ok(Kernels::best()), |name| Kernels::named(&name))?.name();
    let available: Vec<&str> = Kernels::available().iter().map(Kernels::name).collect();
    let threads = Threads::new(common.threads)?.count();
    let (arch, os) = (std::env::consts::ARCH, std::env::consts::OS);
    let backends = mmada::backends();
    if output.json {
        let object = json!({
            "version": version, "instruction_set": isa, "instruction_sets": available, "threads": threads,
            "architecture": arch, "system": os,
            "devices": backends.iter().flat_map(|b| &b.devices).map(json_device).collect::<Vec<_>>(),
            "unavailable": backends.iter().filter_map(|b| Some((b.name, b.unavailable.as_deref()?))).collect::<BTreeMap<_, _>>(),
        });
        return output::print_json(&object);
    }
    let mut text = format!(
        "version          {version}\ninstruction set  {isa} (of {})\nthreads          {threads}\nsystem           {arch} {os}\n",
        available.join(", ")
    );
    for Backend { name, devices, unavailable } in &backends {
        for device in devices {
            let _ = writeln!(text, "{:15}  {}", device.id, described(device));
        }
        if let Some(reason) = unavailable {
            let _ = writeln!(text, "{name:15}  none: {reason}");
        }
    }
    output::print(&text)
}

/// What a device is and, of a graphics card, whether models run on it.
fn described(device: &Device) -> String {
    let mut text = one_line(&device.name);
    if device.memory_bytes > 0 {
        text += &format!(", {}", size(usize::try_from(device.memory_bytes).unwrap_or(usize::MAX)));
    }
    if let Some((major, minor)) = device.compute_capability {
        text += &format!(", compute capability {major}.{minor}");
    }
    if let Some(refusal) = &device.refusal {
        text += &format!("; cannot be used: {refusal}");
    }
    text
}

fn json_device(device: &Device) -> Json {
    json!({
        "id": device.id,
        "name": device.name,
        "memory_bytes": device.memory_bytes,
        "instruction_sets": device.instruction_sets,
        "compute_capability": device.compute_capability.map(|(major, minor)| format!("{major}.{minor}")),
        "refusal": device.refusal,
    })
}

struct File<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    header: &'a Header,
}

impl File<'_> {
    fn text(&self) -> Result<String, Failure> {
        let Header { version, metadata, tensors, .. } = self.header;
        let mut text = format!(
            "{}: GGUF version {version}, {}, {} metadata entries, {} tensors\n\nmetadata\n",
            self.path.display(),
            size(self.bytes.len()),
            metadata.len(),
            tensors.len()
        );
        let width = metadata.iter().map(|(key, _)| key.chars().count()).max().unwrap_or(0);
        for (key, value) in metadata {
            let _ = writeln!(text, "  {:width$}  {}", one_line(key), self.shown(key, value)?);
        }
        text.push_str("\ntensors (rows x columns)\n");
        let width = tensors.iter().map(|t| t.name.chars().count()).max().unwrap_or(0);
        for t in tensors {
            let (name, dtype, bytes) = (one_line(&t.name), t.dtype.name(), t.range.len());
            let _ = writeln!(text, "  {name:width$}  {dtype:6}  {:>16}  {:>11}", shape(t), size(bytes));
        }
        text.push_str("\nsum\n");
        for (dtype, (count, elements, bytes)) in self.by_type() {
            let _ = writeln!(text, "  {dtype:6}  {count} tensors, {elements} values, {}", size(bytes));
        }
        Ok(text)
    }

    fn json(&self) -> Result<Json, Failure> {
        let mut metadata = serde_json::Map::new();
        for (key, value) in &self.header.metadata {
            metadata.insert(key.clone(), self.json_value(key, value)?);
        }
        let tensors: Vec<Json> = self.header.tensors.iter().map(json_tensor).collect();
        Ok(json!({
            "file": self.path.display().to_string(),
            "bytes": self.bytes.len(),
            "gguf_version": self.header.version,
            "alignment": self.header.alignment,
            "metadata": metadata,
            "tensors": tensors,
        }))
    }

    /// Number of tensors, of values and of bytes for each storage type.
    fn by_type(&self) -> BTreeMap<&'static str, (usize, usize, usize)> {
        let mut sums = BTreeMap::new();
        for t in &self.header.tensors {
            let sum: &mut (usize, usize, usize) = sums.entry(t.dtype.name()).or_default();
            *sum = (sum.0 + 1, sum.1 + t.rows() * t.cols(), sum.2 + t.range.len());
        }
        sums
    }

    fn shown(&self, key: &str, value: &Value) -> Result<String, Failure> {
        Ok(match value {
            Value::Array(a) if a.len > ARRAY_SHOWN => format!("{} of {}", a.len, a.element),
            Value::String(s) if s.len() > STRING_SHOWN => {
                let start: String = s.chars().take(STRING_SHOWN * 3 / 4).collect();
                format!("{}... ({} bytes)", one_line(&start), s.len())
            }
            _ => text_of(&self.header.owned(self.bytes, key)?),
        })
    }

    fn json_value(&self, key: &str, value: &Value) -> Result<Json, Failure> {
        Ok(match value {
            Value::Array(a) if a.len > ARRAY_SHOWN => {
                json!({ "type": "array", "of": a.element.name(), "length": a.len })
            }
            Value::String(s) if s.len() > JSON_STRING_SHOWN => json!({ "type": "string", "bytes": s.len() }),
            _ => json!(self.header.owned(self.bytes, key)?),
        })
    }
}

/// ggml counts the fastest dimension first; people read rows before columns.
fn shape(t: &TensorInfo) -> String {
    let dims: Vec<String> = t.dims.iter().rev().map(usize::to_string).collect();
    dims.join(" x ")
}

fn json_tensor(t: &TensorInfo) -> Json {
    json!({ "name": t.name, "type": t.dtype.name(), "dims": t.dims, "offset": t.range.start, "bytes": t.range.len() })
}

/// Text of a file on one line that cannot drive the terminal.
fn one_line(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}

/// `$on` for every type of plain number or truth value.
macro_rules! scalars {
    ($value:expr, $owner:ident, $v:ident => $on:expr, $($rest:tt)*) => {
        match $value {
            $owner::U8($v) => $on,
            $owner::I8($v) => $on,
            $owner::U16($v) => $on,
            $owner::I16($v) => $on,
            $owner::U32($v) => $on,
            $owner::I32($v) => $on,
            $owner::F32($v) => $on,
            $owner::U64($v) => $on,
            $owner::I64($v) => $on,
            $owner::F64($v) => $on,
            $owner::Bool($v) => $on,
            $($rest)*
        }
    };
}

fn text_of(value: &MetaValue) -> String {
    scalars!(value, MetaValue, v => v.to_string(),
        MetaValue::String(s) => one_line(s),
        MetaValue::Array(a) => text_of_array(a),
    )
}

fn text_of_array(array: &MetaArray) -> String {
    let parts: Vec<String> = scalars!(array, MetaArray, v => v.iter().map(ToString::to_string).collect(),
        MetaArray::String(v) => v.iter().map(|s| one_line(&format!("{s:?}"))).collect(),
        MetaArray::Array(v) => v.iter().map(text_of_array).collect(),
    );
    format!("[{}]", parts.join(", "))
}

/// A number of bytes for people: up to three digits and a binary unit.
pub fn size(bytes: usize) -> String {
    if bytes < 1000 {
        return format!("{bytes} bytes");
    }
    let (mut value, mut unit) = (bytes as f64 / 1024.0, "KiB");
    for larger in ["MiB", "GiB", "TiB"] {
        if value >= 999.5 {
            (value, unit) = (value / 1024.0, larger);
        }
    }
    let digits = if value >= 99.95 { 0 } else { 1 };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_unit_that_fits() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (999, "999 bytes"),
            (1000, "1.0 KiB"),
            (102_400, "100 KiB"),
            (10 << 20, "10.0 MiB"),
            (16 << 30, "16.0 GiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn values_are_shown_on_one_line_without_control_characters() {
        assert_eq!(text_of(&MetaValue::String("a\n\u{1b}[2Jb".into())), "a\\n\\u{1b}[2Jb");
        assert_eq!(text_of(&MetaValue::from(vec![1u32, 2, 2])), "[1, 2, 2]");
        assert_eq!(text_of(&MetaValue::from(vec!["x\"y".to_owned()])), "[\"x\\\"y\"]");
        assert_eq!(text_of(&MetaValue::F32(1e-5)), "0.00001");
    }

    #[test]
    fn json_values_keep_their_types() {
        assert_eq!(json!(MetaValue::U64(u64::MAX)), json!(u64::MAX));
        assert_eq!(json!(MetaValue::Bool(true)), json!(true));
        let nested = MetaValue::Array(MetaArray::Array(vec![MetaArray::I8(vec![-1, 2]), MetaArray::String(vec![])]));
        assert_eq!(json!(nested), json!([[-1, 2], []]));
    }
}
