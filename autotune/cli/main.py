"""The command line; every command is one call into the library.

Exit codes: 0 done, 1 no usable result, 2 the user's mistake, 3 worse than the study that it is
compared with, or answers that differ from those of n = 0, 130 interrupted.
"""

from __future__ import annotations

import io
import sys

import click

from autotune.cli import deliver, host, run, shape, show, verify
from autotune.cli.options import Group


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dflash-autotune", prog_name="autotune")
def main() -> None:
    """Find the speculative-decoding settings that serve a model fastest.

    \b
    autotune run --trials 40        search with real vLLM servers
    autotune best --shell           print the command for production
    """
    for stream in (sys.stdout, sys.stderr):  # a terminal without × must not end a run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


for command in (
    *(run.run, run.confirm, verify.verify, run.load_map, run.crosscheck),
    *(show.status, show.best, show.compare, show.predict, show.explain),
    *(deliver.export, deliver.report, deliver.pareto, deliver.dashboard, deliver.copy),
    *(host.ps, host.reap, host.doctor, host.init, host.completion),
    shape.shape,
):
    main.add_command(command)


if __name__ == "__main__":
    sys.exit(main())
