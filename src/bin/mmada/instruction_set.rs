//! Which instruction set runs the model: the best that the processor has, unless `MMADA_CPU` names another.
//! The library reads no environment variables: programs that embed it choose with `ContextOptions::instruction_set`.

use std::env;

use mmada::kernels::Kernels;

use crate::failure::Failure;

/// What `$MMADA_CPU` names, for `ContextOptions::instruction_set`.
pub fn forced() -> Result<Option<String>, Failure> {
    match env::var_os("MMADA_CPU").filter(|name| !name.is_empty()) {
        Some(name) => {
            let name = name.to_string_lossy().into_owned();
            Kernels::named(&name).map_err(|e| Failure::Input(format!("MMADA_CPU: {e}")))?;
            Ok(Some(name))
        }
        None => Ok(None),
    }
}
