#!/usr/bin/env bash
# Serve a corpus for search over HTTP: sets up .venv, builds the index the first time, serves it until ctrl-C.
#
#   bash recipes/serve_retriever.sh                                       # a small generated world, to try it
#   bash recipes/serve_retriever.sh corpus.jsonl                          # {"id", "contents"} a line
#   bash recipes/serve_retriever.sh corpus.jsonl --index bm25             # options of build: --index, --encoder, ...
#   bash recipes/serve_retriever.sh corpus.jsonl --index hnsw -- --port 8001 --host 0.0.0.0    # after --, of serve
#   bash recipes/serve_retriever.sh wiki18                                # Wikipedia of 2018 and its E5 index: 79 GB
#   bash recipes/serve_retriever.sh index/ -- --reload                    # a folder that build has made
#
# Indexes are kept in cache/indexes. All options: .venv/bin/python -m retriever_server build --help, serve --help.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$root/.venv/bin/python
usage() { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; }
fail() { echo "error: $*" >&2 && exit 2; }

case ${1:-} in -h | --help) usage && exit 0 ;; esac
source=
if [ $# -gt 0 ] && [[ $1 != -* ]]; then
    source=$1 && shift
fi
build=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    build+=("$1") && shift
done
[ $# -eq 0 ] || shift # the --; what is left is for serve
if [ -n "$source" ] && [ "$source" != wiki18 ]; then
    [ -e "$source" ] || fail "no corpus or index at $source"
    source=$(realpath "$source")
fi
if [ -d "$source" ]; then
    [ -f "$source/manifest.json" ] || fail "$source is no index: it has no manifest.json"
    [ "${#build[@]}" -eq 0 ] || fail "$source is built already: ${build[*]} cannot be changed. Options of serve come after --"
fi

bash "$root/recipes/setup_env.sh" any
cache=$root/cache
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
case $source in
    "")
        "$python" -m research.datasets.mini.world --out "$cache/mini_world_to_serve" --passages 5000
        source=$cache/mini_world_to_serve/corpus.jsonl
        ;;
    wiki18)
        "$python" -m research.datasets.wiki18 --out "$cache/wiki18"
        source=$cache/wiki18/wiki-18.jsonl
        build=(--encoder intfloat/e5-base-v2 --faiss-index "$cache/wiki18/e5_Flat.index" "${build[@]}")
        ;;
esac
index=$source
if [ -f "$source" ]; then
    key=$(printf '%s\n' "$source" "${build[@]}" | sha256sum | cut -c1-8)
    index=$cache/indexes/$(basename "${source%%.json*}")-$key
    "$python" -m retriever_server build "$source" "$index" "${build[@]}"
fi
exec "$python" -m retriever_server serve "$index" "$@"
