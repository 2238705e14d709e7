"""What the cache of an `IngestionPipeline` asks a step about."""

import inspect
from collections.abc import Sequence

from llama_index.core.schema import BaseNode, TransformComponent

__all__ = ["nodes_of_lookup"]


def nodes_of_lookup(step: TransformComponent) -> Sequence[BaseNode] | None:
    """Find the nodes for which the cache of a pipeline looks a result up.

    `get_transformation_hash(nodes, transformation)` of core calls `transformation.to_dict()`, and
    does not pass the nodes on. Its arguments are read off its frame.

    Args:
        step: The step whose `to_dict` calls this.

    Returns:
        The nodes; `None` if anybody else called `to_dict`, or core has changed.
    """
    frame = inspect.currentframe()
    own = None if frame is None else frame.f_back
    caller = None if own is None else own.f_back
    if caller is None or caller.f_locals.get("transformation") is not step:
        return None
    nodes = caller.f_locals.get("nodes")
    return nodes if isinstance(nodes, Sequence) else None
