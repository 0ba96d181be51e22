//! The size of every struct that may grow, as its `_init` function takes it. The program is made of the header, so that
//! no struct can be forgotten.

use std::fmt::Write;
use std::process::Command;

use super::parse::{Function, parse};
use super::support::{build, folder, header, root, silently};

/// A call of an `_init` function that gives it `size` bytes.
fn call(function: &Function) -> String {
    let rest = function.parameters[2..].iter().map(|p| if p.kind.ends_with('*') { ", NULL" } else { ", 0" });
    format!("{}(&u.s, size{})", function.name, rest.collect::<String>())
}

const CHECKS: &str = "
static mmada_status init_NAME(union NAME_u *at, size_t size) {
#define u (*at)
    return CALL;
#undef u
}

static void check_NAME(void) {
    static const size_t wrong[] = {0, 7, 8, sizeof(NAME) - 4, sizeof(NAME) + 4, 4096 + 8, SIZE_MAX - 7, SIZE_MAX};
    union NAME_u u;
    size_t i;
    memset(&u, 0xee, sizeof u);
    for (i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        CHECK(init_NAME(&u, wrong[i]) == MMADA_STRUCT_SIZE);
        CHECK(are(0xee, u.bytes, 0, sizeof u));
    }
    CHECK(init_NAME(&u, sizeof(NAME)) == MMADA_OK && u.s.struct_size == sizeof(NAME));
    CHECK(are(0xee, u.bytes, sizeof(NAME), sizeof u));
    /* of a later version: what this one does not know is 0, and what lies behind is let alone */
    memset(&u, 0xee, sizeof u);
    CHECK(init_NAME(&u, sizeof(NAME) + 8) == MMADA_OK && u.s.struct_size == sizeof(NAME) + 8);
    CHECK(are(0, u.bytes, sizeof(NAME), sizeof(NAME) + 8) && are(0xee, u.bytes, sizeof(NAME) + 8, sizeof u));
}
";

#[test]
fn every_struct_that_may_grow_is_initialized_within_its_size_and_refuses_others() {
    let declarations = parse(&header());
    let growing = declarations.structs.iter().filter(|s| s.fields.first().is_some_and(|f| f == "struct_size"));
    let names: Vec<&str> = growing.map(|s| s.name.as_str()).collect();
    assert!(names.len() >= 12, "{names:?}");
    let mut source = "#include \"check.h\"\n
static int are(int value, const unsigned char *bytes, size_t from, size_t to) {
    while (from < to && bytes[from] == value) {
        from++;
    }
    return from == to;
}\n"
    .to_owned();
    for name in &names {
        let init = declarations.functions.iter().filter(|f| {
            f.name.ends_with("_init") && f.parameters.first().is_some_and(|p| p.kind == format!("{name} *"))
        });
        let init: Vec<&Function> = init.collect();
        assert!(!init.is_empty(), "{name} has no function that initializes it");
        writeln!(source, "union {name}_u {{ {name} s; unsigned char bytes[sizeof({name}) + 64]; }};").unwrap();
        source.push_str(&CHECKS.replace("NAME", name).replace("CALL", &call(init[0])));
    }
    source.push_str("\nint main(void) {\n");
    names.iter().for_each(|name| writeln!(source, "    check_{name}();").unwrap());
    source.push_str("    return 0;\n}\n");
    let folder = folder("sizes");
    std::fs::write(folder.join("sizes.c"), source).unwrap();
    std::fs::copy(root().join("tests/capi/check.h"), folder.join("check.h")).unwrap();
    build(&folder.join("sizes.c"), &root().join("include"), &folder.join("sizes"));
    silently(&mut Command::new(folder.join("sizes")));
}
