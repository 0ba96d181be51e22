//! The type of every tensor: the recipe's, unless the user said otherwise for some.

use std::collections::BTreeMap;

use mmada::gguf::{GgmlType, TensorSpec};
use mmada::tensor::can_quantize;
use mmada::{Error, Result};
use regex::Regex;

use crate::recipe::{Place, Recipe, fitting, place};

/// What tensors are to be stored as.
#[derive(Clone, Debug)]
pub struct TypeOptions {
    pub recipe: Recipe,
    /// Every matrix of the backbone in the recipe's base type: no raised layers, embedding and output alike.
    pub pure: bool,
    /// Types for tensors whose names match; the first rule that matches counts.
    pub tensor_types: Vec<TensorRule>,
    pub token_embedding: Option<GgmlType>,
    pub output: Option<GgmlType>,
    /// Keep `output.weight` as it is.
    pub leave_output: bool,
}

impl<R: Into<Recipe>> From<R> for TypeOptions {
    fn from(recipe: R) -> Self {
        let recipe = recipe.into();
        TypeOptions {
            recipe,
            pure: false,
            tensor_types: vec![],
            token_embedding: None,
            output: None,
            leave_output: false,
        }
    }
}

/// Matrices whose rows did not fit what was wanted, by wanted type, chosen type and length of rows.
#[derive(Default)]
pub struct Fallbacks(BTreeMap<(&'static str, &'static str, usize), Vec<String>>);

impl Fallbacks {
    /// One sentence for all matrices of a kind: a model has hundreds.
    pub fn notes(self) -> impl Iterator<Item = String> {
        self.0.into_iter().filter_map(|((wanted, chosen, cols), names)| {
            let others = match names.len() {
                1 => " is".to_owned(),
                n => format!(" and {} more are", n - 1),
            };
            let first = names.first()?;
            Some(format!("{first}{others} stored as {chosen}: blocks of {wanted} do not fill rows of {cols}"))
        })
    }
}

/// `REGEX=TYPE`: a type for the tensors in whose names the expression is found.
#[derive(Clone, Debug)]
pub struct TensorRule {
    pattern: Regex,
    dtype: GgmlType,
}

impl TensorRule {
    /// # Errors
    /// `InvalidArgument` for what has no `=`, for a malformed expression, for a type that cannot be written.
    pub fn parse(rule: &str) -> Result<TensorRule> {
        let wrong = |reason: &str| Error::invalid(format!("--tensor-type {rule}: {reason}"));
        let (pattern, dtype) = rule.rsplit_once('=').ok_or_else(|| wrong("expected REGEX=TYPE"))?;
        let dtype = parse_type(dtype).map_err(|e| wrong(&e.to_string()))?;
        let pattern = Regex::new(pattern).map_err(|e| {
            // The crate's message draws the expression on several lines; its last line says what is wrong.
            let reason = e.to_string();
            wrong(reason.lines().last().unwrap_or_default().trim_start_matches("error: "))
        })?;
        Ok(TensorRule { pattern, dtype })
    }
}

/// A type that tensors can be stored as, by name.
///
/// # Errors
/// `InvalidArgument` names the types that there are.
pub fn parse_type(name: &str) -> Result<GgmlType> {
    match GgmlType::from_name(name).filter(|&t| can_quantize(t)) {
        Some(dtype) => Ok(dtype),
        None => {
            let known: Vec<&str> = GgmlType::all().filter(|&t| can_quantize(t)).map(GgmlType::name).collect();
            Err(Error::invalid(format!("{name} is no type that can be written; these are: {}", known.join(" "))))
        }
    }
}

impl TypeOptions {
    /// The type of the matrix `name` with rows of `cols` weights, in a model of `layers` layers, now stored as `source`.
    /// Where rows do not fit what was wanted, `fallbacks` gets to know.
    ///
    /// # Errors
    /// `InvalidArgument` for an image tokenizer in a block type other than Q8_0 and for types that cannot be written.
    pub fn choose(
        &self,
        name: &str,
        layers: usize,
        cols: usize,
        source: Option<GgmlType>,
        fallbacks: &mut Fallbacks,
    ) -> Result<GgmlType> {
        let place = place(name);
        let wanted = self.wanted(name, place, layers, source);
        if place == Place::ImageTokenizer && !wanted.is_float() && wanted != GgmlType::Q8_0 {
            return Err(Error::invalid(format!(
                "tensor {name} cannot be {wanted}: the image tokenizer is computed from F32, F16, BF16 or Q8_0"
            )));
        }
        if source == Some(wanted) {
            return Ok(wanted);
        }
        let chosen = fitting(wanted, cols);
        if !can_quantize(chosen) {
            return Err(Error::unsupported(format!("tensor {name}"), format!("this version cannot write {chosen}")));
        }
        if chosen != wanted {
            fallbacks.0.entry((wanted.name(), chosen.name(), cols)).or_default().push(name.to_owned());
        }
        Ok(chosen)
    }

    /// A sentence for every rule that matches no matrix of a model: most likely a slip.
    pub fn idle<'a>(&'a self, specs: &'a [TensorSpec]) -> impl Iterator<Item = String> + 'a {
        let used = |rule: &TensorRule| specs.iter().any(|t| t.dims.len() > 1 && rule.pattern.is_match(&t.name));
        let idle = self.tensor_types.iter().filter(move |rule| !used(rule));
        idle.map(|rule| {
            let (pattern, dtype) = (&rule.pattern, rule.dtype);
            format!("--tensor-type {pattern}={dtype} does nothing: no matrix has a name that matches")
        })
    }

    fn wanted(&self, name: &str, place: Place, layers: usize, source: Option<GgmlType>) -> GgmlType {
        if let (Place::Output, true, Some(source)) = (place, self.leave_output, source) {
            return source;
        }
        let of_place = match place {
            Place::Embedding => self.token_embedding,
            Place::Output => self.output,
            _ => None,
        };
        let by_rule = || self.tensor_types.iter().find(|rule| rule.pattern.is_match(name)).map(|rule| rule.dtype);
        if let Some(dtype) = of_place.or_else(by_rule) {
            return dtype;
        }
        match (place, source) {
            // As good as F16, and exact.
            (Place::ImageTokenizer, Some(GgmlType::BF16)) => GgmlType::BF16,
            (Place::ImageTokenizer | Place::Vector, _) => self.recipe.wanted(name, layers),
            _ if self.pure => self.recipe.base(),
            _ => self.recipe.wanted(name, layers),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use GgmlType::{BF16, F16, Q4_K, Q5_0, Q5_K, Q6_K, Q8_0};

    fn options() -> TypeOptions {
        Recipe::parse("Q4_K_M").unwrap().into()
    }

    fn choose(options: &TypeOptions, name: &str) -> GgmlType {
        options.choose(name, 32, 512, Some(BF16), &mut Fallbacks::default()).unwrap()
    }

    #[test]
    fn what_the_user_says_of_a_tensor_counts_before_the_recipe() {
        let mut o = options();
        assert_eq!(choose(&o, "blk.5.attn_q.weight"), Q4_K);
        o.tensor_types = vec![
            TensorRule::parse(r"blk\.5\.attn_(q|k)=Q5_K").unwrap(),
            TensorRule::parse("attn=q8_0").unwrap(),
            TensorRule::parse("embd=f16").unwrap(),
        ];
        assert_eq!(choose(&o, "blk.5.attn_q.weight"), Q5_K, "the first rule");
        assert_eq!(choose(&o, "blk.15.attn_q.weight"), Q8_0);
        assert_eq!(choose(&o, "blk.15.ffn_up.weight"), Q4_K);
        assert_eq!(choose(&o, "token_embd.weight"), F16);
        o.token_embedding = Some(Q6_K);
        assert_eq!(choose(&o, "token_embd.weight"), Q6_K);
        o.output = Some(Q4_K);
        assert_eq!(choose(&o, "output.weight"), Q4_K);
        o.leave_output = true;
        assert_eq!(choose(&o, "output.weight"), BF16);
    }

    #[test]
    fn pure_leaves_the_image_tokenizer_alone() {
        let o = TypeOptions { pure: true, ..options() };
        assert_eq!(choose(&o, "output.weight"), Q4_K);
        assert_eq!(choose(&o, "token_embd.weight"), Q4_K);
        assert_eq!(choose(&o, "blk.31.ffn_down.weight"), Q4_K);
        assert_eq!(choose(&o, "vq.encoder.conv_in.weight"), BF16);
        assert_eq!(o.choose("vq.encoder.conv_in.weight", 32, 27, None, &mut Fallbacks::default()).unwrap(), F16);
    }

    #[test]
    fn the_image_tokenizer_is_stored_in_8_bits_where_its_rows_fit_if_asked_for() {
        let o = TypeOptions { tensor_types: vec![TensorRule::parse(r"^vq\.=q8_0").unwrap()], ..options() };
        let choose = |cols| o.choose("vq.decoder.conv_out.weight", 32, cols, None, &mut Fallbacks::default()).unwrap();
        assert_eq!((choose(288), choose(27)), (Q8_0, F16));
    }

    #[test]
    fn rows_that_do_not_fit_are_noted_once_for_each_kind() {
        let mut fallbacks = Fallbacks::default();
        for (name, cols, dtype) in [
            ("blk.5.attn_q.weight", 96, Q5_0),
            ("blk.6.attn_q.weight", 96, Q5_0),
            ("blk.5.ffn_down.weight", 100, F16),
            ("blk.5.attn_k.weight", 256, Q4_K),
        ] {
            assert_eq!(options().choose(name, 32, cols, None, &mut fallbacks).unwrap(), dtype);
        }
        let notes: Vec<String> = fallbacks.notes().collect();
        assert_eq!(
            notes,
            [
                "blk.5.ffn_down.weight is stored as F16: blocks of Q4_K do not fill rows of 100",
                "blk.5.attn_q.weight and 1 more are stored as Q5_0: blocks of Q4_K do not fill rows of 96",
            ]
        );
    }

    #[test]
    fn rules_that_make_no_sense_are_refused() {
        for (rule, word) in [("attn", "REGEX=TYPE"), ("attn=q9", "q9"), ("(=q8_0", "unclosed"), ("a=i32", "no type")] {
            let error = TensorRule::parse(rule).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(rule) && !error.contains('\n'), "{error}");
        }
        let o = TypeOptions { tensor_types: vec![TensorRule::parse("conv=q6_k").unwrap()], ..options() };
        let error =
            o.choose("vq.encoder.conv_in.weight", 2, 64, None, &mut Fallbacks::default()).unwrap_err().to_string();
        assert!(error.contains("vq.encoder.conv_in.weight") && error.contains("F16"), "{error}");
    }
}
