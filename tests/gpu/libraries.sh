#!/usr/bin/env bash
# libraries.sh DIR - what the engine needs of others, for a machine that has no network and perhaps neither jansson nor
# libcrypto: their headers and static archives, from libjansson-dev and libssl-dev of this Debian, in a folder that
# CMake takes as TINWORKS_LIBRARIES and tests/gpu/run.sh finds as build/gpu-libraries.
#
# Static, because an archive has no versions of symbols: it links with an older glibc, as long as it asks for no
# function that is newer; those are looked for by name.
set -euo pipefail
[ $# = 1 ] || {
    echo "usage: tests/gpu/libraries.sh DIR" >&2
    exit 2
}
dir=$1 new=$1.new
rm -rf "$new"
mkdir -p "$new/include" "$new/lib"
triplet=$(gcc -dumpmachine)
for name in jansson crypto; do
    archive=$(gcc -print-file-name="lib$name.a")
    [ -f "$archive" ] || {
        echo "there is no lib$name.a here: apt-get install libjansson-dev libssl-dev" >&2
        exit 1
    }
    cp "$archive" "$new/lib/"
done
include=$(pkg-config --variable=includedir jansson)
cp "$include/jansson.h" "$new/include/"
cp "$(find "$include" "$include/$triplet" -maxdepth 1 -name jansson_config.h | head -n 1)" "$new/include/"
cp -rL "$(pkg-config --variable=includedir libcrypto)/openssl" "$new/include/"
# Debian keeps what differs between machines apart.
[ ! -d "$include/$triplet/openssl" ] || cp -rL "$include/$triplet/openssl/." "$new/include/openssl/"

# Functions of glibc after 2.31 that old source files may still have been bound to.
recent='__isoc23_|arc4random|strlcpy|strlcat|_dl_find_object|__memset_explicit|pidfd_'
if nm -u "$new"/lib/*.a 2>/dev/null | awk '{print $NF}' | grep -E "^($recent)" | sort -u >"$new/recent" &&
    [ -s "$new/recent" ]; then
    echo "these archives need a recent glibc: $(tr '\n' ' ' <"$new/recent")" >&2
    exit 1
fi
rm -f "$new/recent"
{
    pkg-config --modversion jansson | sed 's/^/jansson /'
    pkg-config --modversion libcrypto | sed 's/^/libcrypto /'
} >"$new/versions"
rm -rf "$dir"
mv "$new" "$dir"
du -sh "$dir" | cut -f1
