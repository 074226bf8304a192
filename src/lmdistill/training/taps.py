"""Activations of chosen layers, caught by hooks on these layers alone, and let go as soon as they are taken.

A tap is a place: the hidden state behind a block, attention scores, queries, keys, values, or any module's output. Only
what a place names is kept, where `output_hidden_states=True` keeps every layer's. Hooks do nothing outside of
`capture()`, so that the second call of a layer by gradient checkpointing, in the backward pass, catches nothing and the
graph of the first one stays what it is.

Shape legend: B batch, L length, H hidden, A heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lmdistill.errors import ModelError
from lmdistill.training.anatomy import Attention, Part, attention_of, bare, blocks_of, final_norm, module_at
from lmdistill.training.attention_scores import NAME, ask_for_scores

FINAL = "final"
"""Name of the place behind the final norm."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Place:
    """What is caught: of a layer, or of a module by its path."""

    takes: Literal["hidden", "scores", "query", "key", "value"]
    layer: int | str
    """0 the embeddings (hidden alone), n the n-th block, `final` behind the final norm, else the path of a module."""

    def __str__(self) -> str:
        return f"{self.takes} of {'layer ' if isinstance(self.layer, int) else ''}{self.layer}"


class Taps:
    """The taps of one model.

    Hidden states are (B, L, H), scores (B, A, L, L) with the mask added and before the softmax, queries, keys and
    values (B, L, A, D), before rotary embedding, keys and values repeated for each query head.
    """

    def __init__(self, model: nn.Module, places: Sequence[Place], tell: Tell | None = None) -> None:
        """`model` may be wrapped; `tell` is told where an attention becomes slower for being looked at.

        Raises ModelError for a place that the model does not have, with both numbers or the nearest names.
        """
        self.model = bare(model)
        self.places = list(dict.fromkeys(places))
        self._caught: dict[Place, Tensor] = {}
        self._open = False
        self._undo: list[Callable[[], None]] = []
        try:
            for place in self.places:
                if place.takes != "scores":
                    self._undo.append(self._hook(place))
            self._watch_scores([place for place in self.places if place.takes == "scores"], tell)
        except BaseException:
            self.close()
            raise

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(blocks_of(self.model))

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Catch what the forward pass inside the block makes; what an earlier one left is let go."""
        self.open()
        try:
            yield
        finally:
            self.shut()

    def open(self) -> None:
        """Begin to catch; what was caught before is let go."""
        self._caught.clear()
        self._refuse_reentrant()
        self._open = True

    def shut(self) -> None:
        """Catch no more."""
        self._open = False

    def clear(self) -> None:
        """Let go of what was caught and not taken."""
        self._caught.clear()

    def peek(self, place: Place) -> Tensor:
        """What was caught at a place, which stays held. Raises ModelError where nothing was."""
        if place not in self._caught:
            raise ModelError(
                f"{type(self.model).__name__}: {place} was not computed in this forward pass, or was taken already"
            )
        return self._caught[place]

    def take(self, place: Place) -> Tensor:
        """What was caught at a place; it is held no longer here. Raises ModelError where nothing was."""
        found = self.peek(place)
        del self._caught[place]
        return found

    def close(self) -> None:
        """Take all hooks away and let the attention be what it was."""
        self._caught.clear()
        for undo in reversed(self._undo):
            undo()
        self._undo = []

    def _hook(self, place: Place) -> Callable[[], None]:
        if place.takes != "hidden":
            attention = self._attention(place)
            part = cast(Part, place.takes)

            def projected(module: nn.Module, args: Any, output: Any) -> None:
                if self._open:
                    self._caught[place] = attention.by_head(first_tensor(output), part)

            return attention.projection_of(part).register_forward_hook(projected).remove
        if place.layer == 0:
            return self._before(blocks_of(self.model)[0], place)

        def behind(module: nn.Module, args: Any, output: Any) -> None:
            if self._open:
                self._caught[place] = first_tensor(output)

        return self._module(place).register_forward_hook(behind).remove

    def _before(self, module: nn.Module, place: Place) -> Callable[[], None]:
        """What goes into the first block: embeddings with everything that is added to them."""

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            if self._open:
                self._caught[place] = args[0] if args else kwargs["hidden_states"]

        return module.register_forward_pre_hook(before, with_kwargs=True).remove

    def _module(self, place: Place) -> nn.Module:
        if isinstance(place.layer, int):
            return self._block(place)
        return final_norm(self.model) if place.layer == FINAL else module_at(self.model, place.layer)

    def _block(self, place: Place) -> nn.Module:
        blocks = blocks_of(self.model)
        lowest = 0 if place.takes == "hidden" else 1
        if not isinstance(place.layer, int) or not lowest <= place.layer <= len(blocks):
            raise ModelError(f"{place}: {type(self.model).__name__} has the layers {lowest} to {len(blocks)}")
        return blocks[place.layer - 1]

    def _attention(self, place: Place) -> Attention:
        block = self._block(place) if isinstance(place.layer, int) else module_at(self.model, place.layer)
        attention = attention_of(block)
        if attention is None:
            raise ModelError(f"{place}: {type(block).__name__} holds no attention with queries, keys and values")
        return attention

    def _watch_scores(self, places: Sequence[Place], tell: Tell | None) -> None:
        if not places:
            return
        attentions = [self._attention(place) for place in places]
        if not isinstance(self.model, PreTrainedModel):
            for place, attention in zip(places, attentions, strict=True):
                self._undo += self._timm_scores(place, attention)
            return
        before = self.model.config._attn_implementation
        self._undo.append(
            ask_for_scores(self.model, [each.module for each in attentions], [self._keep(place) for place in places])
        )
        if tell is not None and before not in ("eager", NAME):
            heads = getattr(self.model.config.get_text_config(), "num_attention_heads", 1)
            layers = ", ".join(str(place.layer) for place in places)
            tell(
                f"{before} attention makes no maps: layers {layers} of {type(self.model).__name__} compute theirs in "
                f"full ({heads} x length² scores a text, {heads * 512 * 512 * 4 / 2**20:.0f} MiB at 512 tokens in "
                "float32, kept for the backward pass while training); the other layers use sdpa"
            )

    def _keep(self, place: Place) -> Callable[[Tensor], None]:
        def keep(scores_BALL: Tensor) -> None:
            if self._open:
                self._caught[place] = scores_BALL

        return keep

    def _timm_scores(self, place: Place, attention: Attention) -> list[Callable[[], None]]:
        """timm norms queries and keys by modules of their own: their outputs make the scores beside a fused kernel."""
        module: Any = attention.module
        if not all(isinstance(getattr(module, name, None), nn.Module) for name in ("q_norm", "k_norm")):
            raise ModelError(f"{place}: the scores of {type(module).__name__} cannot be had")
        query: list[Tensor] = []

        def of_query(_: nn.Module, args: Any, output: Tensor) -> None:
            if self._open:
                query[:] = [output]

        def of_key(_: nn.Module, args: Any, output: Tensor) -> None:
            if self._open:
                self._caught[place] = query.pop() * module.scale @ output.transpose(-2, -1)

        return [
            module.q_norm.register_forward_hook(of_query).remove,
            module.k_norm.register_forward_hook(of_key).remove,
        ]

    def _refuse_reentrant(self) -> None:
        for module in self.model.modules():
            function = getattr(module, "_gradient_checkpointing_func", None)
            if getattr(module, "gradient_checkpointing", False) and function is not None:
                if getattr(function, "keywords", {}).get("use_reentrant"):
                    raise ModelError(
                        "reentrant gradient checkpointing keeps no graph of what is inside a layer, so that hints "
                        "would teach nothing: set training.activation_checkpointing_kwargs: {use_reentrant: false}"
                    )
                return


class BlockInputs:
    """Lets chosen blocks of a model read given states in place of what the block below returns.

    No gradient passes from one block to another, so that each is trained by itself; the graph of a step is as deep as
    one block. What blocks read stays until the next `give`, since checkpointing calls them again.
    """

    def __init__(self, model: nn.Module, layers: Sequence[int]) -> None:
        """`layers` are the numbers of blocks, from 1. Raises ModelError for others."""
        blocks = blocks_of(model)
        wrong = [layer for layer in layers if not 1 <= layer <= len(blocks)]
        if wrong:
            raise ModelError(f"block {wrong[0]} of a model that has the blocks 1 to {len(blocks)}")
        self._given: dict[int, Tensor] = {}
        self._handles = [
            blocks[layer - 1].register_forward_pre_hook(self._replace(layer), with_kwargs=True) for layer in layers
        ]

    def give(self, states: Mapping[int, Tensor]) -> None:
        """What the blocks read from now on; those that are not named read as usual."""
        self._given = {layer: state.detach() for layer, state in states.items()}

    def close(self) -> None:
        """Let all blocks read as usual."""
        self._given = {}
        for handle in self._handles:
            handle.remove()

    def _replace(self, layer: int) -> Any:
        def replace(module: nn.Module, args: Any, kwargs: Any) -> Any:
            if layer not in self._given:
                return None
            own = args[0] if args else kwargs["hidden_states"]
            state = self._given[layer].to(own.dtype)
            if state.shape != own.shape:
                raise ModelError(
                    f"block {layer} reads states of {tuple(own.shape)} but the teacher's are {tuple(state.shape)}: "
                    "blocks are trained on the teacher's states where both models have one width"
                )
            return ((state, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": state})

        return replace


def first_tensor(output: Any) -> Tensor:
    """The tensor that a module returns, or the first of what it returns. Raises ModelError where there is none."""
    if isinstance(output, Tensor):
        return output
    found = output[0] if isinstance(output, tuple) else getattr(output, "last_hidden_state", None)
    if not isinstance(found, torch.Tensor):
        raise ModelError(f"a tapped module returns {type(output).__name__}, which holds no tensor to compare")
    return found
