#!/usr/bin/env bash
# Builds libmmada for embedding and installs it: shared and static library, headers, pkg-config file, CMake package.
#
#   ./install.sh --prefix PREFIX [--libdir DIR] [--includedir DIR] [--target TRIPLE]
#
# --libdir and --includedir default to PREFIX/lib and PREFIX/include. DESTDIR is put before every installed path, and
# stands in no file. CARGO_TARGET_DIR says where to build (default: target). Nothing of the command line is compiled.
set -euo pipefail

fail() {
    echo "install.sh: $*" >&2
    exit 2
}

prefix='' libdir='' includedir='' target=${CARGO_BUILD_TARGET:-}
while [ $# -gt 0 ]; do
    case $1 in
    --prefix | --libdir | --includedir | --target)
        [ $# -ge 2 ] || fail "$1 needs a value"
        declare "${1#--}=$2"
        shift 2
        ;;
    --prefix=* | --libdir=* | --includedir=* | --target=*)
        option=${1%%=*}
        declare "${option#--}=${1#*=}"
        shift
        ;;
    -h | --help)
        sed -n '2,7s/^# \{0,1\}//p' "$0"
        exit
        ;;
    *) fail "unknown option $1 (see --help)" ;;
    esac
done
[ -n "$prefix" ] || fail "--prefix PREFIX is needed, such as --prefix /usr/local"
case $prefix in /*) ;; *) prefix=$PWD/$prefix ;; esac
libdir=${libdir:-$prefix/lib}
includedir=${includedir:-$prefix/include}
case $libdir in /*) ;; *) libdir=$prefix/$libdir ;; esac
case $includedir in /*) ;; *) includedir=$prefix/$includedir ;; esac
destdir=${DESTDIR:-}

cd "$(dirname "$0")"
command -v cargo >/dev/null || fail "cargo was not found: Rust is needed to build, see README.md"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
major=${version%%.*}
build=${CARGO_TARGET_DIR:-target}/${target:+$target/}release
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# rustc tells which libraries of the system a static library needs; cargo repeats it when there is nothing to build.
cargo rustc --release --lib --no-default-features --features capi,cuda ${target:+--target "$target"} -- \
    --print native-static-libs 2>&1 | tee "$scratch/log" >&2
private=$(sed -n 's/^note: native-static-libs: //p' "$scratch/log" | tail -n 1)
[ -n "$private" ] || fail "rustc did not say which libraries the static library needs"

# put MODE FILE FOLDER [NAME]
put() {
    install -d "$destdir$3"
    install -m "$1" "$2" "$destdir$3/${4:-$(basename "$2")}"
}

# Symbols of Rust's own library in the archive would meet those of another Rust library in the same program: one object
# is made of all that the interface needs, which keeps the names of the interface and no others.
# (The compiler's intermediate code, which Rust's own library carries along, is of no use to a linker.)
static() {
    local archive=$1 interface roots weak
    interface=$("${NM:-nm}" -D --defined-only "$2" | awk '{ print $3 }')
    roots=$(printf -- '--undefined=%s ' $interface)
    # shellcheck disable=SC2086 # an option for every name
    "${LD:-ld}" -r --gc-sections --force-group-allocation $roots "$archive" -o "$scratch/mmada.o"
    # ld forgets which functions of the system may be missing
    weak=$("${READELF:-readelf}" -Ws "$archive" | awk '$5 == "WEAK" && $7 == "UND" { print $8 }' | sort -u)
    # shellcheck disable=SC2046
    "${OBJCOPY:-objcopy}" --wildcard --keep-global-symbol='mmada_*' --strip-debug $(printf -- '--weaken-symbol=%s ' $weak) \
        --remove-section=.llvmbc --remove-section=.llvmcmd "$scratch/mmada.o"
    "${AR:-ar}" rcs "$scratch/libmmada.a" "$scratch/mmada.o"
}

absolute=$(cd "$build" && pwd)
case $(uname -s) in
Linux)
    shared=libmmada.so.$version
    put 755 "$absolute/libmmada.so" "$libdir" "$shared"
    ln -sf "$shared" "$destdir$libdir/libmmada.so.$major"
    ln -sf "libmmada.so.$major" "$destdir$libdir/libmmada.so"
    static "$absolute/libmmada.a" "$absolute/libmmada.so"
    put 644 "$scratch/libmmada.a" "$libdir"
    ;;
Darwin)
    shared=libmmada.$version.dylib
    put 755 "$absolute/libmmada.dylib" "$libdir" "$shared"
    ln -sf "$shared" "$destdir$libdir/libmmada.$major.dylib"
    ln -sf "libmmada.$major.dylib" "$destdir$libdir/libmmada.dylib"
    put 644 "$absolute/libmmada.a" "$libdir"
    ;;
*) fail "$(uname -s) is not known here: use cargo-c, or copy the libraries from $build and include/mmada.h" ;;
esac
for header in include/*.h include/*.hpp; do
    [ ! -e "$header" ] || put 644 "$header" "$includedir"
done

cat >"$scratch/mmada.pc" <<END
prefix=$prefix
libdir=$libdir
includedir=$includedir

Name: mmada
Description: MMaDA, the unified multimodal diffusion language model: text, questions about images, text to image
Version: $version
Libs: -L"\${libdir}" -lmmada
Libs.private: $private
Cflags: -I"\${includedir}"
END
put 644 "$scratch/mmada.pc" "$libdir/pkgconfig"

# for a folder of CMake's own below libdir, which may be moved with the rest
relative() {
    realpath --canonicalize-missing --relative-to="$libdir/cmake/mmada" "$1" 2>/dev/null || echo "$1"
}
quoted=$(for library in $private; do printf ' "%s"' "$library"; done)
cat >"$scratch/mmadaConfig.cmake" <<END
# mmada::mmada is the shared library, mmada::static the static one.
get_filename_component(_mmada_libdir "\${CMAKE_CURRENT_LIST_DIR}/$(relative "$libdir")" ABSOLUTE)
get_filename_component(_mmada_includedir "\${CMAKE_CURRENT_LIST_DIR}/$(relative "$includedir")" ABSOLUTE)
if(NOT TARGET mmada::mmada)
  add_library(mmada::mmada SHARED IMPORTED)
  set_target_properties(mmada::mmada PROPERTIES
    IMPORTED_LOCATION "\${_mmada_libdir}/$shared"
    INTERFACE_INCLUDE_DIRECTORIES "\${_mmada_includedir}")
  if(NOT APPLE)
    set_target_properties(mmada::mmada PROPERTIES IMPORTED_SONAME "libmmada.so.$major")
  endif()
  add_library(mmada::static STATIC IMPORTED)
  set_target_properties(mmada::static PROPERTIES
    IMPORTED_LOCATION "\${_mmada_libdir}/libmmada.a"
    IMPORTED_LINK_INTERFACE_LANGUAGES "C"
    INTERFACE_INCLUDE_DIRECTORIES "\${_mmada_includedir}")
  set_property(TARGET mmada::static PROPERTY INTERFACE_LINK_LIBRARIES$quoted)
endif()
unset(_mmada_libdir)
unset(_mmada_includedir)
END
cat >"$scratch/mmadaConfigVersion.cmake" <<END
# A program asks for at least its own version, of the same major version.
set(PACKAGE_VERSION "$version")
if(PACKAGE_FIND_VERSION_MAJOR STREQUAL "$major" AND NOT PACKAGE_FIND_VERSION VERSION_GREATER PACKAGE_VERSION)
  set(PACKAGE_VERSION_COMPATIBLE TRUE)
  if(PACKAGE_FIND_VERSION VERSION_EQUAL PACKAGE_VERSION)
    set(PACKAGE_VERSION_EXACT TRUE)
  endif()
endif()
END
put 644 "$scratch/mmadaConfig.cmake" "$libdir/cmake/mmada"
put 644 "$scratch/mmadaConfigVersion.cmake" "$libdir/cmake/mmada"
echo "libmmada $version is in $destdir$prefix"
