use super::tests::Random;
use super::*;
use crate::parallel::{Exec, Threads};
use crate::tensor::{GgmlType, Matrix};
#[test]
#[ignore]
fn speed() {
    let threads = Threads::new(1).unwrap();
    let mut rng = Random(1);
    let var = |n: &str, d: &str| std::env::var(n).unwrap_or_else(|_| d.into());
    let types = var("TYPES", "Q4_K,Q4_0,Q8_0,Q6_K,BF16");
    let (rows, k) = (4096, 4096);
    for dtype in GgmlType::all().filter(|t| types.split(',').any(|n| n == t.name())) {
        let weights: Vec<f32> = rng.floats(64 * k);
        let mut one = vec![0; 64 * dtype.row_bytes(k).unwrap()];
        crate::tensor::quantize(dtype, &weights, &mut one).unwrap();
        let bytes = one.repeat(rows / 64);
        let w = Matrix::new(dtype, rows, k, &bytes).unwrap();
        for n in var("N", "32,128,512").split(',').map(|n| n.parse::<usize>().unwrap()) {
            let x = rng.floats(n * k);
            let mut y = vec![0.0; n * rows];
            for kernels in
                Kernels::available().iter().filter(|kn| var("SETS", "avx512,amx").split(',').any(|s| s == kn.name()))
            {
                let exec = Exec::new(&threads, kernels, None);
                let mut line = format!("{} n={n} {}:", dtype.name(), kernels.name());
                let mut time = |name: &str, x: Activations| {
                    let mut best = f64::MAX;
                    for _ in 0..6 {
                        let t = cpu();
                        matmul(&exec, &w, x, &mut y, rows, Epilogue::Store).unwrap();
                        best = best.min(cpu() - t);
                    }
                    line += &format!(" {name} {:.0}", 2.0 * (rows * k * n) as f64 / best / 1e9);
                };
                let mut q = Int8Rows::default();
                if has_int8(dtype) {
                    for s in [Scales::Blocks, Scales::Wide] {
                        q.quantize(&exec, &x, k, s).unwrap();
                        time(&format!("{s:?}"), Activations::Int8(&q));
                    }
                }
                let mut b = Bf16Rows::default();
                b.round(&exec, &x, k).unwrap();
                if kernels.has_bf16() {
                    time("bf16", Activations::Bf16(&b));
                }
                if dtype.is_float() {
                    time("f32", Activations::F32 { x: &x, k });
                }
                println!("{line}");
            }
        }
    }
}
fn cpu() -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut t) };
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}
