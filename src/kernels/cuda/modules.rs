//! The PTX of every kernel, as it was compiled ahead of time (`scripts/cuda-build`), cut out of the committed files: what a
//! model does not use is not translated for the card, which takes the driver seconds for all of them.

/// The files of `ptx/`.
const FILES: [&str; 9] = [
    include_str!("ptx/attention.ptx"),
    include_str!("ptx/elementwise.ptx"),
    include_str!("ptx/hopper.ptx"),
    include_str!("ptx/hopper_attention.ptx"),
    include_str!("ptx/images.ptx"),
    include_str!("ptx/product_bf16.ptx"),
    include_str!("ptx/product_int8.ptx"),
    include_str!("ptx/sampling.ptx"),
    include_str!("ptx/unpack.ptx"),
];

/// How an entry point begins, and ends with a line of its own.
const ENTRY: &str = "\n.visible .entry ";
const END: &str = "\n}\n";

/// A module with the kernel `name` alone: its file's declarations, and its entry point.
pub fn ptx_of(name: &str) -> Option<String> {
    FILES.into_iter().find_map(|file| module(file, name))
}

fn module(file: &str, name: &str) -> Option<String> {
    let start = file.find(&format!("{ENTRY}{name}("))?;
    let entry = &file[start..start + file[start..].find(END)? + END.len()];
    let mut module = String::with_capacity(entry.len() + (1 << 12));
    // what stands between entry points: the version, and variables of all of them
    let mut rest = file;
    while let Some(at) = rest.find(ENTRY) {
        module.push_str(&rest[..=at]);
        rest = &rest[at..];
        rest = &rest[rest.find(END)? + END.len()..];
    }
    module.push_str(rest);
    module.push_str(entry);
    Some(module)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_cut_out_of_its_file_with_what_it_refers_to() {
        let names = FILES.iter().flat_map(|file| file.match_indices(ENTRY).map(|(at, _)| &file[at + ENTRY.len()..]));
        let names: Vec<&str> = names.map(|rest| rest.split('(').next().unwrap()).collect();
        assert!(names.len() > 50);
        for name in names {
            let module = ptx_of(name).unwrap();
            assert_eq!(module.matches(".entry ").count(), 1, "{name}");
            assert!(module.contains(&format!(".entry {name}(")), "{name}");
            let for_hopper = name.ends_with("_sm90");
            let target = if for_hopper { ".version 8.0\n.target sm_90a\n" } else { ".version 7.8\n.target sm_80\n" };
            assert!(module.contains(target), "{name}");
            assert_eq!(module.matches('{').count(), module.matches('}').count(), "{name}");
        }
        assert_eq!(ptx_of("no_such_kernel"), None);
    }
}
