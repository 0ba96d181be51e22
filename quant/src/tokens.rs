//! The roles of tokens: which id begins a text, masks a position, encloses an image.

use std::path::Path;

use mmada::{Error, Result};

use crate::config::Config;
use crate::json::Object;
use crate::tokenizer::TextTokenizer;

/// What a token is for.
struct Role {
    /// Metadata key: `mmada.token.KEY`.
    key: &'static str,
    /// The published name.
    name: &'static str,
    /// Its id in the 8B checkpoints, where that is a reserved token without this name.
    reserved_8b: Option<u32>,
    needed: Needed,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Needed {
    Always,
    /// In a file that has image codes.
    WithImages,
    Never,
}

const fn role(key: &'static str, name: &'static str, reserved_8b: Option<u32>, needed: Needed) -> Role {
    Role { key, name, reserved_8b, needed }
}

const ROLES: &[Role] = &[
    role("bos", "<|startoftext|>", None, Needed::Always),
    role("eos", "<|endoftext|>", None, Needed::Always),
    role("eot", "<|eot_id|>", None, Needed::Always),
    role("mask", "<|mdm_mask|>", None, Needed::Always),
    role("start_header", "<|start_header_id|>", None, Needed::Always),
    role("end_header", "<|end_header_id|>", None, Needed::Always),
    role("soi", "<|soi|>", Some(126084), Needed::WithImages),
    role("eoi", "<|eoi|>", Some(126085), Needed::WithImages),
    role("sov", "<|sov|>", Some(126086), Needed::Never),
    role("eov", "<|eov|>", Some(126087), Needed::Never),
    role("t2i", "<|t2i|>", Some(126088), Needed::WithImages),
    role("mmu", "<|mmu|>", Some(126089), Needed::WithImages),
    role("t2v", "<|t2v|>", Some(126090), Needed::Never),
    role("v2v", "<|v2v|>", Some(126091), Needed::Never),
    role("lvg", "<|lvg|>", Some(126092), Needed::Never),
    role("ipad", "[iPAD]", Some(126093), Needed::Never),
    role("r2i", "<|r2i|>", Some(126094), Needed::Never),
    role("pad", "[PAD]", None, Needed::Never),
];

/// The published names of all roles.
pub const ROLE_NAMES: [&str; ROLES.len()] = {
    let mut names = [""; ROLES.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = ROLES[i].name;
        i += 1;
    }
    names
};

/// (metadata key's last part, id) of every role that the checkpoint has.
pub struct Roles(pub Vec<(&'static str, u32)>);

impl Roles {
    /// From `mmada_tokens.json` where the folder has it; else by the names in the tokenizer, then by the ids of the
    /// 8B checkpoints where the tokenizer has a reserved token there. Notes say what the config says otherwise.
    ///
    /// # Errors
    /// `Format` where a needed role has no id, or an id contradicts the tokenizer.
    pub fn read(dir: &Path, tokenizer: &TextTokenizer, config: &Config, notes: &mut Vec<String>) -> Result<Self> {
        let table = Object::read_if_present(&dir.join("mmada_tokens.json"))?;
        let images = config.codebook_size.is_some();
        let mut roles = Vec::new();
        for role in ROLES {
            let id = match &table {
                Some(table) => listed(role, table, tokenizer)?,
                None => None,
            };
            let id = id.or_else(|| tokenizer.id(role.name));
            let id = if table.is_none() { id.or_else(|| unlisted(role, tokenizer, config)) } else { id };
            let needed = role.needed == Needed::Always || images && role.needed == Needed::WithImages;
            match id {
                Some(id) => roles.push((role.key, id)),
                None if needed => {
                    let file = table.as_ref().map_or(tokenizer.file(), Object::file);
                    let reason =
                        format!("no id for {}, which the model needs (mmada_tokens.json can say it)", role.name);
                    return Err(Error::format(file, reason));
                }
                None => {}
            }
        }
        let roles = Roles(roles);
        roles.compare(config, notes);
        Ok(roles)
    }

    /// The roles whose names the tokenizer has.
    pub fn named(tokenizer: &TextTokenizer) -> Self {
        Roles(ROLES.iter().filter_map(|role| Some((role.key, tokenizer.id(role.name)?))).collect())
    }

    pub fn get(&self, key: &str) -> Option<u32> {
        self.0.iter().find(|(k, _)| *k == key).map(|&(_, id)| id)
    }

    /// A config that names other ids is worth a word; the named tokens are what the model was trained with.
    fn compare(&self, config: &Config, notes: &mut Vec<String>) {
        for (key, of_config) in [("mask", config.mask_token_id), ("eos", config.eos_token_id)] {
            if let (Some(id), Some(other)) = (self.get(key), of_config)
                && id != other
            {
                notes.push(format!("{}: {key}_token_id is {other}, but the tokenizer's {id} is used", config.file));
            }
        }
    }
}

/// The id in `mmada_tokens.json`.
fn listed(role: &Role, table: &Object, tokenizer: &TextTokenizer) -> Result<Option<u32>> {
    let Some(id) = table.u32(role.name)? else { return Ok(None) };
    match tokenizer.id(role.name) {
        Some(own) if own != id => Err(table.wrong(role.name, format!("is {id}, but {own} in {}", tokenizer.file()))),
        None if tokenizer.text(id).is_none() => {
            Err(table.wrong(role.name, format!("is {id}, which is no token of {}", tokenizer.file())))
        }
        _ => Ok(Some(id)),
    }
}

/// An id for a role that the tokenizer does not name.
fn unlisted(role: &Role, tokenizer: &TextTokenizer, config: &Config) -> Option<u32> {
    let reserved =
        |id: u32| tokenizer.is_special(id) && tokenizer.text(id).is_some_and(|text| text.contains("reserved"));
    let known = |id: &u32| tokenizer.text(*id).is_some();
    match role.key {
        "bos" => tokenizer.configured("bos_token"),
        "eos" => tokenizer.configured("eos_token").or(config.eos_token_id.filter(known)),
        "mask" => tokenizer.configured("mask_token").or(config.mask_token_id.filter(known)),
        "pad" => tokenizer.configured("pad_token").or(config.pad_token_id.filter(known)),
        _ => role.reserved_8b.filter(|&id| reserved(id)),
    }
}
