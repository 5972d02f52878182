#!/usr/bin/env bash
# Downloads MedGemma 4B into ckpt/medgemma-4b-it (about 9 GB) and the FLARE 2025 adapter into ckpt/flare25-medgemma (about 130 MB).
# After an interruption, run it again: the download is resumed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
base=google/medgemma-4b-it
adapter=leoyinn/flare25-medgemma
bash scripts/setup.sh
hf=.venv/bin/hf
log=$(mktemp)
trap 'rm -f "$log"' EXIT

fail() {
    echo "download failed: $*" >&2
    exit 1
}

if ! "$hf" auth whoami >"$log" 2>&1 || grep -qi 'not logged in' "$log"; then
    if ! grep -qiE 'not logged in|invalid|401' "$log"; then
        fail "huggingface.co cannot be reached: $(tail -n 1 "$log")"
    fi
    fail "you are not logged in to Hugging Face. Create a token with read access at https://huggingface.co/settings/tokens and run: source .venv/bin/activate && hf auth login (older versions: huggingface-cli login)"
fi

echo "1/3 checking access to $base"
if ! "$hf" download "$base" config.json --local-dir ckpt/medgemma-4b-it >"$log" 2>&1; then
    if grep -qiE '401|403|gated|restricted|awaiting' "$log"; then
        fail "this account has not accepted the terms of $base. Open https://huggingface.co/$base, accept the terms of the Health AI Developer Foundations with the account of your login, and run this script again"
    fi
    fail "$base cannot be downloaded: $(tail -n 1 "$log")"
fi

echo "2/3 $base -> ckpt/medgemma-4b-it"
"$hf" download "$base" --local-dir ckpt/medgemma-4b-it || fail "the download of $base stopped; run this script again to resume it"
echo "3/3 $adapter -> ckpt/flare25-medgemma"
"$hf" download "$adapter" --local-dir ckpt/flare25-medgemma || fail "the download of $adapter stopped; run this script again to resume it"

.venv/bin/python - <<'PY' || fail "files are missing (see above); run this script again"
import json, sys
from pathlib import Path

base, adapter = Path("ckpt/medgemma-4b-it"), Path("ckpt/flare25-medgemma")
expected = [base / name for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")]
expected += [adapter / name for name in ("adapter_config.json", "adapter_model.safetensors")]
index = base / "model.safetensors.index.json"
shards = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else ["model.safetensors"]
missing = [str(path) for path in expected + [base / shard for shard in shards] if not path.is_file() or not path.stat().st_size]
print(*(f"missing: {path}" for path in missing), sep="\n", end="\n" if missing else "", file=sys.stderr)
sys.exit(bool(missing))
PY
echo "Done. Next step: bash scripts/test_medgemma_4gb.sh (4 GB GPU) or bash scripts/test_medgemma_16gb.sh (16 GB GPU)"
