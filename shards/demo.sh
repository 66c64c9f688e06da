#!/usr/bin/env bash
# Recipe: speak the demo's corpus and build shards of its three manifests into data/demo-shards/.
set -euo pipefail
cd "$(dirname "$0")/.."
uv run asrlora demo corpus
for name in train_manifest_expanded domain_manifest heldout_manifest; do
  uv run asrlora shards build "data/demo/$name.jsonl" "data/demo-shards/$name"
done
