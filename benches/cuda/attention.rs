//! Attention of a sequence to itself.

use mmada::kernels::cuda::operations::{self as ops, AttentionKernel, Heads, Source};
use mmada::kernels::cuda::{Indices, Memory, Queue};

use crate::models::IMAGE_TOKENS;
use crate::options::Options;
use crate::timing::{Failures, Outcome, WHAT, best, floats, line, upload};

/// Heads of both sizes, with the 8B's width.
const WIDTH: usize = 4096;

pub fn attention(o: &Options, queue: &Queue, failures: &mut Failures) {
    // long enough for Hopper's kernels
    let (width, lengths) = if o.quick { (128, &[130][..]) } else { (WIDTH, &[IMAGE_TOKENS, 4096][..]) };
    for dim in [64, 128] {
        for &tokens in lengths {
            failures.note("attention", one(o, queue, (width / dim, dim), tokens));
        }
    }
}

fn one(o: &Options, queue: &Queue, (heads, dim): (usize, usize), tokens: usize) -> Outcome<()> {
    let len = tokens * heads * dim;
    let rows = || -> Outcome<Memory<u16>> {
        let (x, to) = (upload(queue, &floats(0..len))?, Memory::new(queue.gpu(), len, WHAT)?);
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
    let what = format!("attention {heads} heads of {dim}, {tokens} tokens");
    let work = 4e-12 * (heads * dim) as f64 * (tokens * tokens) as f64;
    let seconds = best(o.quick, queue, || ops::attention(queue, shape, qkv, starts, out.all()))?;
    line(&what, work / seconds, "TFLOP/s");
    if queue.gpu().has_hopper_attention(dim) {
        let (kernel, out) = (AttentionKernel::Ampere, out.all());
        let seconds = best(o.quick, queue, || ops::attention_by(queue, kernel, shape, qkv, starts, out))?;
        line(&format!("ampere {what}"), work / seconds, "TFLOP/s");
    }
    Ok(())
}
