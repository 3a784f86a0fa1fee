"""Which nodes are used and what their actors send, without a cluster."""

from __future__ import annotations

import queue
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from autotune.bench.server_metrics import ServerStats
from autotune.serving.process_tree import Identity
from autotune.serving.slots import Slot
from autotune.tuning.late_outcomes import LateOutcome
from autotune.tuning.slot_messages import Call

pytest.importorskip("ray")

from autotune.tuning import ray_nodes
from autotune.tuning.ray_nodes import Nodes
from autotune.tuning.ray_seat import Node, Seat, Stage

STATS = ServerStats(None, None, None, None, None, None, None, None)
LATE = Call("late", (LateOutcome("a", [], STATS, {}, {}, {}),))


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Nodes:
    """Nodes of a study; an actor's answer is what it was asked by."""
    monkeypatch.setattr(ray_nodes.ray, "get", lambda ref: ref)
    monkeypatch.setattr(ray_nodes.ray, "kill", mock.Mock())  # it would start a cluster
    prepared: Any = mock.Mock(info=SimpleNamespace(version="0.32.0", device="cuda"))
    prepared.weights.return_value = {"target": "abc"}
    messages: ray_nodes.Messages = queue.SimpleQueue()
    return Nodes(prepared, need=1, flags="", each=1, module="", messages=messages)


def seat(nodes: Nodes, name: str, stage: Stage) -> Seat:
    """A seat on a node of its own."""
    node = nodes.nodes[name] = Node(name, name, name, 1)
    found = {"host": name, "machine": name}
    made = Seat(node, 0, mock.Mock(), None, stage, found, Slot(0, 0, (0,), (), name))
    nodes._seats.append(made)
    return made


def sent(nodes: Nodes) -> list[Any]:
    """Names of the calls that were passed on, and their first arguments."""
    found = []
    while not nodes._queue.empty():
        message = nodes._queue.get()[1]
        assert isinstance(message, Call)
        found.append((message.name, message.args[0]))
    return found


def test_a_late_outcome_of_a_launch_that_is_under_way_is_left_to_its_process(nodes: Nodes) -> None:
    """Another actor on its host found it, between the process's file and the driver's answer."""
    own, other = seat(nodes, "node-a", Stage.READY), seat(nodes, "node-b", Stage.READY)
    started = Call("started", (Identity("a", "boot"),))
    nodes._answer(own, (0, [(1, started)]))
    nodes._answer(other, (0, [(1, LATE)]))
    assert sent(nodes) == [("started", Identity("a", "boot"))]
    nodes._answer(own, (0, [(2, Call("ended", ("a", 0, 0)))]))
    nodes._answer(other, (0, [(2, LATE)]))
    assert [name for name, _ in sent(nodes)] == ["ended", "late"]


def test_a_node_is_compared_with_the_first_one_also_when_that_has_left(nodes: Nodes) -> None:
    def check(name: str, gpu: str) -> Node:
        machine = {"gpus": [{"name": gpu, "driver": "1"}]}
        info = SimpleNamespace(version="0.32.0", device="cuda")
        of = seat(nodes, name, Stage.CHECKING)
        nodes._checked(of, {"info": info, "weights": {"target": "abc"}, "machine": machine})
        return of.node

    first = check("node-a", "H200")
    assert (first.refused, nodes.first) == (None, first)
    nodes._look_for_nodes({})
    assert nodes.nodes == {}
    assert check("node-b", "H200").refused is None
    assert "not compare with those of node-a" in (check("node-c", "L40S").refused or "")
    assert nodes.first is first
