//! The `*_cases.json` files. Fields that a test does not know are ignored.

use serde::Deserialize;

/// Traces are compared where a run stays at least this far from a tie in the order of commits.
pub const TIE: f64 = 1e-4;

fn infinite() -> f64 {
    f64::INFINITY
}

/// `text_cases.json`, `mmu_cases.json` and `noisy_cases.json`.
#[derive(Deserialize)]
pub struct TextCase {
    #[serde(alias = "question")]
    pub prompt: String,
    /// The image that is asked about: the I of `vq.I`.
    pub image: Option<usize>,
    #[serde(default)]
    pub thinking: bool,
    pub prompt_ids: Vec<u32>,
    pub gen_length: usize,
    pub steps: usize,
    pub block_length: usize,
    #[serde(default)]
    pub cfg_scale: f64,
    #[serde(default)]
    pub temperature: f64,
    #[serde(default)]
    pub remasking: Remask,
    pub output_ids: Vec<u32>,
    #[serde(default = "infinite")]
    pub margin_order: f64,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Default)]
#[serde(rename_all = "snake_case")]
pub enum Remask {
    #[default]
    LowConfidence,
    Random,
}

/// `t2i_cases.json`.
#[derive(Deserialize)]
pub struct DrawCase {
    pub prompt: String,
    pub prompt_ids: Vec<u32>,
    pub max_text_len: usize,
    pub steps: usize,
    pub guidance_scale: f32,
    pub temperature: f32,
    pub schedule: String,
}

/// `r2i_cases.json`.
#[derive(Deserialize)]
pub struct ReasonedCase {
    pub prompt: String,
    pub prompt_ids: Vec<u32>,
    /// Ids from bos to the last eos.
    pub text_len: usize,
    pub gen_length: usize,
    pub steps: usize,
    pub block_length: usize,
    pub image_steps: usize,
    pub guidance_scale: f32,
    pub temperature: f32,
    pub schedule: String,
    #[serde(default = "infinite")]
    pub margin_order: f64,
}

/// `resize_cases.json`.
#[derive(Deserialize)]
pub struct ResizeCase {
    pub size: usize,
    pub mode: String,
}

/// `schedule_cases.json`.
#[derive(Deserialize)]
pub struct ScheduleCase {
    pub schedule: String,
    pub tokens: usize,
    pub steps: usize,
    pub masked: Vec<i64>,
}

/// `tokenizer_cases.json`.
#[derive(Deserialize)]
pub struct TokenizerCase {
    pub text: String,
    pub ids: Vec<u32>,
    pub decoded: String,
}

/// `prompt_cases.json`.
#[derive(Deserialize)]
#[serde(tag = "task", rename_all = "lowercase")]
pub enum PromptCase {
    Chat { messages: Vec<Turn>, thinking: bool, ids: Vec<u32> },
    Draw { text: String, max_text_len: usize, ids: Vec<u32>, cut: bool },
}

#[derive(Deserialize)]
pub struct Turn {
    pub role: String,
    pub content: String,
}
