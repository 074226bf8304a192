"""What is caught is what models themselves give out; of the other layers nothing is kept; wrappers do no harm."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from tiny_models import MODELS, inputs_of, llama
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lmdistill.errors import ModelError
from lmdistill.recipe import LoraSpec
from lmdistill.training.anatomy import blocks_of
from lmdistill.training.attention_scores import NAME
from lmdistill.training.taps import BlockInputs, Place, Taps

TRANSFORMERS = [name for name in MODELS if name != "timm"]
IDS = torch.randint(1, 64, (2, 6), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_hidden_states_are_those_of_the_model(name: str) -> None:
    model = MODELS[name]()
    args, kwargs = inputs_of(name, model)
    with torch.no_grad():
        wanted = model(*args, **kwargs, output_hidden_states=True).hidden_states
        taps = Taps(model, [Place("hidden", layer) for layer in (0, 1, 2, "final")])
        with taps.capture():
            model(*args, **kwargs)
    assert taps.depth == 3
    for layer in (0, 1, 2):
        torch.testing.assert_close(taps.take(Place("hidden", layer)), wanted[layer])
    last = taps.take(Place("hidden", "final"))
    torch.testing.assert_close(last, model(*args, **kwargs).last_hidden_state if name == "vit" else wanted[3])


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_scores_are_those_behind_the_model_s_own_maps(name: str) -> None:
    model = MODELS[name]()
    args, kwargs = inputs_of(name, model)
    with torch.no_grad():
        before = model.config._attn_implementation
        told: list[str] = []
        taps = Taps(model, [Place("scores", 1), Place("scores", 3)], told.append)
        with taps.capture():
            switched = model(*args, **kwargs)[0]
        maps = {layer: taps.take(Place("scores", layer)).softmax(-1) for layer in (1, 3)}
        taps.close()
        assert model.config._attn_implementation == before
        plain = model(*args, **kwargs)[0]
        model.set_attn_implementation("eager")
        wanted = model(*args, **kwargs, output_attentions=True).attentions
    real = kwargs.get("attention_mask", torch.ones(plain.shape[:2])).bool()
    torch.testing.assert_close(switched[real], plain[real])
    for layer, found in maps.items():
        torch.testing.assert_close(found.transpose(1, 2)[real], wanted[layer - 1].transpose(1, 2)[real])
    assert len(told) == (before != "eager")
    assert all("layers 1, 3" in text and "MiB at 512 tokens" in text for text in told)


def test_timm_s_maps_and_states() -> None:
    model: Any = MODELS["timm"]()
    (images,), _ = inputs_of("timm", model)
    places = [Place("hidden", 0), Place("hidden", 2), Place("scores", 2), Place("value", 2), Place("hidden", "final")]
    taps = Taps(model, places)
    with torch.no_grad(), taps.capture():
        found = model.forward_features(images)
    torch.testing.assert_close(taps.take(Place("hidden", "final")), found)
    _, states = model.forward_intermediates(images, indices=[1], return_prefix_tokens=True, output_fmt="NLC")[:2]
    torch.testing.assert_close(taps.take(Place("hidden", 2))[:, 1:], states[0][0])
    attention = model.blocks[1].attn
    attention.fused_attn = False
    maps: list[Tensor] = []
    attention.attn_drop.register_forward_hook(lambda module, args, output: maps.append(args[0]))
    with torch.no_grad():
        model(images)
    torch.testing.assert_close(taps.take(Place("scores", 2)).softmax(-1), maps[0])
    assert taps.take(Place("value", 2)).shape == (2, 5, 4, 4)


@pytest.mark.parametrize("name", MODELS)
def test_queries_and_keys_make_the_scores(name: str) -> None:
    """Without rotary embedding and norms of queries they do so exactly; with those their shape is checked."""
    model = MODELS[name]()
    args, kwargs = inputs_of(name, model)
    taps = Taps(model, [Place("query", 2), Place("key", 2), Place("value", 2), Place("scores", 2)])
    with torch.no_grad(), taps.capture():
        model(*args, **kwargs)
    query, key, value = (taps.take(Place(part, 2)) for part in ("query", "key", "value"))  # type: ignore[arg-type]
    scores = taps.take(Place("scores", 2))
    assert query.shape == key.shape == value.shape == (*query.shape[:2], 4, 4)
    if name in ("gpt2", "bert", "distilbert", "vit", "timm"):
        made = torch.einsum("bqad,bkad->baqk", query, key) / 2
        seen = scores > -1e4
        torch.testing.assert_close(made[seen], scores[seen])
    elif name != "phi3":  # each group of two query heads shares one key head
        torch.testing.assert_close(key[:, :, 0], key[:, :, 1])
        assert not torch.equal(key[:, :, 1], key[:, :, 2])


def live_states(width: int, count: int = 12) -> int:
    """Tensors of two texts of six tokens and this width that something still holds."""
    gc.collect()
    shapes = ((2, 6, width), (count, width))
    pointers = set()
    for thing in gc.get_objects():
        if issubclass(type(thing), Tensor) and type(thing) is not nn.Parameter and tuple(thing.shape) in shapes:
            pointers.add(thing.untyped_storage().data_ptr())
    return len(pointers)


@pytest.mark.parametrize("layers", [[2], [1, 4, 6]])
def test_a_teacher_keeps_as_many_states_as_layers_are_tapped(layers: list[int]) -> None:
    model = llama(num_hidden_layers=8, hidden_size=20, num_attention_heads=5, num_key_value_heads=1)
    taps = Taps(model, [Place("hidden", layer) for layer in layers])
    before = live_states(20)
    with torch.no_grad(), taps.capture():
        model.model(IDS, use_cache=False)
    assert live_states(20) - before == len(layers)
    for layer in layers:
        taps.take(Place("hidden", layer))
    assert live_states(20) - before == 0


def test_under_checkpointing_a_layer_that_runs_again_is_not_caught_again() -> None:
    model = llama(num_hidden_layers=6).train()
    places = [Place("hidden", 2), Place("hidden", 5), Place("scores", 3), Place("value", 4)]
    taps = Taps(model, places)

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        with taps.capture():
            model(IDS, use_cache=False)
        loss = sum((taps.take(place)[:, :, 0].clamp_min(-9.0).square().mean() for place in places), torch.zeros(()))
        loss.backward()
        assert taps._caught == {}
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    calls: list[int] = []
    blocks_of(model)[1].self_attn.q_proj.register_forward_hook(lambda *_: calls.append(1))
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    checkpointed = gradients()
    assert len(calls) == 2  # it did run again
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient)


def test_under_checkpointing_taps_keep_nothing_more() -> None:
    """What a block returns is what the next one reads, which checkpointing keeps anyhow."""
    model = llama(num_hidden_layers=8, hidden_size=20, num_attention_heads=5, num_key_value_heads=1).train()
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})

    def held(layers: list[int]) -> int:
        taps = Taps(model, [Place("hidden", layer) for layer in layers])
        before = live_states(20)
        with taps.capture():
            out = model.model(IDS, use_cache=False).last_hidden_state
        found = live_states(20) - before
        del out
        taps.close()
        return found

    assert held([3, 6]) == held([])


def test_reentrant_checkpointing_is_refused() -> None:
    model = llama().train()
    taps = Taps(model, [Place("hidden", 1)])
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(ModelError, match="use_reentrant: false"), taps.capture():
        pass


@pytest.mark.slow
def test_a_compiled_model_is_tapped() -> None:
    plain, compiled = llama(num_hidden_layers=2), llama(num_hidden_layers=2)
    place = Place("hidden", 1)
    own, other = Taps(plain, [place]), Taps(compiled, [place])
    called: Any = torch.compile(compiled, backend="aot_eager")
    for _ in range(2):
        with own.capture():
            plain(IDS, use_cache=False)
        with other.capture():
            called(IDS, use_cache=False)
        found = other.take(place)
        torch.testing.assert_close(found, own.take(place))
    found.square().sum().backward()
    assert compiled.model.layers[0].mlp.up_proj.weight.grad is not None


def test_adapters_and_wrappers_are_seen_through() -> None:
    pytest.importorskip("peft")
    from lmdistill.students import with_adapters

    model = with_adapters(llama(), LoraSpec(rank=2), seed=0)
    taps = Taps(model, [Place("hidden", 2), Place("query", 1)])
    with taps.capture():
        model(input_ids=IDS, use_cache=False)
    taps.take(Place("query", 1)).square().sum().backward()
    adapters = [name for name, p in model.named_parameters() if p.grad is not None and bool((p.grad != 0).any())]
    assert adapters
    assert all("layers.0.self_attn.q_proj.lora_B" in name for name in adapters)
    assert issubclass(DistributedDataParallel, nn.Module)  # unwrapped by name: `bare` imports no process group


def test_fully_sharded_modules_keep_their_hooks(tmp_path: Any) -> None:
    """FSDP2 changes the class of a module in place; one process is enough to see that hooks still fire."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    if not dist.is_available():
        pytest.skip("torch without distributed")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        mesh = dist.init_device_mesh("cpu", (1,))
        model, plain = llama(), llama()
        taps, own = (Taps(each, [Place("hidden", 2), Place("key", 1)]) for each in (model, plain))
        for block in blocks_of(model):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        for each, each_taps in ((model, taps), (plain, own)):
            with each_taps.capture():
                each(IDS, use_cache=False)
        for place in taps.places:
            torch.testing.assert_close(taps.take(place), own.take(place))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("place", "told"),
    [
        (Place("hidden", 4), "layers 0 to 3"),
        (Place("scores", 0), "layers 1 to 3"),
        (Place("hidden", "layers.1.mlpp"), "nearest: .*model.layers.1.mlp"),
        (Place("hidden", "mlp"), "fits 3 modules"),
        (Place("query", "lm_head"), "holds no attention"),
    ],
)
def test_places_that_are_not_there(place: Place, told: str) -> None:
    model = llama()
    with pytest.raises(ModelError, match=told):
        Taps(model, [Place("hidden", 1), place])
    assert not blocks_of(model)[0]._forward_hooks  # what was hooked before is let go
    with pytest.raises(ModelError, match="has no list of blocks"):
        blocks_of(nn.Linear(1, 1))


def test_what_was_not_computed_or_was_taken() -> None:
    model = llama()
    taps = Taps(model, [Place("hidden", "layers.1.mlp")])
    with pytest.raises(ModelError, match="not computed"):
        taps.take(taps.places[0])
    with taps.capture():
        model(IDS)
    taps.take(taps.places[0])
    with pytest.raises(ModelError, match="taken already"):
        taps.take(taps.places[0])
    model(IDS)  # outside of a capture nothing is caught
    assert taps._caught == {}


def test_packed_texts_do_not_look_at_each_other_in_tapped_layers() -> None:
    model = llama()
    taps = Taps(model, [Place("scores", 1)])
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]])
    with torch.no_grad(), taps.capture():
        model(IDS[:1], position_ids=positions, use_cache=False)
    scores = taps.take(Place("scores", 1))
    assert (scores[0, :, 3:, :3] < -1e4).all()
    assert (scores[0, :, 4, 3:5] > -1e4).all()
    assert model.config._attn_implementation == NAME


def test_blocks_read_what_they_are_given_and_are_trained_apart() -> None:
    model = llama().train()
    taps = Taps(model, [Place("hidden", layer) for layer in (1, 2, 3)])
    given = torch.randn(2, 6, 16)
    inputs = BlockInputs(model, [2, 3])
    inputs.give({2: given, 3: given})
    with taps.capture():
        model(IDS, use_cache=False)
    outputs = [taps.take(place) for place in taps.places]
    outputs[2].square().sum().backward()
    assert all(p.grad is None for block in blocks_of(model)[:2] for p in block.parameters())
    assert all(p.grad is not None for p in blocks_of(model)[2].parameters())
    inputs.give({2: torch.randn(2, 6, 8)})
    with pytest.raises(ModelError, match=r"\(2, 6, 16\).*\(2, 6, 8\)"):
        model(IDS)
    inputs.close()
    model(IDS)
    with pytest.raises(ModelError, match=r"block 4 .* blocks 1 to 3"):
        BlockInputs(model, [4])
