"""Who is dead among the workers of a Ray job; by a clock, without Ray."""

from __future__ import annotations

import pytest

from phospho_multimodal.ray.liveness import Liveness


class Cluster:
    """A clock that is set, and nodes that die."""

    def __init__(self) -> None:
        self.now = 100.0
        self.nodes = {"north", "south"}
        self.looks = 0
        self.liveness = Liveness(self._nodes, lambda: self.now)

    async def _nodes(self) -> set[str]:
        self.looks += 1
        return set(self.nodes)


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    made.liveness.hello("token", "actor", "north")
    return made


async def test_who_beats_is_alive_and_nobody_asks_about_its_node(cluster: Cluster):
    cluster.now += 1.9
    assert await cluster.liveness.look("token") is None
    assert cluster.looks == 0
    assert cluster.liveness.beat("token")


async def test_a_hello_of_the_next_incarnation_is_the_death_of_the_last(cluster: Cluster):
    assert cluster.liveness.hello("next", "actor", "south") == ["token"]
    assert not cluster.liveness.is_alive("token")
    assert not cluster.liveness.beat("token")
    assert cluster.liveness.is_alive("next")


async def test_a_hello_of_another_worker_is_nobodys_death(cluster: Cluster):
    assert cluster.liveness.hello("other", "another actor", "north") == []
    assert cluster.liveness.is_alive("token")


async def test_a_hello_told_twice_changes_nothing(cluster: Cluster):
    assert cluster.liveness.hello("token", "actor", "north") == []
    assert cluster.liveness.is_alive("token")


async def test_late_on_a_node_that_lives_is_not_dead(cluster: Cluster):
    cluster.now += 9.9
    assert await cluster.liveness.look("token") is None
    assert cluster.looks == 1


async def test_late_on_a_node_that_is_gone_is_dead(cluster: Cluster):
    cluster.nodes.remove("north")
    cluster.now += 2.1
    assert await cluster.liveness.look("token") == "its node is gone"
    assert not cluster.liveness.is_alive("token")
    assert await cluster.liveness.look("token") is None, "it was told before"


async def test_silent_for_long_is_dead_wherever_it_is(cluster: Cluster):
    cluster.now += 10.1
    assert await cluster.liveness.look("token") == "nothing was heard of it for 10 seconds"
    assert not cluster.liveness.is_alive("token")
    assert cluster.looks == 0


async def test_who_was_taken_for_dead_says_hello_anew(cluster: Cluster):
    cluster.liveness.fence("token")
    assert cluster.liveness.hello("anew", "actor", "north") == []
    assert cluster.liveness.is_alive("anew")
    assert len(cluster.liveness) == 1
