//! Encoder and decoder on a graphics card. Weights go there in bfloat16 when a context first uses them, for all contexts of the
//! card, in two terms those of the encoder, so that codes stay what they are; channels are filled up to a multiple of 8 with
//! zeros.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::config::Config;
use super::run::Backend;
use super::weights::{ConvWeights, NormWeights};
use crate::error::{Error, Result};
use crate::kernels::Epilogue;
use crate::kernels::conv::Sampling;
use crate::kernels::cuda::images::{GroupNorm, Matrix, Sides, Terms, convolve, pad, product, softmax};
use crate::kernels::cuda::{Gpu, Memory, Part, Queue, image_check};
use crate::memory::{try_push, try_reserve_entry, try_vec};
use crate::parallel::Exec;
use crate::tensor;

/// Weights of convolutions on a card, by where they begin in the file, as contexts have used them so far.
#[derive(Default)]
pub(crate) struct CudaConvs(Mutex<HashMap<usize, Arc<Conv>>>);

/// What a context has of the image tokenizer on a card.
pub(crate) struct CudaImages {
    queue: Queue,
    shared: Arc<CudaConvs>,
    /// those of them that this context has used
    convs: HashMap<usize, Arc<Conv>>,
    /// with what one run at a time measures, so not shared
    norms: HashMap<usize, GroupNorm>,
}

/// A convolution's weights [outputs, kernel * kernel * padded inputs], and its bias.
struct Conv {
    terms: TermsMemory,
    cols: usize,
    bias: Memory<f32>,
}

/// Numbers in one term or two.
struct TermsMemory {
    first: Memory<u16>,
    rest: Option<Memory<u16>>,
}

impl TermsMemory {
    fn new(gpu: &Arc<Gpu>, len: usize, split: bool, what: &str) -> Result<Self> {
        let rest = if split { Some(Memory::new(gpu, len, what)?) } else { None };
        Ok(TermsMemory { first: Memory::new(gpu, len, what)?, rest })
    }

    fn terms(&self, len: usize) -> Terms<'_> {
        Terms { first: self.first.part(0..len), rest: self.rest.as_ref().map(|rest| rest.part(0..len)) }
    }

    fn all(&self) -> Terms<'_> {
        self.terms(self.first.len())
    }
}

/// A feature map on the card.
pub(super) struct Map {
    memory: Memory<f32>,
    height: usize,
    width: usize,
    channels: usize,
}

impl Map {
    pub fn sides(&self) -> (usize, usize) {
        (self.height, self.width)
    }

    fn positions(&self) -> usize {
        self.height * self.width
    }

    fn len(&self) -> usize {
        self.positions() * self.channels
    }

    /// Its numbers; there may be more memory.
    fn part(&self) -> Part<'_, f32> {
        self.memory.part(0..self.len())
    }
}

/// A normalization: where its weights begin in the file, and whether swish follows it. It was measured, and stays so until
/// the next one of these weights.
pub(super) struct Norm {
    begin: usize,
    swish: bool,
}

/// One pass through the encoder or the decoder.
pub(super) struct CudaRun<'a> {
    images: &'a mut CudaImages,
    exec: &'a Exec<'a>,
    bytes: &'a [u8],
    config: &'a Config,
    /// whether numbers are in two terms
    split: bool,
    /// maps that are done with
    free: Vec<Memory<f32>>,
    /// the input of a convolution
    input: Option<TermsMemory>,
    /// sums of a group normalization
    sums: Option<Memory<f64>>,
}

const WHAT: &str = "a feature map of the image tokenizer";
const WEIGHTS: &str = "the image tokenizer's weights";

impl CudaConvs {
    /// The weights that `weights` are in the file, which are brought to the card unless they are there.
    fn get(&self, queue: &Queue, weights: &ConvWeights, bytes: &[u8], split: bool) -> Result<Arc<Conv>> {
        // locked while they are copied, so that nobody copies them again
        let mut convs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(conv) = convs.get(&weights.begin()) {
            return Ok(conv.clone());
        }
        let conv = Arc::new(Conv::new(queue, weights, bytes, split)?);
        try_reserve_entry(&mut convs, WEIGHTS)?;
        convs.insert(weights.begin(), conv.clone());
        Ok(conv)
    }
}

impl Conv {
    /// Waits until they are there, as other queues will use them.
    fn new(queue: &Queue, weights: &ConvWeights, bytes: &[u8], split: bool) -> Result<Self> {
        let (matrix, bias) = (weights.matrix(bytes)?, weights.bias(bytes)?);
        let padded = weights.inputs.next_multiple_of(8);
        let (cells, inputs) = (weights.kernel * weights.kernel, weights.inputs);
        let mut floats = try_vec(matrix.rows() * cells * padded, WEIGHTS)?;
        let mut row = try_vec(matrix.cols(), WEIGHTS)?;
        for (r, to) in floats.chunks_exact_mut(cells * padded).enumerate() {
            tensor::dequantize(matrix.dtype(), matrix.row(r), &mut row)?;
            for (from, to) in row.chunks_exact(inputs).zip(to.chunks_exact_mut(padded)) {
                to[..inputs].copy_from_slice(from);
            }
        }
        // rounded on the card, as everything else is
        let there = queue.upload(&floats, WEIGHTS)?;
        let terms = TermsMemory::new(queue.gpu(), floats.len(), split, WEIGHTS)?;
        pad(queue, there.all(), padded, padded, terms.all())?;
        let conv = Conv { terms, cols: cells * padded, bias: queue.upload(&bias, WEIGHTS)? };
        queue.wait()?;
        Ok(conv)
    }
}

impl CudaImages {
    /// With the weights that contexts share.
    ///
    /// # Errors
    /// `Device`, where the kernels do not compute on this card what they should; those of a card.
    pub fn new(gpu: &Arc<Gpu>, shared: Arc<CudaConvs>) -> Result<Self> {
        let queue = Queue::new(gpu)?;
        image_check(&queue)?;
        Ok(CudaImages { queue, shared, convs: HashMap::new(), norms: HashMap::new() })
    }

    /// An error where the kernels do not have the sizes of an image tokenizer.
    pub fn check(config: &Config, file: &str) -> Result<()> {
        let channels = config.encoder.channels.iter().chain(&config.decoder.channels).chain([&config.channels]);
        match channels.copied().find(|channels| !channels.is_multiple_of(8)) {
            None => Ok(()),
            Some(channels) => {
                let reason =
                    format!("the CUDA kernels are not for image tokenizers of {channels} channels; run it on the cpu");
                Err(Error::unsupported(file, reason))
            }
        }
    }

    pub(super) fn run<'a>(
        &'a mut self,
        exec: &'a Exec<'a>,
        bytes: &'a [u8],
        config: &'a Config,
        split: bool,
    ) -> Result<CudaRun<'a>> {
        Ok(CudaRun { images: self, exec, bytes, config, split, free: Vec::new(), input: None, sums: None })
    }

    /// Takes a convolution's weights, which come to the card unless they are there.
    fn load_conv(&mut self, weights: &ConvWeights, bytes: &[u8], split: bool) -> Result<()> {
        if !self.convs.contains_key(&weights.begin()) {
            let conv = self.shared.get(&self.queue, weights, bytes, split)?;
            try_reserve_entry(&mut self.convs, WEIGHTS)?;
            self.convs.insert(weights.begin(), conv);
        }
        Ok(())
    }

    fn load_norm(&mut self, weights: &NormWeights, bytes: &[u8]) -> Result<()> {
        if !self.norms.contains_key(&weights.begin()) {
            let (weight, bias) = weights.read(bytes)?;
            try_reserve_entry(&mut self.norms, WEIGHTS)?;
            self.norms.insert(weights.begin(), GroupNorm::new(&self.queue, &weight, &bias)?);
        }
        Ok(())
    }

    fn norm(&self, begin: usize) -> Result<&GroupNorm> {
        self.norms.get(&begin).ok_or_else(not_loaded)
    }

    fn conv(&self, weights: &ConvWeights) -> Result<(Matrix<'_>, Part<'_, f32>)> {
        let conv = self.convs.get(&weights.begin()).ok_or_else(not_loaded)?;
        let matrix = Matrix { terms: conv.terms.all(), rows: weights.outputs, cols: conv.cols };
        Ok((matrix, conv.bias.all()))
    }
}

fn not_loaded() -> Error {
    Error::Internal("weights of the image tokenizer that are not on the graphics card".to_owned())
}

impl CudaRun<'_> {
    /// Numbers [height, width, channels] as a map.
    pub fn upload(&mut self, from: &[f32], height: usize, width: usize) -> Result<Map> {
        let map = self.map(height, width, from.len() / (height * width))?;
        self.images.queue.write(map.part(), from)?;
        Ok(map)
    }

    pub fn download(&self, map: Map) -> Result<Vec<f32>> {
        let mut to = try_vec(map.len(), WHAT)?;
        self.images.queue.read(map.part(), &mut to)?;
        Ok(to)
    }

    fn map(&mut self, height: usize, width: usize, channels: usize) -> Result<Map> {
        let len = height.checked_mul(width).and_then(|n| n.checked_mul(channels));
        let len = len.ok_or_else(|| Error::invalid(format!("a feature map of {height}x{width}x{channels} numbers")))?;
        let fits = (0..self.free.len()).filter(|&i| self.free[i].len() >= len);
        let memory = match fits.min_by_key(|&i| self.free[i].len()) {
            Some(i) => self.free.swap_remove(i),
            None => {
                // the largest is too small: it is given up for a new one
                if let Some(i) = (0..self.free.len()).max_by_key(|&i| self.free[i].len()) {
                    self.free.swap_remove(i);
                }
                Memory::new(self.images.queue.gpu(), len, WHAT)?
            }
        };
        Ok(Map { memory, height, width, channels })
    }

    /// `x` in bfloat16, normalized if `norm` is given, its channels filled up to a multiple of 8: in `input`.
    fn prepare(&mut self, x: &Map, norm: Option<&Norm>) -> Result<usize> {
        self.exec.check()?;
        let padded = x.channels.next_multiple_of(8);
        let len = x.positions() * padded;
        let input = grown(&mut self.input, self.images.queue.gpu(), len, self.split)?.terms(len);
        match norm {
            Some(norm) if padded == x.channels => {
                self.images.norm(norm.begin)?.apply(&self.images.queue, x.part(), norm.swish, input)?;
            }
            Some(_) => return Err(Error::Internal(format!("a normalization of {} channels", x.channels))),
            None => pad(&self.images.queue, x.part(), x.channels, padded, input)?,
        }
        Ok(padded)
    }

    /// `y (=|+=)` the convolution of `x`.
    fn multiply(
        &mut self,
        weights: &ConvWeights,
        (x, norm): (&Map, Option<&Norm>),
        sampling: Sampling,
        (y, epilogue): (&Map, Epilogue),
    ) -> Result<()> {
        self.images.load_conv(weights, self.bytes, self.split)?;
        let padded = self.prepare(x, norm)?;
        let input = self.input.as_ref().ok_or_else(not_loaded)?.terms(x.positions() * padded);
        let ((w, bias), queue) = (self.images.conv(weights)?, &self.images.queue);
        if weights.kernel == 1 {
            return product(queue, w, (input, x.positions()), Some(bias), y.part(), epilogue);
        }
        let sides = Sides { height: x.height, width: x.width, channels: padded };
        convolve(queue, w, (input, sides), sampling, bias, y.part(), epilogue)
    }

    /// Rows of numbers in bfloat16, filled up to a multiple of 8.
    fn rounded(&self, x: Part<'_, f32>, width: usize) -> Result<(TermsMemory, usize)> {
        let padded = width.next_multiple_of(8);
        let terms = TermsMemory::new(self.images.queue.gpu(), x.len() / width * padded, self.split, WHAT)?;
        pad(&self.images.queue, x, width, padded, terms.all())?;
        Ok((terms, padded))
    }
}

/// Memory of that kind, and at least so long.
fn grown<'a>(memory: &'a mut Option<TermsMemory>, gpu: &Arc<Gpu>, len: usize, split: bool) -> Result<&'a TermsMemory> {
    if memory.as_ref().is_none_or(|terms| terms.first.len() < len) {
        *memory = None; // give back before asking again
        *memory = Some(TermsMemory::new(gpu, len, split, WHAT)?);
    }
    memory.as_ref().ok_or_else(not_loaded)
}

impl Backend for CudaRun<'_> {
    type Map = Map;
    type Norm = Norm;

    fn conv(&mut self, weights: &ConvWeights, x: &Map, norm: Option<&Norm>, sampling: Sampling) -> Result<Map> {
        let (Some(h), Some(w)) = (sampling.output_side(x.height), sampling.output_side(x.width)) else {
            return Err(Error::invalid(format!(
                "a feature map of {}x{} positions cannot be doubled",
                x.height, x.width
            )));
        };
        let y = self.map(h, w, weights.outputs)?;
        self.multiply(weights, (x, norm), sampling, (&y, Epilogue::Store))?;
        Ok(y)
    }

    fn conv_add(&mut self, weights: &ConvWeights, x: &Map, norm: Option<&Norm>, y: &mut Map) -> Result<()> {
        self.multiply(weights, (x, norm), Sampling::Same, (y, Epilogue::Add))
    }

    fn norm(&mut self, weights: &NormWeights, x: &Map, swish: bool) -> Result<Norm> {
        self.images.load_norm(weights, self.bytes)?;
        let (begin, len) = (weights.begin(), GroupNorm::sums(x.positions(), x.channels));
        if self.sums.as_ref().is_none_or(|sums| sums.len() < len) {
            self.sums = None; // give back before asking again
            self.sums = Some(Memory::new(self.images.queue.gpu(), len, WHAT)?);
        }
        let sums = self.sums.as_ref().ok_or_else(not_loaded)?.all();
        let (groups, epsilon) = (self.config.groups, self.config.epsilon);
        self.images.norm(begin)?.measure(&self.images.queue, x.part(), sums, groups, epsilon)?;
        Ok(Norm { begin, swish })
    }

    /// The scores of all positions are in memory at a time: there are a few thousand at the coarsest resolution.
    fn attention(&mut self, [q, k, v]: [&ConvWeights; 3], x: &Map, norm: &Norm) -> Result<Map> {
        let (n, c) = (x.positions(), x.channels);
        let (queries, keys) =
            (self.conv(q, x, Some(norm), Sampling::Same)?, self.conv(k, x, Some(norm), Sampling::Same)?);
        let scores = self.map(n, 1, n)?;
        let ((keys_16, _), (queries_16, _)) = (self.rounded(keys.part(), c)?, self.rounded(queries.part(), c)?);
        let as_weights = Matrix { terms: keys_16.all(), rows: n, cols: c };
        product(&self.images.queue, as_weights, (queries_16.all(), n), None, scores.part(), Epilogue::Store)?;
        let padded = n.next_multiple_of(8);
        let shares = TermsMemory::new(self.images.queue.gpu(), n * padded, self.split, WHAT)?;
        softmax(&self.images.queue, scores.part(), (n, padded), 1.0 / (c as f32).sqrt(), shares.all())?;

        // values by channels, [c, n]: the map takes the place of the weights. Their bias comes afterwards, as shares add up
        // to one.
        self.images.load_conv(v, self.bytes, self.split)?;
        self.prepare(x, Some(norm))?;
        let (values_w, _) = self.images.conv(v)?;
        let input = self.input.as_ref().ok_or_else(not_loaded)?.terms(n * c);
        let map_as_weights = Matrix { terms: input, rows: n, cols: c };
        let values = Memory::new(self.images.queue.gpu(), c * n, WHAT)?;
        product(&self.images.queue, map_as_weights, (values_w.terms, c), None, values.all(), Epilogue::Store)?;
        let (values_16, _) = self.rounded(values.all(), n)?;
        let h = self.map(x.height, x.width, c)?;
        let (_, bias) = self.images.conv(v)?;
        let weights = Matrix { terms: values_16.all(), rows: c, cols: padded };
        product(&self.images.queue, weights, (shares.all(), n), Some(bias), h.part(), Epilogue::Store)?;
        for done in [queries, keys, scores] {
            self.recycle(done);
        }
        Ok(h)
    }

    fn recycle(&mut self, map: Map) {
        // where there is no memory for the list, the card's is given back
        let _ = try_push(&mut self.free, map.memory, WHAT);
    }
}
