"""How far launches are expected to be off where a study does not tell; of logarithms."""

from __future__ import annotations

# Variance within a launch that did not tell its own: 5 %.
UNKNOWN = 0.05**2
# Standard deviation between launches of one point, a log-normal prior: its median, and the standard
# deviation of its logarithm. 10 to 20 % were seen (vLLM issue #53436), 3 % often.
BETWEEN = (0.03, 0.4)
