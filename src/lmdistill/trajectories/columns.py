"""The key-value cache of texts that are written side by side, each as long as it is.

The cache of a layer is one buffer whose columns all texts share: each text ends at the same column and begins where
its length says. So a new token is written in place (transformers' own cache copies itself for every token), a text that
leaves costs the copy of one row, a new one may come at any time, and each text can take back its last tokens.

Shape legend: B texts, h heads, L columns, d size of a key or value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

_SPARE = 128
"""Columns that buffers have free when they are made: so many tokens later they are made anew."""


class ColumnCache(Cache):
    """A cache for `transformers` models. The caller moves `end` and `starts`; `reserve` makes the columns first."""

    def __init__(self) -> None:
        self.made: list[ColumnLayer] = []
        self.starts: list[int] = []
        """First column of each text."""
        self.end = 0
        """The column behind all texts."""
        self.rows = 0
        self.columns = 0
        super().__init__(layer_class_to_replicate=self._layer)  # type: ignore[arg-type]

    @property
    def first(self) -> int:
        """First column that any text uses."""
        return min(self.starts, default=self.end)

    def reserve(self, rows: int, before: int, after: int) -> None:
        """Make sure of so many rows, `before` columns in front of the end and `after` behind it."""
        if rows <= self.rows and before <= self.end and self.end + after <= self.columns:
            return
        first, width = self.first, self.end - self.first
        lead = max(0, before - width)
        self.rows = max(self.rows, rows)
        self.columns = lead + width + after + _SPARE
        for layer in self.made:
            layer.rebuild(first, lead, width)
        self.starts = [start - first + lead for start in self.starts]
        self.end = lead + width

    def add(self, source: Cache, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """New texts, whose keys and values these rows of another cache hold from its column 0 on."""
        self.reserve(len(self.starts) + len(lengths), before=max(lengths), after=0)
        first = len(self.starts)
        self.starts += [self.end - length for length in lengths]
        for number, layer in enumerate(source.layers):
            while len(self.layers) <= number:
                self.layers.append(self._layer())
            self.made[number].take_over(layer, rows, lengths, first)

    def take_back(self, counts: Sequence[int]) -> None:
        """Forget the last columns of each text, so many of each."""
        common = min(counts)
        self.end -= common
        for row, count in enumerate(counts):
            more, start = count - common, self.starts[row]
            if more > 0:
                for layer in self.made:
                    layer.shift(row, slice(start, self.end - more), more)
                self.starts[row] = start + more

    def leave(self, row: int) -> None:
        """Forget a text; the last one takes its row."""
        last = len(self.starts) - 1
        if row != last:
            for layer in self.made:
                layer.copy_row(last, row)
        self.starts[row] = self.starts[last]
        self.starts.pop()
        if not self.starts:
            self.end = 0

    def _layer(self) -> ColumnLayer:
        self.made.append(ColumnLayer(self))
        return self.made[-1]


class ColumnLayer(CacheLayerMixin):
    """Keys and values of one layer, (B, h, L, d)."""

    is_sliding = False  # of a sliding window all is kept, and the mask leaves out what is too far back
    keys: Tensor | None
    values: Tensor | None

    def __init__(self, owner: ColumnCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.owner = owner

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the buffers, of zeros: what is masked is multiplied by 0, and 0 times leftovers of memory may be NaN."""
        rows, columns = self.owner.rows, self.owner.columns
        self.keys, self.values = (
            state.new_zeros(rows, state.shape[1], columns, state.shape[3]) for state in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write new tokens' keys and values behind the end; returns all that is in use with them."""
        owner = self.owner
        rows, end = len(owner.starts), owner.end + key_states.shape[2]
        out = []
        for buffer, new in zip(self._buffers(key_states, value_states), (key_states, value_states), strict=True):
            buffer[:rows, :, owner.end : end] = new
            out.append(buffer[:rows, :, owner.first : end])
        return out[0], out[1]

    def get_seq_length(self) -> int:
        """Columns in use."""
        return self.owner.end - self.owner.first

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns in use with the new ones, and how many are missing before them."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def take_over(self, source: Any, rows: Sequence[int], lengths: Sequence[int], first: int) -> None:
        """Copy the keys and values of texts from these rows of another cache's layer into ours from `first` on."""
        if not source.is_initialized:  # a layer that uses another's keys
            return
        read = (source.keys, source.values)
        for buffer, states in zip(self._buffers(*read), read, strict=True):
            for target, (row, length) in enumerate(zip(rows, lengths, strict=True), start=first):
                buffer[target, :, self.owner.end - length : self.owner.end] = states[row, :, :length]

    def copy_row(self, source: int, target: int) -> None:
        """One text's keys and values over another's."""
        columns = slice(self.owner.starts[source], self.owner.end)
        for buffer in (self.keys, self.values):
            if buffer is not None:
                buffer[target, :, columns] = buffer[source, :, columns]

    def shift(self, row: int, columns: slice, by: int) -> None:
        """Move these columns of one text to the right."""
        for buffer in (self.keys, self.values):
            if buffer is not None:
                buffer[row, :, columns.start + by : columns.stop + by] = buffer[row, :, columns].clone()

    def rebuild(self, first: int, lead: int, width: int) -> None:
        """New buffers of the owner's size; what is in use begins at their column `lead`."""
        keys, values, rows = self.keys, self.values, len(self.owner.starts)
        if keys is None or values is None:
            return
        self.lazy_initialization(keys, values)
        for buffer, before in zip(self._buffers(keys, values), (keys, values), strict=True):
            buffer[:rows, :, lead : lead + width] = before[:rows, :, first : first + width]

    def _buffers(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """The buffers, made for states like these where there are none."""
        if self.keys is None or self.values is None:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values
