#!/usr/bin/env bash
# Stands in for CUDA libraries that a machine without a GPU never calls.
#
# usage: ci/stub_cuda.sh FOLDER
#
# FOLDER holds shared libraries (torch/lib). PyTorch's Linux wheel on PyPI is linked against gigabytes of CUDA libraries
# and loads only where they are found. For every library that is missing, this writes one of the same name into FOLDER,
# whose functions all abort with their name: PyTorch asks the CUDA runtime, which is real, learns that there is no
# device, and calls none of them. Needs a C compiler and binutils.
set -euo pipefail
cd "$1"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# What torch's own libraries want and nobody has, once each. The driver is left out: that it is missing is what tells the
# CUDA runtime that there is no GPU, and torch loads what needs it only then.
missing=$(for library in lib*.so*; do ldd "$library"; done 2>/dev/null |
    awk '/not found/ && $1 != "libcuda.so.1" { print $1 }' | sort -u)
[ -n "$missing" ] || exit 0

# Their undefined symbols, as `name` or `name@VERSION`, and which library each version belongs to.
nm -D --undefined-only lib*.so* 2>/dev/null | awk 'NF == 2 { print $2 }' | sort -u >"$work/wanted"
objdump -p lib*.so* 2>/dev/null |
    awk '/required from/ { library = $3; sub(":", "", library); next } /^ *0x/ && library { print library, $4; next } { library = "" }' |
    sort -u >"$work/owners"

# Libraries without versions are told by what their functions begin with: cudnnCreate, cuFileRead.
for library in $missing; do
    version=$(awk -v library="$library" '$1 == library { print $2; exit }' "$work/owners")
    prefix=${library#lib}
    prefix=$(echo "${prefix%%.so*}" | tr '[:upper:]' '[:lower:]')
    awk -F@ -v version="$version" -v prefix="$prefix" \
        'NF == 2 ? $2 == version : index(tolower($1), prefix) == 1 { print $1 }' "$work/wanted" >"$work/symbols"
    {
        echo '#include <stdio.h>'
        echo '#include <stdlib.h>'
        echo 'static void gone(const char *name) {'
        echo '    fprintf(stderr, "%s is a stub: this environment was made for a machine without a GPU\n", name);'
        echo '    abort();'
        echo '}'
        sed 's/.*/void &(void) { gone("&"); }/' "$work/symbols"
    } >"$work/stub.c"
    script=()
    if [ -n "$version" ]; then
        echo "$version { global: *; };" >"$work/versions"
        script=(-Wl,--version-script="$work/versions")
    fi
    cc -shared -fPIC -O1 -fno-builtin -w -Wl,-soname,"$library" "${script[@]}" -o "$library" "$work/stub.c"
done
echo "stubs: ${missing//$'\n'/ }"
