//! The C interface: its header, its binary interface, its promises, and the programs of `bindings/c`.

mod header;
