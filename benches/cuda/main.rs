//! Kernels, steps and pictures on a graphics card: `cargo bench --bench cuda`. Ends at once where there is none.
//!
//! Every line is `what <tab> number <tab> unit`, for people and for `scripts/gpu-check`, which sets the vendor's libraries
//! beside them. Int8 products are checked against the processor's before they are timed; attention is timed as contexts choose
//! its kernel, and where that is Hopper's, by the one for every card too. Times are the best of several runs of
//! many launches, by the clock on the wall around a wait for all of them. The model of whole steps has the 8B's shape and
//! random weights (`mmada-quantize synth`), made in the target folder or the one that `--folder` names.
//!
//! ```text
//! cargo bench --bench cuda -- [--device 0] [--types Q4_K,Q8_0] [--n 8,128,1024] [--recipes Q4_K_M,Q8_0] [--layers 32]
//!     [--folder DIR] [--only products,attention,steps,pictures]
//! ```

#[cfg(not(feature = "cuda"))]
fn main() {
    println!("built without the feature cuda");
}

#[cfg(feature = "cuda")]
fn main() -> std::process::ExitCode {
    match cuda::run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("benches/cuda: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::path::PathBuf;
    use std::time::Instant;

    use mmada::kernels::cuda::operations::{self as ops, AttentionKernel, Heads, Int8, Int8Memory, Source, Weights};
    use mmada::kernels::cuda::{Gpu, Indices, Memory, Queue, cards, self_check};
    use mmada::kernels::{Activations, Arithmetic, Epilogue, Int8Rows, Kernels, matmul};
    use mmada::parallel::{Exec, Threads};
    use mmada::tensor::{self, GgmlType, Matrix};
    use mmada::{Context, ContextOptions, DeviceChoice, DrawFromIds, Model, SequenceRequest};
    use mmada_quantize::{Recipe, Shape, SynthOptions, synth};

    type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

    /// Rows and columns of the 8B's matrices.
    const SHAPES: [(usize, usize); 3] = [(4096, 4096), (12288, 4096), (4096, 12288)];
    /// A sequence with a picture: the drawing task's prompt, 1024 codes and what frames them.
    const IMAGE_TOKENS: usize = 1057;
    const CODES: usize = 1024;
    const WHAT: &str = "a bench";

    struct Options {
        device: usize,
        types: Vec<String>,
        n: Vec<usize>,
        recipes: Vec<String>,
        layers: usize,
        folder: PathBuf,
        only: Vec<String>,
    }

    fn list(text: &str) -> Vec<String> {
        text.split(',').map(str::to_owned).collect()
    }

    impl Options {
        fn parse() -> Outcome<Self> {
            let mut o = Options {
                device: 0,
                types: list("Q8_0,Q4_0,IQ4_NL,Q4_K,Q5_K,Q6_K,BF16,F16"),
                n: vec![8, 32, 128, 1024, 4096],
                recipes: list("Q4_K_M,Q8_0"),
                layers: 32,
                folder: PathBuf::from(env!("CARGO_TARGET_TMPDIR")),
                only: list("products,attention,steps,pictures"),
            };
            let mut args = std::env::args().skip(1).filter(|a| a != "--bench");
            while let Some(name) = args.next() {
                let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
                match &name[..] {
                    "--device" => o.device = value.parse()?,
                    "--types" => o.types = list(&value),
                    "--n" => o.n = list(&value).iter().map(|n| n.parse()).collect::<Result<_, _>>()?,
                    "--recipes" => o.recipes = list(&value),
                    "--layers" => o.layers = value.parse()?,
                    "--folder" => o.folder = value.into(),
                    "--only" => o.only = list(&value),
                    _ => return Err(format!("what is {name}?").into()),
                }
            }
            Ok(o)
        }

        fn wants(&self, section: &str) -> bool {
            self.only.iter().any(|name| name == section)
        }
    }

    pub fn run() -> Outcome<()> {
        let o = Options::parse()?;
        let found = match cards() {
            Ok(found) => found,
            Err(reason) => {
                println!("nothing to measure: {reason}");
                return Ok(());
            }
        };
        let card = found.into_iter().nth(o.device).ok_or("there is no such device")?;
        let (major, minor) = card.compute_capability;
        println!("card\t{}, compute capability {major}.{minor}, {} MiB\t", card.name, card.memory_bytes >> 20);
        let gpu = Gpu::open(o.device)?;
        // Hopper's kernels are taken once they were found to be right
        for dim in [64, 128] {
            if let Some(sentence) = self_check(&gpu, dim)? {
                println!("{sentence}");
            }
        }
        let queue = Queue::new(&gpu)?;
        if o.wants("products") {
            products(&o, &queue)?;
        }
        if o.wants("attention") {
            for dim in [64, 128] {
                for tokens in [IMAGE_TOKENS, 4096] {
                    attention(&queue, dim, tokens)?;
                }
            }
        }
        drop(queue);
        if o.wants("steps") || o.wants("pictures") {
            o.recipes.iter().try_for_each(|recipe| steps(&o, recipe))?;
        }
        Ok(())
    }

    fn line(what: &str, number: f64, unit: &str) {
        println!("{what}\t{number:.4}\t{unit}");
    }

    /// Seconds of one of many that `work` queues.
    fn best(queue: &Queue, mut work: impl FnMut() -> mmada::Result<()>) -> Outcome<f64> {
        work()?;
        queue.wait()?;
        let mut best = f64::INFINITY;
        let mut count = 1;
        for _ in 0..8 {
            let start = Instant::now();
            for _ in 0..count {
                work()?;
            }
            queue.wait()?;
            let seconds = start.elapsed().as_secs_f64();
            best = best.min(seconds / count as f64);
            count = ((0.02 / best) as usize).clamp(1, 1000);
        }
        Ok(best)
    }

    fn floats(len: usize) -> Vec<f32> {
        (0..len).map(|i| (i * 7919 % 1009) as f32 / 504.0 - 1.0).collect()
    }

    fn upload<T: bytemuck::Pod>(queue: &Queue, from: &[T]) -> Outcome<Memory<T>> {
        let memory = Memory::new(queue.gpu(), from.len(), WHAT)?;
        queue.write(memory.all(), from)?;
        Ok(memory)
    }

    fn products(o: &Options, queue: &Queue) -> Outcome<()> {
        let threads = Threads::new(0)?;
        let exec = Exec::new(&threads, Kernels::best(), None);
        let most = o.n.iter().copied().max().unwrap_or(1);
        for name in &o.types {
            let dtype = GgmlType::all().find(|t| t.name() == name).ok_or_else(|| format!("no type {name}"))?;
            for (rows, cols) in SHAPES {
                let bytes = weights(dtype, rows, cols)?;
                let (w, x) = (upload(queue, &bytes)?, upload(queue, &floats(most * cols))?);
                let weights = Weights::new(dtype, rows, cols, w.all())?;
                let (int8, bf16) = (Int8Memory::new(queue, most, cols)?, Memory::new(queue.gpu(), most * cols, WHAT)?);
                for &n in &o.n {
                    let y = Memory::new(queue.gpu(), n * rows, WHAT)?;
                    let from = Source::Plain(x.part(0..n * cols));
                    let work = 2e-12 * (n * rows) as f64 * cols as f64;
                    let shape = format!("{rows}x{cols} n={n}");
                    if let Arithmetic::Int8(scales) = ops::arithmetic(dtype) {
                        let rows_8 = Int8 { memory: &int8, n, k: cols, scales };
                        ops::quantize(queue, from, rows_8)?;
                        let product = || ops::product_int8(queue, weights, rows_8, y.all(), Epilogue::Store);
                        product()?;
                        check(&exec, queue, &y, (dtype, rows, cols, &bytes), n, scales)?;
                        let seconds = best(queue, product)?;
                        line(&format!("product int8 {name} {shape}"), work / seconds, "TFLOP/s");
                    }
                    ops::round(queue, from, n, cols, bf16.part(0..n * cols))?;
                    let input = (bf16.part(0..n * cols), cols, n);
                    let seconds =
                        best(queue, || ops::product_bf16(queue, weights, input, None, y.all(), Epilogue::Store))?;
                    line(&format!("product bf16 {name} {shape}"), work / seconds, "TFLOP/s");
                }
            }
        }
        Ok(())
    }

    /// Random rows: a few in turn, as quantizing all of them takes longer than everything else.
    fn weights(dtype: GgmlType, rows: usize, cols: usize) -> Outcome<Vec<u8>> {
        const DIFFERENT: usize = 16;
        let row = dtype.row_bytes(cols).ok_or("rows of whole blocks")?;
        let mut few = vec![0; DIFFERENT * row];
        tensor::quantize(dtype, &floats(DIFFERENT * cols), &mut few)?;
        Ok((0..rows).flat_map(|r| few[r % DIFFERENT * row..][..row].iter().copied()).collect())
    }

    /// The first token's results are the processor's to the bit.
    fn check(
        exec: &Exec,
        queue: &Queue,
        y: &Memory<f32>,
        (dtype, rows, cols, bytes): (GgmlType, usize, usize, &[u8]),
        n: usize,
        scales: mmada::kernels::Scales,
    ) -> Outcome<()> {
        let mut got = vec![0.0; n * rows];
        queue.read(y.all(), &mut got)?;
        let (mut x, mut expected) = (Int8Rows::default(), vec![0.0f32; rows]);
        x.quantize(exec, &floats(cols), cols, scales)?;
        let w = Matrix::new(dtype, rows, cols, bytes).ok_or("a matrix")?;
        matmul(exec, &w, Activations::Int8(&x), &mut expected, rows, Epilogue::Store)?;
        match got[..rows].iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()) {
            true => Ok(()),
            false => Err(format!("the card's product of {dtype} is not the processor's").into()),
        }
    }

    fn attention(queue: &Queue, dim: usize, tokens: usize) -> Outcome<()> {
        let heads = 4096 / dim;
        let len = tokens * heads * dim;
        let rows = || -> Outcome<Memory<u16>> {
            let (x, to) = (upload(queue, &floats(len))?, Memory::new(queue.gpu(), len, WHAT)?);
            ops::round(queue, Source::Plain(x.all()), tokens, heads * dim, to.all())?;
            queue.wait()?;
            Ok(to)
        };
        let (q, k, v, out) = (rows()?, rows()?, rows()?, Memory::new(queue.gpu(), len, WHAT)?);
        let mut starts = Indices::new(queue.gpu(), 4, tokens + 1, WHAT)?;
        starts.set(0, [0, tokens, 0, tokens])?;
        starts.send(queue, 4)?;
        let shape = Heads { heads, kv_heads: heads, dim };
        let qkv = (q.all(), k.all(), v.all());
        let starts = (&starts, 0, 1, tokens);
        let seconds = best(queue, || ops::attention(queue, shape, qkv, starts, out.all()))?;
        let what = format!("attention {heads} heads of {dim}, {tokens} tokens");
        let work = 4e-12 * (heads * dim) as f64 * (tokens * tokens) as f64;
        line(&what, work / seconds, "TFLOP/s");
        if queue.gpu().has_hopper_attention(dim) {
            let (kernel, out) = (AttentionKernel::Ampere, out.all());
            let seconds = best(queue, || ops::attention_by(queue, kernel, shape, qkv, starts, out))?;
            line(&format!("ampere {what}"), work / seconds, "TFLOP/s");
        }
        Ok(())
    }

    fn steps(o: &Options, recipe: &str) -> Outcome<()> {
        let file = o.folder.join(format!("8b-{}-layers-{recipe}.gguf", o.layers));
        if !file.exists() {
            eprintln!("making {}", file.display());
            let shape = Shape { layers: o.layers, ..Shape::mmada_8b() };
            synth(&SynthOptions::new(shape, &file, Recipe::from_name(recipe)?), &mut |_| ())?;
        }
        let model = Model::open(&file)?;
        let start = Instant::now();
        let options = ContextOptions { device: DeviceChoice::Cuda(o.device), ..Default::default() };
        let context = Context::new(&model, options)?;
        line(&format!("{recipe} weights on the card"), start.elapsed().as_secs_f64(), "s");
        let ids = |n: usize| -> Vec<u32> { (0..n).map(|i| i as u32 * 7 % model.vocabulary().text).collect() };
        for n in [128, 512, 1024].into_iter().filter(|_| o.wants("steps")) {
            let length = 64;
            let options =
                mmada::TextOptions { gen_length: length, block_length: length, steps: length, ..Default::default() };
            let mut generation = context.text_from_ids(ids(n - length), options)?;
            let mut best = f64::INFINITY;
            for step in 0..48 {
                let start = Instant::now();
                let done = generation.step()?.done;
                let seconds = start.elapsed().as_secs_f64();
                if (n, step) == (128, 0) {
                    line(&format!("{recipe} first step of {n} tokens"), seconds, "s");
                }
                best = best.min(seconds);
                if done {
                    break;
                }
            }
            line(&format!("{recipe} text step of {n} tokens"), 1e3 * best, "ms");
        }
        if o.wants("pictures") {
            pictures(&context, recipe, &ids(IMAGE_TOKENS))?;
        }
        Ok(())
    }

    fn pictures(context: &Context, recipe: &str, ids: &[u32]) -> Outcome<()> {
        let vocab = context.model().vocabulary().image_ids();
        let rows: Vec<usize> = (ids.len() - CODES - 1..ids.len() - 1).collect();
        let one = SequenceRequest { ids, rows: &rows, vocab: vocab.start..vocab.start + 1 };
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            let start = Instant::now();
            context.logits(&[one.clone(), one.clone()])?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        line(&format!("{recipe} pass over 2x{}", ids.len()), 1e3 * best, "ms");
        let (_, mut image) = context.model().draw_options(false);
        (image.steps, image.guidance) = (15, 3.5);
        let side = (CODES as f64).sqrt() as usize * context.model().downsampling().unwrap_or(16);
        let prompt = ids[..ids.len() - CODES - 2].to_vec();
        let request = DrawFromIds { unconditional: prompt.clone(), prompt, width: side, height: side, count: 1, image };
        let mut whole = f64::INFINITY;
        for _ in 0..3 {
            let start = Instant::now();
            let mut generation = context.draw_from_ids(request.clone())?;
            while !generation.step()?.done {}
            generation.image(0)?;
            whole = whole.min(start.elapsed().as_secs_f64());
        }
        line(&format!("{recipe} picture of {side}x{side} in 15 steps with guidance"), whole, "s");
        Ok(())
    }
}
