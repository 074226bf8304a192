"""The same sets of ids and levels as bytes under zstd with a trained dictionary: what our entropy coder competes with.

Everything that `SetCodec` codes, and nothing less, is laid out as bytes in several ways: frequency ranks in ascending
order as gaps, and a level for each. Each layout gets its own dictionary, trained on the sequences that our tables are
learnt on, of the size that serves it best, and zstd's highest ordinary level; frames are as small as the library lets
them be (no magic number, no checksum, no size). A frame holds one sequence, as in the store, so that each can be read
alone.

Shape legend: N positions of a sequence, k slots of a position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import zstandard

from lmdistill.signals.codec import SetCodec, Sets

LEVEL = 19
DICTIONARY_BYTES = (8_192, 32_768, 112_640)
"""The last is the default of zstd's command."""


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first (LEB128)."""
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _positions(codec: SetCodec, sets: Sets) -> list[tuple[list[int], list[int]]]:
    """Gaps and levels (from 0) of each position."""
    ranks_NK, numbers_NK, sizes_N = codec._sorted(sets)
    found = []
    for ranks_K, numbers_K, size in zip(ranks_NK, numbers_NK, sizes_N, strict=True):
        gaps = np.diff(ranks_K[:size], prepend=-1) - 1
        found.append((gaps.tolist(), (numbers_K[:size] - 1).tolist()))
    return found


def interleaved(codec: SetCodec, sets: Sets) -> bytes:
    """Position by position: how many, then each gap with its level."""
    data = bytearray()
    for gaps, levels in _positions(codec, sets):
        data += varint(len(gaps))
        for gap, level in zip(gaps, levels, strict=True):
            data += varint(gap) + varint(level)
    return bytes(data)


def apart(codec: SetCodec, sets: Sets) -> bytes:
    """All sizes, then all gaps, then all levels."""
    found = _positions(codec, sets)
    data = [varint(len(gaps)) for gaps, _ in found]
    data += [varint(gap) for gaps, _ in found for gap in gaps]
    data += [varint(level) for _, levels in found for level in levels]
    return b"".join(data)


def by_slot(codec: SetCodec, sets: Sets) -> bytes:
    """All sizes, then the first gap of every position, the second of every one, and so on; levels alike."""
    found = _positions(codec, sets)
    slots = max((len(gaps) for gaps, _ in found), default=0)
    data = [varint(len(gaps)) for gaps, _ in found]
    for part in (0, 1):
        for slot in range(slots):
            data += [varint(pair[part][slot]) for pair in found if len(pair[part]) > slot]
    return b"".join(data)


def planes(codec: SetCodec, sets: Sets) -> bytes:
    """Sizes, then the gaps' lowest bytes, the next, the highest (a byte each), then levels of two bytes alike."""
    found = _positions(codec, sets)
    gaps = np.array([gap for gaps, _ in found for gap in gaps], dtype="<u4")
    levels = np.array([level for _, levels in found for level in levels], dtype="<u2")
    data = [varint(len(gaps)) for gaps, _ in found]
    data += [gaps.view(np.uint8).reshape(-1, 4)[:, place].tobytes() for place in range(3)]
    data += [levels.view(np.uint8).reshape(-1, 2)[:, place].tobytes() for place in range(2)]
    return b"".join(data)


LAYOUTS: dict[str, Callable[[SetCodec, Sets], bytes]] = {
    "interleaved": interleaved,
    "apart": apart,
    "by slot": by_slot,
    "byte planes": planes,
}


def sizes(codec: SetCodec, learnt: Sequence[Sets], measured: Sequence[Sets]) -> dict[str, float]:
    """Bytes a position of each layout: plain, under zstd, and under zstd with its trained dictionary."""
    positions = sum(map(len, measured))
    found = {}
    for name, layout in LAYOUTS.items():
        plain = [layout(codec, sets) for sets in measured]
        samples = [layout(codec, sets) for sets in learnt]
        found[name] = sum(map(len, plain)) / positions
        found[f"{name}, zstd"] = _packed(plain, None) / positions
        trained = [zstandard.train_dictionary(size, samples, level=LEVEL) for size in DICTIONARY_BYTES]
        best = min(_packed(plain, dictionary) for dictionary in trained)
        found[f"{name}, zstd with a dictionary"] = best / positions
    return found


def _packed(plain: Sequence[bytes], dictionary: zstandard.ZstdCompressionDict | None) -> int:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        LEVEL,
        format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        write_content_size=False,
        write_checksum=False,
        write_dict_id=False,
    )
    compressor = zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters)
    reader = zstandard.ZstdDecompressor(dict_data=dictionary, format=zstandard.FORMAT_ZSTD1_MAGICLESS)
    total = 0
    for data in plain:
        packed = compressor.compress(data)
        assert reader.decompress(packed, max_output_size=len(data)) == data
        total += len(packed)
    return total
