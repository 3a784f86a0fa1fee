"""How far launches are expected to be off where a study does not tell; of logarithms."""

from __future__ import annotations

# Variance within a launch that did not tell its own: 5 %.
UNKNOWN = 0.05**2
# Standard deviation between launches of one point, a log-normal prior: its median, and the standard
# deviation of its logarithm. 2 to 15 % were seen in this project's studies, and 10 to 20 % at low
# concurrency (vLLM issue #53436).
BETWEEN = (0.05, 0.6)
