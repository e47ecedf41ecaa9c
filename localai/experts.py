"""Where a mixture of experts keeps its bytes: the routed experts of each layer, which may stay in RAM beside a GPU."""

from __future__ import annotations

from localai.domain.shape import Shape, Weights


def layer_bytes(shape: Shape, weights: Weights) -> tuple[int, ...]:
    """Bytes of each layer's routed experts, () for a dense model.

    From the header's tensor table; without one, from the parameters: P = D + E and A = D + E × used / all give E, which
    is spread evenly over the layers.
    """
    if not shape.expert_count:
        return ()
    if len(weights.expert_bytes) == shape.n_layers:
        return weights.expert_bytes
    share = expert_share(shape)
    body = max(0, weights.total_bytes - weights.embedding_bytes - weights.output_bytes)
    return (round(min(share * weights.total_bytes, 0.97 * body) / shape.n_layers),) * shape.n_layers


def expert_share(shape: Shape) -> float:
    """The routed experts' share of all parameters, 0 where nobody knows how many are used."""
    used, all_of_them = shape.expert_used_count, shape.expert_count
    if not shape.active_params or not 0 < used < all_of_them:
        return 0.0
    return max(0.0, min(1.0, (shape.params - shape.active_params) / (1 - used / all_of_them) / shape.params))


def read_bytes(shape: Shape, weights: Weights, layers: int) -> int:
    """What one token reads of the experts of the first `layers` layers: those that are used, of all."""
    used = shape.expert_used_count / shape.expert_count if shape.expert_count else 0.0
    return round(sum(layer_bytes(shape, weights)[:layers]) * min(used or 1.0, 1.0))
