//! File names by the GGUF naming convention (ggml's `docs/gguf.md`):
//! `BaseName-SizeLabel-FineTune-Version-Encoding.gguf`.

use mmada::gguf::MetaValue;

/// The name for a file with this metadata, `weights` weights and tensors of the recipe `encoding`. `stem` serves where
/// the metadata has no name.
pub fn file_name(metadata: &[(String, MetaValue)], stem: &str, weights: u64, encoding: &str) -> String {
    let text = |key: &str| {
        let value = metadata.iter().find(|(k, _)| k == key).map(|(_, value)| value);
        match value {
            Some(MetaValue::String(s)) => Some(part(s)).filter(|s| !s.is_empty()),
            _ => None,
        }
    };
    let mut parts = vec![text("general.basename").or_else(|| text("general.name")).unwrap_or_else(|| part(stem))];
    match text("general.size_label") {
        Some(label) if !has_size(&parts[0]) => parts.push(label),
        None if !has_size(&parts[0]) => parts.push(size_label(weights)),
        _ => {}
    }
    parts.extend(text("general.finetune"));
    parts.push(text("general.version").unwrap_or_else(|| "v1.0".into()));
    parts.push(encoding.to_owned());
    format!("{}.gguf", parts.join("-"))
}

/// What may stand in a file name; everything else becomes a hyphen.
fn part(text: &str) -> String {
    let kept = |c: char| if c.is_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
    let text: String = text.trim().chars().map(kept).collect();
    // A leading dot would hide the file, and an overlong name cannot be created.
    text.trim_matches(['.', '-']).chars().take(100).collect()
}

/// Whether a part of the name is a size already: `8B`, `0.5B`, `12M`.
fn has_size(name: &str) -> bool {
    name.split('-').any(|part| {
        let number = part.strip_suffix(['K', 'M', 'B', 'T', 'k', 'm', 'b', 't']);
        number.is_some_and(|n| n.parse::<f64>().is_ok_and(|n| n > 0.0))
    })
}

/// Two digits and a unit, as gguf-py writes it: `8.1B`, `12M`, `135M`.
pub fn size_label(weights: u64) -> String {
    let n = weights as f64;
    let (scaled, unit) = match n {
        n if n >= 1e12 => (n / 1e12, "T"),
        n if n >= 1e9 => (n / 1e9, "B"),
        n if n >= 1e6 => (n / 1e6, "M"),
        n => (n / 1e3, "K"),
    };
    if scaled.round() < 10.0 { format!("{scaled:.1}{unit}") } else { format!("{scaled:.0}{unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(pairs: &[(&str, &str)], weights: u64) -> String {
        let metadata: Vec<(String, MetaValue)> = pairs.iter().map(|&(k, v)| (k.to_owned(), v.into())).collect();
        file_name(&metadata, "the stem", weights, "Q4_K_M")
    }

    #[test]
    fn names_are_made_of_what_the_metadata_has() {
        assert_eq!(named(&[], 8_100_000_000), "the-stem-8.1B-v1.0-Q4_K_M.gguf");
        assert_eq!(named(&[("general.name", "MMaDA-8B-MixCoT")], 8_100_000_000), "MMaDA-8B-MixCoT-v1.0-Q4_K_M.gguf");
        let full = [
            ("general.name", "unused"),
            ("general.basename", "MMaDA"),
            ("general.size_label", "8B"),
            ("general.finetune", "Mix CoT"),
            ("general.version", "v1.1"),
        ];
        assert_eq!(named(&full, 5), "MMaDA-8B-Mix-CoT-v1.1-Q4_K_M.gguf");
        assert_eq!(named(&[("general.name", "../../etc/x\n")], 12_100_000), "etc-x-12M-v1.0-Q4_K_M.gguf");
        assert_eq!(named(&[("general.name", " ")], 135_400), "the-stem-135K-v1.0-Q4_K_M.gguf");
    }
}
