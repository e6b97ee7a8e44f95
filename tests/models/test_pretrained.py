"""Tests of pretrained weights from a file, and of backbones of timm."""

import numpy as np
import pytest
import torch
from torch import nn

from cpgan_ray.common.plugins import shipping
from cpgan_ray.config import PrivatizerConfig
from cpgan_ray.errors import InputError
from cpgan_ray.models import build_privatizer
from cpgan_ray.models.pretrained import pinned_weights
from cpgan_ray.models.statistics import refresh_statistics

SHAPE = (32, 32, 3)


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(shipping, "_kept", {})


def stages(seed: int = 0, **settings) -> nn.Module:
    torch.manual_seed(seed)
    privatizer = build_privatizer(PrivatizerConfig(width=4, depth=2, **settings), k=6, image_shape=SHAPE)
    return privatizer.stages


def test_weights_of_a_file_replace_those_of_the_stages(tmp_path):
    saved = stages(1).state_dict() | {"classifier.weight": torch.zeros(3)}
    torch.save(saved, tmp_path / "w.pt")
    loaded = stages(2, weights=f"{tmp_path}/w.pt").state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in loaded.items() if not name.endswith("tracked"))


def test_weights_that_changed_after_pinning_are_refused(tmp_path, monkeypatch):
    torch.save(stages(1).state_dict(), tmp_path / "w.pt")
    name = pinned_weights(f"{tmp_path}/w.pt")
    torch.save(stages(2).state_dict(), tmp_path / "w.pt")
    stages(weights=name)  # the bytes that were pinned
    monkeypatch.setattr(shipping, "_kept", {})
    with pytest.raises(InputError, match=r"w\.pt has changed: its digest is"):
        stages(weights=name)


class Harmful:
    def __reduce__(self):
        return (print, ("harm",))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("w.pt", lambda: {"0.weight": torch.zeros(4, 3, 3, 3)}, r"w\.pt has no '1\.weight': it belongs to another network"),
        (
            "w.pt",
            lambda: stages().state_dict() | {"0.weight": torch.zeros(4, 1, 3, 3)},
            r"'0\.weight' of shape \(4, 1, 3, 3\), the network",
        ),
        ("w.pt", lambda: {"x": Harmful()}, r"w\.pt is damaged, or not a file of weights"),
        ("w.bin", dict, r"w\.bin; it must be a file of tensors that ends in \.safetensors, \.pt, \.pth"),
    ],
)
def test_weights_of_another_network_or_kind_are_refused(file, content, message, tmp_path, capsys):
    torch.save(content(), tmp_path / file)
    with pytest.raises(InputError, match=message):
        stages(weights=f"{tmp_path}/{file}")
    assert "harm" not in capsys.readouterr().out


def test_frozen_stages_of_a_built_in_family_are_refused():
    with pytest.raises(InputError, match=r"frozen_stages is 2, but only networks of timm have it"):
        stages(frozen_stages=2)


class Activated(nn.BatchNorm2d):
    """A batch norm with an activation, like those of timm."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).relu()


def test_statistics_of_a_batch_norm_with_an_activation_are_those_of_training():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), Activated(4), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU())
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU()
    )
    plain.load_state_dict(
        {name.replace("1.", "1.0.", 1) if name.startswith("1.") else name: v for name, v in network.state_dict().items()}
    )
    batches = [torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    for part in (network, plain):
        refresh_statistics(part, batches)
    assert torch.allclose(network(batches[0]), plain(batches[0]), atol=1e-6)
    assert not network[1].training and network[1].momentum == 0.1


@pytest.fixture
def timm():
    return pytest.importorskip("timm")


NAME = "mobilenetv3_small_050"


def test_backbone_normalises_colours_and_leaves_out_the_classifier(timm):
    torch.manual_seed(0)
    privatizer = build_privatizer(PrivatizerConfig(family=f"timm:{NAME}"), k=6, image_shape=SHAPE).eval()
    x = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (2, 3, 32, 32)).astype(np.float32))
    backbone = privatizer.stages
    mean, deviation = (torch.tensor(timm.data.constants.__dict__[f"IMAGENET_DEFAULT_{n}"]).view(-1, 1, 1) for n in ("MEAN", "STD"))
    expected = backbone.network.forward_features(((x + 1) / 2 - mean) / deviation)
    assert torch.allclose(backbone(x), expected, atol=1e-5)
    assert not [name for name, _ in backbone.named_parameters() if "conv_head" in name or "classifier" in name]


def test_frozen_stages_keep_weights_and_statistics_in_training(timm):
    torch.manual_seed(0)
    privatizer = build_privatizer(PrivatizerConfig(family=f"timm:{NAME}", frozen_stages=3), k=6, image_shape=SHAPE).train()
    before = {name: value.clone() for name, value in privatizer.state_dict().items()}
    optimiser = torch.optim.AdamW(privatizer.parameters(), lr=1e-2, weight_decay=0.1)
    privatizer(torch.randn(8, 3, 32, 32)).square().sum().backward()
    optimiser.step()
    changed = {name for name, value in privatizer.state_dict().items() if not torch.equal(value, before[name])}
    frozen = {
        name for name in before if name.startswith(("stages.network.conv_stem", "stages.network.bn1", "stages.network.blocks.0."))
    }
    assert frozen and not frozen & changed
    assert any(name.startswith("stages.network.blocks.4.") for name in changed)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"family": "timm:no_such_network"}, r"timm has no such network; similar: "),
        ({"family": f"timm:{NAME}", "options": {"nonsense": 1}}, r"timm cannot make mobilenetv3_small_050 .* unexpected keyword"),
        ({"family": f"timm:{NAME}", "frozen_stages": 99}, r"frozen_stages is 99, but mobilenetv3_small_050 has \d stages"),
        ({"family": "timm:vit_tiny_patch16_224"}, r"does not accept samples of 32x32x3 .*img_size"),
    ],
)
def test_impossible_backbone_is_one_line(settings, message, timm):
    with pytest.raises(InputError, match=message):
        build_privatizer(PrivatizerConfig(**settings), k=6, image_shape=SHAPE)


def test_grey_pictures_get_the_average_normalisation(timm):
    privatizer = build_privatizer(PrivatizerConfig(family=f"timm:{NAME}"), k=6, image_shape=(32, 32, 1)).eval()
    assert privatizer(torch.zeros(2, 1, 32, 32)).shape == (2, 6)
