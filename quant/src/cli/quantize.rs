//! `mmada-quantize IN.gguf [OUT.gguf] TYPE [THREADS]`, as llama-quantize is called.

use std::path::PathBuf;

use clap::Args;
use mmada::{Error, Result};
use mmada_quantize::{Override, QuantizeOptions, Recipe, quantize};

use super::{ShowArgs, TYPES_HELP, TypeArgs, parse_size, told};

#[derive(Args)]
#[command(after_help = TYPES_HELP)]
pub struct QuantizeArgs {
    /// A GGUF file, or any part of a split one
    #[arg(value_name = "IN.gguf", required = true)]
    input: Option<String>,
    /// The file to write [default: named by the GGUF naming convention, beside the input]
    #[arg(value_name = "OUT.gguf", required = true)]
    second: Option<String>,
    /// One of the types below, or COPY to keep all types (to split and to join files)
    #[arg(value_name = "TYPE")]
    third: Option<String>,
    /// [default: one per core]
    #[arg(value_name = "THREADS")]
    fourth: Option<String>,
    #[command(flatten)]
    types: TypeArgs,
    /// Encode tensors anew that are in block types already
    #[arg(long)]
    allow_requantize: bool,
    /// Change metadata; TYPE is int, float, bool or str; may be repeated
    #[arg(long = "override-kv", value_name = "KEY=TYPE:VALUE", value_parser = Override::parse)]
    overrides: Vec<Override>,
    /// Split the output as the input is
    #[arg(long, conflicts_with = "split_max_size")]
    keep_split: bool,
    /// Split the output in parts of up to so many bytes, as in 500M or 4G
    #[arg(long, value_name = "N(M|G)", value_parser = parse_size)]
    split_max_size: Option<u64>,
    /// Print what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    show: ShowArgs,
}

/// The arguments without names.
struct What {
    input: PathBuf,
    output: Option<PathBuf>,
    /// `None`: copy.
    recipe: Option<Recipe>,
    threads: usize,
}

impl What {
    fn parse(words: &[String]) -> Result<What> {
        let is_type = |word: &String| word.eq_ignore_ascii_case("copy") || Recipe::parse(word).is_some();
        let (input, output, recipe, threads) = match words {
            [input, recipe] => (input, None, recipe, None),
            [input, recipe, threads] if is_type(recipe) => (input, None, recipe, Some(threads)),
            [input, output, recipe] => (input, Some(output), recipe, None),
            [input, output, recipe, threads] => (input, Some(output), recipe, Some(threads)),
            _ => return Err(Error::invalid("expected IN.gguf [OUT.gguf] TYPE [THREADS]")),
        };
        let recipe = if recipe.eq_ignore_ascii_case("copy") { None } else { Some(Recipe::from_name(recipe)?) };
        let threads = match threads {
            Some(n) => n.parse().map_err(|_| Error::invalid(format!("{n} is no number of threads")))?,
            None => 0,
        };
        Ok(What { input: input.into(), output: output.map(PathBuf::from), recipe, threads })
    }
}

pub fn run(args: QuantizeArgs) -> Result<()> {
    // Single arguments rather than a list, which options could not stand between.
    let words: Vec<String> = [args.input, args.second, args.third, args.fourth].into_iter().flatten().collect();
    let What { input, output, recipe, threads } = What::parse(&words)?;
    if recipe.is_none() && args.types.given() {
        return Err(Error::invalid("COPY keeps all types: options that choose types do not go with it"));
    }
    told(&args.show, args.dry_run, |cancel, progress| {
        let options = QuantizeOptions {
            input,
            output,
            types: recipe.map(|recipe| args.types.options(recipe)),
            imatrix: args.types.imatrix,
            allow_requantize: args.allow_requantize,
            allow_nonfinite: args.types.allow_nonfinite,
            overrides: args.overrides,
            keep_split: args.keep_split,
            split_max_size: args.split_max_size,
            dry_run: args.dry_run,
            threads,
            cancel: Some(cancel),
        };
        quantize(&options, progress)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<What> {
        What::parse(&words.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn the_output_and_the_threads_may_be_left_out() {
        let all = parse("in.gguf out.gguf q4_k_m 3").unwrap();
        assert_eq!((all.output, all.recipe.unwrap().name(), all.threads), (Some("out.gguf".into()), "Q4_K_M", 3));
        let short = parse("in.gguf Q8_0").unwrap();
        assert_eq!((short.output, short.recipe.unwrap().name(), short.threads), (None, "Q8_0", 0));
        let threads = parse("in.gguf Q8_0 5").unwrap();
        assert_eq!((threads.output, threads.threads), (None, 5));
        let copy = parse("in.gguf out.gguf COPY").unwrap();
        assert!(copy.recipe.is_none() && copy.output == Some("out.gguf".into()));
        for words in ["in.gguf out.gguf", "in.gguf out.gguf Q4_0 x", "in.gguf out.gguf 4 Q4_0"] {
            assert!(parse(words).is_err(), "{words}");
        }
    }
}
