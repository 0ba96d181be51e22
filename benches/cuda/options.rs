//! What is measured.

use std::path::PathBuf;

use mmada::tensor::GgmlType;
use mmada_quantize::Shape;

use crate::timing::Outcome;

/// Rows and columns of the 8B's matrices. All types are measured with the first alone.
const SHAPES: [(usize, usize); 3] = [(4096, 4096), (12288, 4096), (4096, 12288)];
const QUICK_SHAPES: [(usize, usize); 1] = [(96, 256)];
/// Tokens that all types are measured with.
const TOKENS: usize = 1024;
/// What recipes are made of, measured with every shape.
const USUAL: &str = "Q8_0,Q4_0,IQ4_NL,Q4_K,Q5_K,Q6_K,BF16,F16";
const OTHERS: &str = "Q4_1,Q5_0,Q5_1,Q3_K,Q2_K,IQ4_XS,MXFP4,F32";

/// What is multiplied: a type, the rows and columns of its matrices, and the tokens of each.
pub type Products<'a> = (GgmlType, &'a [(usize, usize)], &'a [usize]);

pub struct Options {
    pub device: usize,
    types: Vec<String>,
    /// Measured with [`TOKENS`] and the first shape.
    others: Vec<String>,
    n: Vec<usize>,
    pub recipes: Vec<String>,
    layers: usize,
    pub folder: PathBuf,
    only: Vec<String>,
    pub quick: bool,
    pub ampere: bool,
}

fn list(text: &str) -> Vec<String> {
    text.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

impl Options {
    pub fn parse() -> Outcome<Self> {
        let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
        let [quick, ampere] = ["--quick", "--ampere"].map(|flag| arguments.iter().any(|a| a == flag));
        let mut o = Options {
            device: 0,
            types: list(if quick { "Q8_0,Q4_K,BF16" } else { USUAL }),
            others: list(if quick { "Q6_K" } else { OTHERS }),
            n: if quick { vec![8, 64] } else { vec![8, 32, 128, TOKENS, 4096] },
            recipes: list(if quick { "Q4_K_M" } else { "Q4_K_M,Q8_0" }),
            layers: 32,
            folder: PathBuf::from(env!("CARGO_TARGET_TMPDIR")),
            only: list("check,products,hopper,attention,steps,pictures"),
            quick,
            ampere,
        };
        let mut arguments = arguments.into_iter().filter(|a| !["--quick", "--ampere"].contains(&&a[..]));
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
            match &name[..] {
                "--device" => o.device = value.parse()?,
                "--types" => (o.types, o.others) = (list(&value), Vec::new()),
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

    pub fn wants(&self, section: &str) -> bool {
        self.only.iter().any(|name| name == section)
    }

    /// The shape of the model of whole steps, and the beginning of its file's name.
    pub fn model(&self) -> (Shape, String) {
        match self.quick {
            true => (Shape::tiny(), "tiny".to_owned()),
            false => (Shape { layers: self.layers, ..Shape::mmada_8b() }, format!("8b-{}-layers", self.layers)),
        }
    }

    /// # Errors
    /// For a type that there is not.
    pub fn products(&self) -> Outcome<Vec<Products<'_>>> {
        let shapes: &[_] = if self.quick { &QUICK_SHAPES } else { &SHAPES };
        let few: &[usize] = if self.quick { &[8, 64] } else { &[TOKENS] };
        let dtype = |name: &String| GgmlType::all().find(|t| t.name() == name).ok_or_else(|| format!("no type {name}"));
        let usual = self.types.iter().map(|name| Ok((dtype(name)?, shapes, &self.n[..])));
        let others = self.others.iter().map(|name| Ok((dtype(name)?, &shapes[..1], few)));
        usual.chain(others).collect()
    }

    /// The most of these tokens.
    pub fn most_tokens(&self) -> usize {
        self.n.iter().copied().max().unwrap_or(0).max(TOKENS)
    }

    /// Whether what only some types are multiplied by is measured with this shape and so many tokens too.
    pub fn is_first(&self, shape: (usize, usize), n: usize) -> bool {
        self.quick || (shape, n) == (SHAPES[0], TOKENS)
    }
}
