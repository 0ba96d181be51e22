//! Requests through the library's public interface, with a trace of what every step changed.

use std::path::Path;

use mmada::gguf::GgmlType;
use mmada_quantize::ConvertOptions;

/// Converts a checkpoint as the tool does.
pub fn convert(folder: &Path, vq: Option<&Path>, dtype: GgmlType, output: &Path) -> mmada::Result<()> {
    let options = ConvertOptions { vq: vq.map(Path::to_owned), ..ConvertOptions::new(folder, output, dtype) };
    mmada_quantize::convert(&options, &mut |_| {}).map(drop)
}
