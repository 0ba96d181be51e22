//! `mmada-quantize convert`.

use std::path::PathBuf;

use clap::Args;
use mmada::Result;
use mmada_quantize::{ConvertOptions, Override, Recipe, convert};

use super::{ShowArgs, TYPES_HELP, TypeArgs, parse_size, told};

#[derive(Args)]
#[command(after_help = TYPES_HELP)]
pub struct ConvertArgs {
    /// Folder with config.json, the weights and tokenizer.json
    #[arg(value_name = "CHECKPOINT_DIR")]
    checkpoint: PathBuf,
    /// The file to write [default: named by the GGUF naming convention, in the working directory]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Split the output in parts of up to so many bytes, as in 500M or 4G
    #[arg(long, value_name = "N(M|G)", value_parser = parse_size)]
    split_max_size: Option<u64>,
    /// What the tensors are stored as; norms stay F32, the image tokenizer is F16
    #[arg(long = "type", value_name = "TYPE", value_parser = Recipe::from_name)]
    recipe: Recipe,
    #[command(flatten)]
    types: TypeArgs,
    /// Folder of the image tokenizer [default: the folder vq of the checkpoint, if there is one]
    #[arg(long, value_name = "DIR")]
    vq: Option<PathBuf>,
    /// A Jinja file to use as chat template [default: MMaDA's]
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,
    /// Id of the first image code [default: the number of tokens of the tokenizer]
    #[arg(long, value_name = "N")]
    image_code_offset: Option<u32>,
    /// Name of the model, kept in the file [default: the folder's name]
    #[arg(long)]
    name: Option<String>,
    /// Change metadata; TYPE is int, float, bool or str; may be repeated
    #[arg(long = "override-kv", value_name = "KEY=TYPE:VALUE", value_parser = Override::parse)]
    overrides: Vec<Override>,
    /// Print what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Threads; 0 means one per core
    #[arg(short, long, default_value_t = 0)]
    threads: usize,
    #[command(flatten)]
    show: ShowArgs,
}

pub fn run(args: ConvertArgs) -> Result<()> {
    told(&args.show, args.dry_run, |cancel, progress| {
        let options = ConvertOptions {
            checkpoint: args.checkpoint,
            output: args.output,
            split_max_size: args.split_max_size,
            types: args.types.options(args.recipe),
            imatrix: args.types.imatrix,
            allow_nonfinite: args.types.allow_nonfinite,
            vq: args.vq,
            chat_template: args.chat_template,
            image_code_offset: args.image_code_offset,
            name: args.name,
            overrides: args.overrides,
            dry_run: args.dry_run,
            threads: args.threads,
            cancel: Some(cancel),
        };
        convert(&options, progress)
    })
}
