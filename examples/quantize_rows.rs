//! Quantizes rows of f32 from standard input to blocks on standard output, for `scripts/compare-quantizers`.
//!
//! ```text
//! quantize_rows TYPE COLUMNS [IMPORTANCE]
//! ```
//! IMPORTANCE is a file of COLUMNS f32, a weight per column. The speed goes to standard error: one thread, the best of
//! half a second, as other programs may be running. The variable KERNELS chooses the instruction set (portable, avx2,
//! avx512).

use std::io::{Read, Write};
use std::time::Instant;

use mmada::kernels::Kernels;
use mmada::tensor::GgmlType;

/// Seconds of repeating.
const MEASURE: f64 = 0.5;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [name, columns, rest @ ..] = &args[..] else {
        return Err("usage: quantize_rows TYPE COLUMNS [IMPORTANCE] <rows >blocks".into());
    };
    let dtype = GgmlType::from_name(name).ok_or_else(|| format!("no tensor type is called {name}"))?;
    let columns: usize = columns.parse()?;
    let importance = rest.first().map(std::fs::read).transpose()?.map(|bytes| floats(&bytes));
    let row_bytes = dtype.row_bytes(columns).filter(|n| *n > 0);
    let row_bytes = row_bytes.ok_or_else(|| format!("{dtype} has no rows of {columns} elements"))?;

    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input)?;
    let x = floats(&input);
    if !x.len().is_multiple_of(columns) || !input.len().is_multiple_of(4) {
        return Err(format!("{} bytes are not rows of {columns} floats", input.len()).into());
    }
    let kernels = match std::env::var("KERNELS") {
        Ok(name) => Kernels::by_name(&name).ok_or_else(|| format!("this processor has no kernels {name}"))?,
        Err(_) => Kernels::best(),
    };
    let mut out = vec![0; x.len() / columns * row_bytes];
    let (started, mut seconds) = (Instant::now(), f64::INFINITY);
    while started.elapsed().as_secs_f64() < MEASURE || seconds.is_infinite() {
        let start = Instant::now();
        for (x, out) in x.chunks_exact(columns).zip(out.chunks_exact_mut(row_bytes)) {
            kernels.quantize(dtype, x, importance.as_deref(), out)?;
        }
        seconds = seconds.min(start.elapsed().as_secs_f64());
    }
    eprintln!("{dtype}: {:.1} million weights/s", x.len() as f64 / seconds / 1e6);
    std::io::stdout().write_all(&out)?;
    Ok(())
}
