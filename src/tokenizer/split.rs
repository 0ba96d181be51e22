//! How text is split before merging: the patterns of published tokenizers under the names that llama.cpp gives them
//! (`tokenizer.ggml.pre`; the names and what they stand for: llama-vocab.cpp). The patterns are those of the
//! tokenizers themselves, which models were trained with; llama.cpp has them rewritten for its own matcher.

use serde_json::{Value, json};

/// A way to split text.
pub(super) struct Split {
    /// The first is what we write.
    names: &'static [&'static str],
    /// Applied one after the other to what is left between matches and to the matches themselves.
    patterns: &'static [&'static str],
    /// A word that is a token is not merged together.
    pub(super) ignore_merges: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";

static SPLITS: &[Split] = &[
    Split {
        names: &["qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"],
        patterns: &[QWEN2],
        ignore_merges: false,
    },
    Split {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"],
        patterns: &[LLAMA3],
        ignore_merges: true,
    },
    Split { names: &["smaug-bpe", "dbrx"], patterns: &[LLAMA3], ignore_merges: false },
    Split { names: &["llada-moe", "bailingmoe", "bailingmoe2"], patterns: &[BAILING], ignore_merges: false },
    Split { names: &["gpt-2", "phi-2", "olmo", "mpt", "modern-bert"], patterns: &[GPT2], ignore_merges: false },
    Split {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"],
        patterns: &[r"\p{N}", GPT2],
        ignore_merges: false,
    },
    Split {
        names: &["default"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        ignore_merges: false,
    },
];

/// llama.cpp's name for the split of a `tokenizer.json`: `pre_tokenizer` is the text of that member, `ignore_merges` is
/// the model's. `None` where it has no name for it.
pub fn split_name(pre_tokenizer: &str, ignore_merges: bool) -> Option<&'static str> {
    let pre_tokenizer: Value = serde_json::from_str(pre_tokenizer).ok()?;
    let steps = match pre_tokenizer.get("pretokenizers") {
        Some(steps) => steps.as_array()?.as_slice(),
        None => std::slice::from_ref(&pre_tokenizer),
    };
    let mut patterns = Vec::new();
    for step in steps {
        patterns.extend(pattern(step)?);
    }
    SPLITS.iter().find(|s| s.ignore_merges == ignore_merges && s.patterns == patterns).and_then(Split::name)
}

/// The pattern that a step of a pre-tokenizer splits by, `Some(None)` if it does not split; `None` for a step that
/// llama.cpp could not take.
fn pattern(step: &Value) -> Option<Option<&str>> {
    let flag = |name: &str, default| step.get(name).and_then(Value::as_bool).unwrap_or(default);
    match step.get("type")?.as_str()? {
        "Split" if step.get("behavior")? == "Isolated" && !flag("invert", false) => {
            step.get("pattern")?.get("Regex")?.as_str().map(Some)
        }
        "Digits" if flag("individual_digits", false) => Some(Some(r"\p{N}")),
        "ByteLevel" if flag("add_prefix_space", true) => None,
        "ByteLevel" => Some(flag("use_regex", true).then_some(GPT2)),
        _ => None,
    }
}

/// The names of all splits that [`super::Tokenizer::from_ggml`] knows.
pub fn split_names() -> impl Iterator<Item = &'static str> {
    SPLITS.iter().flat_map(|split| split.names).copied()
}

impl Split {
    pub(super) fn named(name: &str) -> Option<&'static Split> {
        SPLITS.iter().find(|split| split.names.contains(&name))
    }

    fn name(&self) -> Option<&'static str> {
        self.names.first().copied()
    }

    /// As a `tokenizer.json` has it.
    pub(super) fn pre_tokenizer(&self) -> Value {
        let split = |pattern: &&str| {
            let pattern = json!({"Regex": pattern});
            json!({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false})
        };
        let mut steps: Vec<Value> = self.patterns.iter().map(split).collect();
        steps.push(json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}));
        json!({"type": "Sequence", "pretokenizers": steps})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_split_is_found_by_each_of_its_names_and_by_its_pattern() {
        let mut names: Vec<&str> = split_names().collect();
        for split in SPLITS {
            for name in split.names {
                assert!(std::ptr::eq(Split::named(name).unwrap(), split), "{name}");
            }
            let pre_tokenizer = split.pre_tokenizer().to_string();
            assert_eq!(split_name(&pre_tokenizer, split.ignore_merges), Some(split.names[0]));
        }
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all, "a name of two splits");
        assert!(Split::named("tekken").is_none());
    }

    #[test]
    fn a_split_without_a_name_has_none() {
        let byte_level = r#"{"type": "ByteLevel", "add_prefix_space": false, "use_regex": true}"#;
        assert_eq!(split_name(byte_level, false), Some("gpt-2"));
        let digits = r#"{"type": "Digits", "individual_digits": true}"#;
        let digits = format!(r#"{{"type": "Sequence", "pretokenizers": [{digits}, {byte_level}]}}"#);
        assert_eq!(split_name(&digits, false), Some("smollm"));
        for other in [
            r#"{"type": "ByteLevel", "add_prefix_space": true, "use_regex": true}"#,
            r#"{"type": "Metaspace"}"#,
            r#"{"type": "Split", "pattern": {"Regex": "a+"}, "behavior": "Isolated"}"#,
            r#"{"type": "Split", "pattern": {"String": " "}, "behavior": "Isolated"}"#,
            "null",
            "{",
        ] {
            assert_eq!(split_name(other, false), None, "{other}");
        }
        assert_eq!(split_name(byte_level, true), None, "llama.cpp merges such words");
        let removed = Split::named("qwen2").unwrap().pre_tokenizer().to_string().replace("Isolated", "Removed");
        assert_eq!(split_name(&removed, false), None);
    }
}
