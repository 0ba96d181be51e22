//! The arguments of every command, as clap reads them. Options that are left out take the model file's defaults.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use mmada::{Compute, DeviceChoice};

/// Runs MMaDA models: draws pictures, answers questions about text and pictures, thinks first when asked to.
#[derive(Parser, Debug)]
#[command(name = "mmada", version, max_term_width = 110)]
#[command(after_help = "Exit codes: 0 done, 1 failed while running, 2 bad input or usage, 130 interrupted.")]
pub struct Cli {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Args, Debug, Clone)]
pub struct Common {
    /// Model file (GGUF); otherwise $MMADA_MODEL, otherwise the demo model
    #[arg(short, long, global = true, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Threads; 0 takes every core
    #[arg(short, long, global = true, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub threads: usize,
    /// Arithmetic: 8- and 16-bit products, or f32 throughout
    #[arg(long, global = true, value_enum, default_value_t = ComputeArg::Fast)]
    pub compute: ComputeArg,
    /// Keep the weights unpacked in memory (`info` says how much): faster where few tokens run at a time
    #[arg(long, global = true)]
    pub pack: bool,
    /// Where the model runs: cpu, cuda (the first graphics card of NVIDIA's), cuda:N, or auto (a card, or else the cpu);
    /// with /ampere behind it a card of Hopper runs no kernels of its own
    #[arg(long, global = true, value_name = "DEVICE", default_value_t)]
    pub device: DeviceChoice,
    /// How many of the network's layers run on the graphics card, the others on the cpu; otherwise as many as fit
    #[arg(long, global = true, value_name = "N")]
    pub gpu_layers: Option<usize>,
    /// Print the result as one JSON object: text, ids, files, seed, timings
    #[arg(long, global = true)]
    pub json: bool,
    /// Print nothing but the result, warnings and errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Draw a picture of a description
    Draw(DrawArgs),
    /// Answer a question, about a picture if one is given
    Ask(AskArgs),
    /// Talk, line by line, with the whole conversation remembered
    Chat(ChatArgs),
    /// Show what a model file holds and needs, or what this build runs on
    Info(InfoArgs),
}

#[derive(Args, Debug)]
pub struct DrawArgs {
    /// What to draw
    pub prompt: String,
    /// Picture file: .png, .jpg or .jpeg
    #[arg(short, long, value_name = "FILE", default_value = "out.png")]
    pub output: PathBuf,
    /// Think out a fuller description first, print it, and draw that
    #[arg(long)]
    pub think: bool,
    /// Pictures to draw; several become out-1.png, out-2.png and so on
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    pub count: usize,
    /// Denoising steps
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// How strongly the picture follows the description; 0 turns guidance off
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = finite_f32)]
    pub guidance: Option<f32>,
    /// Randomness of the order in which positions are decided
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = finite_f32)]
    pub temperature: Option<f32>,
    /// How many positions stay undecided as the steps go: cosine, linear, sigmoid, or pow and an exponent (pow2)
    #[arg(long, value_name = "NAME")]
    pub schedule: Option<String>,
    /// What counts as sure: the drawn code's probability, or the lead of the best code over the second best
    #[arg(long, value_enum)]
    pub confidence: Option<ConfidenceArg>,
    /// Random seed; the same seed gives the same picture. Left out: a new one, which is reported
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Width and height in pixels, multiples of the model's downsampling
    #[arg(long, value_name = "WxH")]
    pub size: Option<Size>,
    /// Also save the picture as it stands every N steps (out-step-004.png)
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub preview_every: Option<usize>,
    /// Save the denoising as an animation
    #[arg(long, value_name = "FILE.gif")]
    pub trace: Option<PathBuf>,
}

/// How an answer is denoised; shared by `ask` and `chat`.
#[derive(Args, Debug, Clone)]
pub struct TextArgs {
    /// Picture that the question is about (png, jpeg or gif)
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// Squeeze the whole picture into the square instead of cutting its middle out (diagrams, documents)
    #[arg(long, requires = "image")]
    pub squash: bool,
    /// Think before answering
    #[arg(long)]
    pub think: bool,
    /// Denoising steps; a multiple of the number of blocks
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// Longest answer, in tokens; a multiple of the block length
    #[arg(long, value_name = "N")]
    pub gen_length: Option<usize>,
    /// Tokens that are denoised together before the next block begins
    #[arg(long, value_name = "N")]
    pub block_length: Option<usize>,
    /// Randomness of the tokens; 0 takes the likeliest
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = finite_f64)]
    pub temperature: Option<f64>,
    /// How strongly the answer follows the question; 0 turns guidance off
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = finite_f64)]
    pub cfg_scale: Option<f64>,
    /// Which positions are decided first
    #[arg(long, value_enum)]
    pub remasking: Option<RemaskingArg>,
    /// Random seed. Left out: a new one, which is reported
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// End the answer before this text; may be repeated
    #[arg(long, value_name = "STRING")]
    pub stop: Vec<String>,
    /// Print what follows the thinking and leave the thinking out
    #[arg(long)]
    pub answer_only: bool,
}

#[derive(Args, Debug)]
pub struct AskArgs {
    /// The question
    pub question: String,
    #[command(flatten)]
    pub text: TextArgs,
    /// Save the denoising as an animation
    #[arg(long, value_name = "FILE.gif")]
    pub trace: Option<PathBuf>,
}

#[derive(Args, Debug)]
#[command(
    after_help = "One line of input is one message. /reset forgets the conversation, /quit or end of input leaves."
)]
pub struct ChatArgs {
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    #[command(flatten)]
    pub text: TextArgs,
}

#[derive(Args, Debug)]
pub struct InfoArgs {
    /// Model file; left out, the one that the other commands would use
    #[arg(conflicts_with = "model")]
    pub file: Option<PathBuf>,
    /// Show the version, the instruction set ($MMADA_CPU, otherwise the best there is) and the threads instead
    #[arg(long, conflicts_with_all = ["file", "model"])]
    pub system: bool,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComputeArg {
    Fast,
    Exact,
}

impl From<ComputeArg> for Compute {
    fn from(arg: ComputeArg) -> Self {
        match arg {
            ComputeArg::Fast => Compute::Fast,
            ComputeArg::Exact => Compute::Exact,
        }
    }
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfidenceArg {
    Probability,
    Margin,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemaskingArg {
    /// The surest positions first
    #[value(name = "low_confidence", alias = "low-confidence")]
    LowConfidence,
    /// Any order
    Random,
}

/// A picture's size in pixels, written `512x384`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub width: usize,
    pub height: usize,
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: &str| match part.parse::<usize>() {
            Ok(n) if n > 0 && part.bytes().all(|b| b.is_ascii_digit()) => Some(n),
            _ => None,
        };
        text.split_once(['x', 'X'])
            .and_then(|(w, h)| Some(Size { width: number(w)?, height: number(h)? }))
            .ok_or_else(|| "a size is written as width x height in pixels, such as 512x384".to_owned())
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(n) => Ok(n),
        Err(e) => Err(e.to_string()),
    }
}

fn finite_f32(text: &str) -> Result<f32, String> {
    text.parse::<f32>().ok().filter(|x| x.is_finite()).ok_or_else(|| "must be a finite number".to_owned())
}

fn finite_f64(text: &str) -> Result<f64, String> {
    text.parse::<f64>().ok().filter(|x| x.is_finite()).ok_or_else(|| "must be a finite number".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("mmada").chain(line.iter().copied()))
    }

    #[test]
    fn the_command_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_size_is_two_positive_numbers() {
        assert_eq!("64x48".parse(), Ok(Size { width: 64, height: 48 }));
        assert_eq!("512X16".parse(), Ok(Size { width: 512, height: 16 }));
        for bad in ["", "64", "x", "64x", "x64", "0x64", "64x0", "-8x8", "+8x8", "64x64x64", "6 x6", "1e2x8", "64×64"]
        {
            assert!(bad.parse::<Size>().is_err(), "{bad:?} was taken for a size");
        }
        assert!("99999999999999999999999x1".parse::<Size>().is_err());
    }

    #[test]
    fn common_options_are_accepted_on_either_side_of_the_command() {
        let before = parse(&["-m", "a.gguf", "-t", "3", "--json", "ask", "why?"]).unwrap();
        let after = parse(&["ask", "why?", "-m", "a.gguf", "-t", "3", "--json"]).unwrap();
        for cli in [before, after] {
            assert_eq!(cli.common.model.as_deref(), Some(std::path::Path::new("a.gguf")));
            assert_eq!(cli.common.threads, 3);
            assert!(cli.common.json);
        }
    }

    #[test]
    fn numbers_that_are_none_are_refused() {
        for line in [
            ["draw", "x", "--guidance", "nan"],
            ["draw", "x", "--temperature", "inf"],
            ["draw", "x", "--count", "0"],
            ["draw", "x", "--steps", "-1"],
            ["draw", "x", "--preview-every", "0"],
            ["ask", "x", "--cfg-scale", "NaN"],
            ["ask", "x", "--seed", "-3"],
        ] {
            assert!(parse(&line).is_err(), "{line:?} was accepted");
        }
    }

    #[test]
    fn stop_strings_add_up_and_a_negative_number_reaches_the_library() {
        let cli = parse(&["ask", "x", "--stop", "a", "--stop", "b c", "--temperature", "-1.5"]).unwrap();
        let Command::Ask(ask) = cli.command else { panic!("not ask") };
        assert_eq!(ask.text.stop, ["a", "b c"]);
        assert_eq!(ask.text.temperature, Some(-1.5));
    }
}
