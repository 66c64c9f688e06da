"""Small runs without the rest of a run: settings, batches, adapters and a few steps."""

import torch

from asrlora.config import RunConfig
from asrlora.models import adapters, objective
from asrlora.models.family import Base

TEXTS = ["hello all", "be"]
SECONDS = [1.5, 1.0]

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # waves, mask, labels


def config(**settings: object) -> RunConfig:
    return RunConfig.model_validate(
        {"dataset_path": "t", "manifest_path": "d", "output_dir": "o", "lora_dropout": 0.0, **settings}
    )


def noise() -> Batch:
    """Two utterances of 1.5 s, and labels that are tokens of the demo's base."""
    generator = torch.Generator().manual_seed(1)
    waves = 0.075 * torch.randn(2, 24_000, generator=generator)
    return waves, torch.ones_like(waves, dtype=torch.long), torch.randint(4, 30, (2, 8), generator=generator)


def tones(base: Base, rows: slice = slice(None)) -> Batch:
    """Two utterances of 1.5 and 1 s with TEXTS, or one without padding."""
    longest = round(16_000 * max(SECONDS[rows]))
    seconds = torch.arange(24_000) / 16_000
    pitch = torch.stack([200 + 3_000 * seconds, 4_000 - 2_500 * seconds])  # one rises, one falls
    waves = 0.1 * torch.sin(torch.cumsum(2 * torch.pi * pitch / 16_000, 1))[rows, :longest]
    lengths = torch.tensor([round(16_000 * s) for s in SECONDS[rows]])
    mask = (torch.arange(longest) < lengths[:, None]).long()
    labels = objective.pad_labels([base.label_ids(base, text) for text in TEXTS[rows]])
    return waves * mask, mask, labels


def attach(base: Base, seed: int = 0, **settings: object) -> torch.nn.Module:
    torch.manual_seed(seed)
    chosen = {"lora_r": 4, "lora_targets": "all-linear", **settings}
    model: torch.nn.Module = adapters.attach(base, config(**chosen))
    return model


def train_on_noise(model: torch.nn.Module, base: Base) -> None:
    """Three steps."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    for _ in range(3):
        objective.summed_loss(model, base, *noise()).backward()
        optimizer.step()
        optimizer.zero_grad()


def train_on_tones(
    model: torch.nn.Module, base: Base, steps: int, rate: float, enough: float = 0.0
) -> list[float]:
    """As a run trains: warm-up, linear decay, clipped gradients. Stops once the loss is below `enough`;
    returns the losses."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, rate)
    objective.set_training(model)
    losses = list[float]()
    for step in range(steps):
        loss = objective.summed_loss(model, base, *tones(base))
        losses.append(float(loss.detach()))
        if losses[-1] < enough:
            break
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 10) * (1 - step / steps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return losses
