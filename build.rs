//! Tells the programs that link libpython (the stand-alone server and the tests, not the wheel's module) where it is.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    pyo3_build_config::use_pyo3_cfgs();
    pyo3_build_config::add_libpython_rpath_link_args();
}
