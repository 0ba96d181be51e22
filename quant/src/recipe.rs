//! Recipes: which tensor is stored as what. The names and numbers are those of llama-quantize; what stands behind
//! them was chosen for a masked diffusion model with image codes:
//!
//! - rows of the embedding are only gathered, and those of the mask and of the image codes count in every step: Q8_0;
//! - confidences, which decide the order of unmasking, are differences of logits: the output is at least Q6_K;
//! - LLaDA models have massive activation outliers where `ffn_down` reads, in the first and in the late layers, so
//!   `ffn_down`, `attn_v` and `attn_output` are raised there;
//! - image codes are signs: the image tokenizer stays F16, norms stay F32.

use mmada::gguf::GgmlType;
use mmada::{Error, Result};

use GgmlType::{
    BF16, F16, F32, IQ1_M, IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS, IQ4_NL, IQ4_XS, MXFP4, Q2_K, Q3_K, Q4_0,
    Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0, TQ1_0, TQ2_0,
};

/// What the tensors of a file are stored as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Recipe {
    name: &'static str,
    /// ggml's `llama_ftype`, for general.file_type.
    file_type: u32,
    /// Every matrix of the layers that nothing below speaks of.
    base: GgmlType,
    embedding: GgmlType,
    output: GgmlType,
    /// The layers in which the next three are used instead of `low`'s.
    raised: Layers,
    high: Sensitive,
    low: Sensitive,
}

/// The matrices that suffer most.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Sensitive {
    down: GgmlType,
    v: GgmlType,
    attn_output: GgmlType,
}

const fn sensitive(down: GgmlType, v: GgmlType, attn_output: GgmlType) -> Sensitive {
    Sensitive { down, v, attn_output }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Layers {
    None,
    /// The first and the last eighth.
    Edges,
    /// Those, every third between them, and all of the last quarter.
    Many,
}

impl Layers {
    fn contains(self, layer: usize, layers: usize) -> bool {
        let eighth = layers / 8;
        let edges = layer < eighth || layer >= layers - eighth;
        match self {
            Layers::None => false,
            Layers::Edges => edges,
            Layers::Many => edges || layer >= layers - layers / 4 || (layer - eighth) % 3 == 2,
        }
    }
}

/// One type for all matrices of the layers; embedding and output in Q8_0 where that is a block type.
const fn uniform(name: &'static str, file_type: u32, base: GgmlType) -> Recipe {
    let (embedding, output) = match base {
        F32 | F16 | BF16 => (base, base),
        _ => (Q8_0, Q8_0),
    };
    let low = sensitive(base, base, base);
    Recipe { name, file_type, base, embedding, output, raised: Layers::None, high: low, low }
}

const fn mixed(name: &'static str, file_type: u32, base: GgmlType, raised: Layers, high: Sensitive) -> Recipe {
    let low = sensitive(base, base, base);
    Recipe { name, file_type, base, embedding: Q8_0, output: Q6_K, raised, high, low }
}

const fn with_low(recipe: Recipe, low: Sensitive) -> Recipe {
    Recipe { low, ..recipe }
}

const fn with_output(recipe: Recipe, output: GgmlType) -> Recipe {
    Recipe { output, ..recipe }
}

/// All recipes, from the largest to the smallest files.
pub const RECIPES: &[Recipe] = &[
    uniform("F32", 0, F32),
    uniform("F16", 1, F16),
    uniform("BF16", 32, BF16),
    uniform("Q8_0", 7, Q8_0),
    uniform("Q6_K", 18, Q6_K),
    with_output(mixed("Q5_K_M", 17, Q5_K, Layers::Many, sensitive(Q6_K, Q6_K, Q6_K)), Q8_0),
    mixed("Q5_K_S", 16, Q5_K, Layers::Edges, sensitive(Q6_K, Q6_K, Q5_K)),
    mixed("Q4_K_M", 15, Q4_K, Layers::Many, sensitive(Q6_K, Q6_K, Q6_K)),
    mixed("Q4_K_S", 14, Q4_K, Layers::Edges, sensitive(Q5_K, Q5_K, Q5_K)),
    mixed("Q4_0", 2, Q4_0, Layers::Edges, sensitive(Q5_0, Q5_0, Q4_0)),
    mixed("IQ4_NL", 25, IQ4_NL, Layers::Edges, sensitive(Q5_K, Q5_K, IQ4_NL)),
    mixed("IQ4_XS", 30, IQ4_XS, Layers::Edges, sensitive(Q5_K, Q5_K, IQ4_XS)),
    with_low(mixed("Q3_K_M", 12, Q3_K, Layers::Many, sensitive(Q5_K, Q5_K, Q5_K)), sensitive(Q4_K, Q4_K, Q4_K)),
    with_low(mixed("Q2_K", 10, Q2_K, Layers::Many, sensitive(Q4_K, Q4_K, Q4_K)), sensitive(Q3_K, Q4_K, Q3_K)),
];

/// Other names that llama-quantize knows these by.
const ALIASES: &[(&str, &str)] = &[("Q5_K", "Q5_K_M"), ("Q4_K", "Q4_K_M"), ("Q3_K", "Q3_K_M")];

/// Block types that can be asked for though they have no recipe: one type throughout, as with `--pure`, but for the
/// embedding and the output.
const UNIFORM: &[Recipe] =
    &[uniform("Q4_1", 3, Q4_1), uniform("Q5_0", 8, Q5_0), uniform("Q5_1", 9, Q5_1), uniform("MXFP4", 38, MXFP4)];

impl Recipe {
    /// The recipe of this name (upper or lower case) or of this number of llama.cpp's; `None` if there is none.
    pub fn parse(name: &str) -> Option<Recipe> {
        let alias = ALIASES.iter().find(|(alias, _)| alias.eq_ignore_ascii_case(name));
        let name = alias.map_or(name, |(_, of)| of);
        let number = name.parse::<u32>().ok();
        let is = |r: &&Recipe| r.name.eq_ignore_ascii_case(name) || number == Some(r.file_type);
        RECIPES.iter().chain(UNIFORM).find(is).copied()
    }

    /// Like `parse`, with an error that names what there is.
    pub fn from_name(name: &str) -> Result<Recipe> {
        Self::parse(name).ok_or_else(|| {
            let names: Vec<&str> = Self::names().collect();
            Error::invalid(format!("{name} is no type that can be written; these are: {}", names.join(" ")))
        })
    }

    /// The names of all recipes.
    pub fn names() -> impl Iterator<Item = &'static str> {
        RECIPES.iter().chain(UNIFORM).map(|r| r.name)
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    /// `general.file_type`: the number that llama.cpp gives to files of this name.
    pub fn file_type(&self) -> u32 {
        self.file_type
    }

    /// The type of most of the weights.
    pub fn base(&self) -> GgmlType {
        self.base
    }

    /// What the tensor `name` of a model with `layers` layers should be, were all rows as long as blocks want them.
    pub fn wanted(&self, name: &str, layers: usize) -> GgmlType {
        match place(name) {
            Place::Embedding => self.embedding,
            Place::Output => self.output,
            Place::ImageTokenizer => F16,
            Place::Vector => F32,
            Place::Layer(layer, what) => {
                let set = if self.raised.contains(layer, layers.max(layer + 1)) { &self.high } else { &self.low };
                match what {
                    "ffn_down" => set.down,
                    "attn_v" => set.v,
                    "attn_output" => set.attn_output,
                    _ => self.base,
                }
            }
            Place::Other => self.base,
        }
    }
}

/// A single type as a recipe: every matrix of the layers in it.
impl From<GgmlType> for Recipe {
    fn from(dtype: GgmlType) -> Recipe {
        // Of several the last, which raises the least.
        let known = RECIPES.iter().chain(UNIFORM).rfind(|r| r.base == dtype);
        Recipe { name: dtype.name(), ..uniform("", known.map_or(0, |r| r.file_type), dtype) }
    }
}

impl std::fmt::Display for Recipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// What a tensor's name says of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place<'a> {
    Embedding,
    Output,
    /// A norm or a bias of the backbone.
    Vector,
    /// Layer, and the part of the name between that and `.weight`.
    Layer(usize, &'a str),
    ImageTokenizer,
    Other,
}

pub fn place(name: &str) -> Place<'_> {
    match name {
        "token_embd.weight" => return Place::Embedding,
        "output.weight" => return Place::Output,
        _ if name.starts_with("vq.") => return Place::ImageTokenizer,
        _ if name.ends_with("_norm.weight") || name.ends_with(".bias") => return Place::Vector,
        _ => {}
    }
    let layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    match layer.and_then(|(n, what)| Some((n.parse().ok()?, what.strip_suffix(".weight")?))) {
        Some((n, what)) if n < usize::MAX => Place::Layer(n, what),
        _ => Place::Other,
    }
}

/// The type of tensor `name` with rows of `cols` weights, in layer `layer` of `layers`: the recipe's, or the next that
/// its rows fit (`fitting`).
pub fn tensor_type(recipe: &Recipe, name: &str, layers: usize, cols: usize) -> GgmlType {
    fitting(recipe.wanted(name, layers), cols)
}

/// `dtype` where its blocks fill rows of `cols`; else the type of small blocks with as many bits or more; else F16.
pub fn fitting(dtype: GgmlType, cols: usize) -> GgmlType {
    let small_blocks = match dtype {
        IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S | TQ1_0 | TQ2_0 | Q2_K | Q3_K | IQ4_XS => IQ4_NL,
        Q4_K => Q5_0,
        Q5_K => Q5_1,
        _ => Q8_0,
    };
    let fits = |t: &GgmlType| cols.is_multiple_of(t.block_len());
    [dtype, small_blocks].into_iter().find(fits).unwrap_or(F16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_a_block_does_not_fill_get_the_next_type_that_does() {
        for (wanted, cols, chosen) in [
            (Q4_K, 512, Q4_K),
            (Q4_K, 384, Q5_0),
            (Q4_K, 100, F16),
            (Q5_K, 96, Q5_1),
            (Q6_K, 96, Q8_0),
            (Q3_K, 96, IQ4_NL),
            (Q2_K, 32, IQ4_NL),
            (IQ4_XS, 288, IQ4_NL),
            (Q4_0, 96, Q4_0),
            (Q4_0, 48, F16),
            (Q8_0, 33, F16),
            (F32, 7, F32),
            (BF16, 7, BF16),
        ] {
            assert_eq!(fitting(wanted, cols), chosen, "{wanted} in rows of {cols}");
        }
    }

    /// Layers of 0..n in which the recipe raises `what`.
    fn raised(recipe: &str, what: &str, layers: usize) -> Vec<usize> {
        let recipe = Recipe::parse(recipe).unwrap();
        let wanted = |l: &usize| recipe.wanted(&format!("blk.{l}.{what}.weight"), layers);
        (0..layers).filter(|l| wanted(l).block_bytes() > recipe.low.down.block_bytes()).collect()
    }

    #[test]
    fn the_layers_with_outliers_are_raised() {
        let many = vec![0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 25, 26, 27, 28, 29, 30, 31];
        for what in ["ffn_down", "attn_v", "attn_output"] {
            assert_eq!(raised("Q4_K_M", what, 32), many, "{what}");
            assert_eq!(raised("Q5_K_M", what, 32), many, "{what}");
        }
        assert_eq!(raised("Q4_K_S", "ffn_down", 32), [0, 1, 2, 3, 28, 29, 30, 31]);
        assert_eq!(raised("Q4_K_M", "ffn_up", 32), [0usize; 0]);
        // Fewer than eight layers have no eighths.
        assert_eq!(raised("Q4_K_M", "attn_v", 4), [2, 3]);
        assert_eq!(raised("Q4_K_M", "attn_v", 1), [0usize; 0]);
        assert_eq!(raised("Q8_0", "attn_v", 32), [0usize; 0]);
    }

    #[test]
    fn every_part_of_the_model_has_its_type() {
        for (recipe, name, wanted) in [
            ("Q4_K_M", "token_embd.weight", Q8_0),
            ("Q4_K_M", "output.weight", Q6_K),
            ("Q4_K_M", "blk.0.attn_q.weight", Q4_K),
            ("Q4_K_M", "blk.0.ffn_down.weight", Q6_K),
            ("Q4_K_M", "blk.5.ffn_down.weight", Q4_K),
            ("Q4_K_M", "blk.31.attn_output.weight", Q6_K),
            ("Q4_K_M", "blk.0.ffn_norm.weight", F32),
            ("Q4_K_M", "output_norm.weight", F32),
            ("Q4_K_M", "vq.encoder.conv_in.weight", F16),
            ("Q3_K_M", "blk.5.attn_v.weight", Q4_K),
            ("Q3_K_M", "blk.5.attn_k.weight", Q3_K),
            ("Q3_K_M", "blk.0.ffn_down.weight", Q5_K),
            ("Q2_K", "blk.5.ffn_down.weight", Q3_K),
            ("Q2_K", "blk.5.ffn_gate.weight", Q2_K),
            ("IQ4_XS", "blk.1.ffn_down.weight", Q5_K),
            ("Q6_K", "output.weight", Q8_0),
            ("Q8_0", "blk.9.ffn_up.weight", Q8_0),
            ("BF16", "output.weight", BF16),
            ("F32", "token_embd.weight", F32),
        ] {
            assert_eq!(Recipe::parse(recipe).unwrap().wanted(name, 32), wanted, "{recipe}: {name}");
        }
    }

    #[test]
    fn the_output_and_the_embedding_never_go_below_their_floors() {
        for recipe in RECIPES.iter().chain(UNIFORM) {
            let bits = |t: GgmlType| t.block_bytes() as f64 * 8.0 / t.block_len() as f64;
            assert!(bits(recipe.wanted("token_embd.weight", 9)) >= bits(Q8_0), "{recipe}");
            assert!(bits(recipe.wanted("output.weight", 9)) >= bits(Q6_K), "{recipe}");
            assert!(bits(recipe.high.down) >= bits(recipe.low.down), "{recipe}");
        }
    }

    #[test]
    fn names_numbers_and_aliases_lead_to_the_same_recipes() {
        for recipe in RECIPES.iter().chain(UNIFORM) {
            assert_eq!(Recipe::parse(&recipe.name.to_lowercase()), Some(*recipe));
            assert_eq!(Recipe::parse(&recipe.file_type.to_string()), Some(*recipe));
        }
        assert_eq!(Recipe::parse("q4_k"), Recipe::parse("Q4_K_M"));
        assert!(Recipe::parse("Q9_0").is_none() && Recipe::parse("999").is_none());
        assert!(Recipe::from_name("Q9_0").unwrap_err().to_string().contains("Q4_K_M"));
    }

    #[test]
    fn strange_names_have_no_layer() {
        assert_eq!(place("blk.x.attn_q.weight"), Place::Other);
        assert_eq!(place("blk.99999999999999999999999.attn_q.weight"), Place::Other);
        assert_eq!(place("blk.18446744073709551615.attn_q.weight"), Place::Other);
        assert_eq!(place("blk.7.attn_q.weight"), Place::Layer(7, "attn_q"));
    }
}
