"""The network: sizes, skips, cost."""

from __future__ import annotations

import pytest
import torch

from mepdiff_core.config import from_dict, merge, to_dict
from mepdiff_core.errors import InputError
from mepdiff_core.train_config import TrainConfig, preset
from mepdiff_core.unet import Attention, Down, UNet, UNetConfig, costs, folded, unfolded

TINY = UNetConfig((8, 16), (16, 24), blocks=2, head_channels=8, embedding=16)


def of_preset(name: str) -> UNetConfig:
    return from_dict(TrainConfig, merge(to_dict(TrainConfig()), preset(name))).network


def test_the_papers_network_has_its_parameters() -> None:
    """Appendix D: 100 M."""
    assert costs(UNetConfig())[-1].parameters == pytest.approx(100e6, rel=0.07)
    assert of_preset("paper") == UNetConfig()


def test_the_papers_network_shrinks_as_told() -> None:
    """Appendix D: 8 x 64 x 64 becomes 8 x 8 x 8 by stage 1; stage 2 halves all three axes."""
    sizes: list[tuple[int, ...]] = []
    with torch.device("meta"):
        network = UNet(UNetConfig())
        for down in network.down:
            down.register_forward_hook(lambda module, given, result: sizes.append(tuple(result[0].shape[1:])))
        network(torch.zeros(1, 1, 8, 64, 64), torch.zeros(1))
    assert sizes[5] == (128, 8, 8, 8)
    assert sizes[-1] == (256, 4, 4, 4)
    assert [s[0] for s in sizes] == [16, 32, 32, 64, 64, 128, 128, 128, 128, 256, 256, 256, 256, 256]
    attention = [module.attention is not None for module in network.down if isinstance(module, Down)]
    assert attention == [False] * 6 + [True] * 8


def test_small_is_small() -> None:
    small, paper = costs(of_preset("small"))[-1], costs(UNetConfig())[-1]
    assert small.parameters <= 10e6
    assert small.multiply_adds * 10 <= paper.multiply_adds
    assert small.parameters * 2 <= 16 * 2**20  # as float16 in one file of 16 MiB


def test_costs_count_what_is_there() -> None:
    rows = {row.part: row for row in costs(TINY, (4, 16, 16))}
    network = UNet(TINY)
    assert rows["all"].parameters == sum(p.numel() for p in network.parameters())
    assert sum(r.parameters for r in rows.values()) == 2 * rows["all"].parameters
    # the way in, one channel to 8, 27 taps, and the two layers of the embedding, 16 x 16 each
    assert rows["entry"].multiply_adds == 8 * 27 * 4 * 16 * 16 + 2 * 16 * 16
    assert rows["exit"].multiply_adds == 8 * 27 * 4 * 16 * 16


@pytest.mark.parametrize("size", [(4, 8, 8), (2, 16, 24), (6, 4, 12)])
def test_any_size_that_the_strides_divide(size: tuple[int, int, int]) -> None:
    assert TINY.strides == (2, 4, 4)
    assert UNet(TINY)(torch.zeros(3, 1, *size), torch.zeros(3)).shape == (3, 1, *size)


def test_other_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="4 x 8 x 10 voxels; this network takes multiples of 2 x 4 x 4"):
        UNet(TINY)(torch.zeros(1, 1, 4, 8, 10), torch.zeros(1))


def test_it_gives_nothing_at_first_and_then_every_weight_learns() -> None:
    torch.manual_seed(0)
    network = UNet(TINY)
    x, log_snr = torch.randn(2, 1, 4, 8, 8), torch.tensor([-7.0, 1.0])
    assert network(x, log_snr).abs().max() == 0
    # what is silent at first holds back the gradient of all before it: three steps open the way
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for _ in range(4):
        optimizer.zero_grad()
        (network(x, log_snr) - torch.randn(x.shape)).square().mean().backward()
        optimizer.step()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]


def test_each_residual_block_on_the_way_down_has_its_skip() -> None:
    """What a block gave is added on the way up: changing it alone changes the result."""
    torch.manual_seed(0)
    network = UNet(TINY)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x, log_snr = torch.randn(1, 1, 4, 8, 8), torch.zeros(1)
    with torch.no_grad():
        before = network(x, log_snr)
        for down in network.down:
            assert isinstance(down, Down)
            for index in range(2):
                original = down.forward

                def changed(h, e, original=original, index=index):  # type: ignore[no-untyped-def]
                    out, skips = original(h, e)
                    skips[index] = skips[index] + 1.0
                    return out, skips

                down.forward = changed  # type: ignore[method-assign]
                assert not torch.equal(network(x, log_snr), before)
                down.forward = original  # type: ignore[method-assign]
    assert torch.equal(network(x, log_snr).detach(), before)


def test_the_log_snr_is_heard_across_its_range() -> None:
    torch.manual_seed(0)
    network = UNet(TINY)
    log_snr = torch.linspace(-20, 20, 81)
    angles = log_snr[:, None] * network.frequencies
    heard = torch.cat([angles.sin(), angles.cos()], 1)
    distance = torch.cdist(heard, heard) + 10 * torch.eye(81)
    assert distance.min() > 0.1


def test_attention_sees_all_voxels() -> None:
    torch.manual_seed(0)
    attention = Attention(16, 8)
    torch.nn.init.normal_(attention.out.weight)
    x = torch.randn(1, 16, 2, 3, 4, requires_grad=True)
    attention(x)[0, :, 0, 0, 0].sum().backward()
    assert x.grad is not None
    assert (x.grad[0].abs().sum(0) > 0).all()


def test_folded_pixels_come_back() -> None:
    x = torch.arange(2 * 3 * 8 * 12.0).reshape(2, 1, 3, 8, 12)
    parts = folded(x, 4)
    assert parts.shape == (2, 16, 3, 2, 3)
    assert parts[0, :, 0, 0, 0].tolist() == [float(12 * y + x) for y in range(4) for x in range(4)]
    assert torch.equal(unfolded(parts, 4), x)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels_2d": []}, "need an entry each"),
        ({"channels_2d": [32, 16]}, "multiples of 8 that never fall"),
        ({"channels_2d": [12]}, "multiples of 8"),
        ({"blocks": 0}, "blocks is 0"),
        ({"patch": 3}, "patch is 3; expected 1, 2 or 4"),
        ({"head_channels": 48}, "head_channels is 48; expected a divisor"),
        ({"embedding": 7}, "embedding is 7"),
        ({"chanels": [8]}, "unknown field 'chanels'"),
    ],
)
def test_impossible_networks_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_dict(UNetConfig, settings)
