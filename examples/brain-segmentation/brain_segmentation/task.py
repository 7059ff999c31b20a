"""The data, and training on one client's part of the brain."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from monai.losses import DiceCELoss
from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template
from torch import nn
from torch.nn.functional import pad
from torch.utils.data import DataLoader, TensorDataset

from brain_segmentation.plans import NUM_CLASSES, Fingerprint, Plan

RESOLUTION = 3  # millimetres
BRAIN = 0.1  # intensities above it are not empty
LEAST_BRAIN = 200  # pixels: images with less of it are not used
HELD_OUT_EVERY = 4
BATCH_SIZE = 4


@cache  # resampling takes seconds, and the same process serves a client round after round
def _load_brain() -> tuple[np.ndarray, np.ndarray]:
    """Load the whole brain, from bottom to top: intensities, and labels. Nothing is downloaded, nilearn ships it."""
    head, grey, white = (
        np.moveaxis(np.asarray(load(resolution=RESOLUTION).dataobj, np.float32), 2, 0)
        for load in (load_mni152_template, load_mni152_gm_template, load_mni152_wm_template)
    )
    return head, np.where(white > 0.5, 2, np.where(grey > 0.5, 1, 0))


def load_part(partition_id: int, num_partitions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Load one client's share, some neighbouring slices of the brain, cut to where there is any.

    Returns
    -------
    images : Tensor
        Float32, of shape (images, 1, height, width).
    labels : Tensor
        Int64, of the same shape: 0, 1 for grey matter, 2 for white.
    """
    head, labels = _load_brain()
    used = np.flatnonzero((labels > 0).sum((1, 2)) >= LEAST_BRAIN)
    mine = np.array_split(used, num_partitions)[partition_id]
    _, rows, columns = np.nonzero(head[mine] > BRAIN)
    part = (mine, slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
    return torch.tensor(head[part])[:, None], torch.tensor(labels[part])[:, None]


def fingerprint(images: torch.Tensor) -> Fingerprint:
    """Describe a client's images for the server's planning."""
    brain = images[images > BRAIN].double()
    return Fingerprint(images.shape[2], images.shape[3], len(brain), brain.mean().item(), brain.var().item())


def prepare(images: torch.Tensor, labels: torch.Tensor, plan: Plan) -> tuple[TensorDataset, TensorDataset]:
    """Bring images to the plan's size and intensity; return those to train on and those held out."""
    missing = plan.width - images.shape[3], plan.height - images.shape[2]
    margins = [side for both in missing for side in (both // 2, both - both // 2)]
    images = pad((images - plan.mean) / plan.deviation, margins, value=-plan.mean / plan.deviation)
    labels = pad(labels, margins)
    held_out = torch.arange(len(images)) % HELD_OUT_EVERY == 0
    return TensorDataset(images[~held_out], labels[~held_out]), TensorDataset(images[held_out], labels[held_out])


def _loss() -> DiceCELoss:
    return DiceCELoss(to_onehot_y=True, softmax=True, batch=True)


def train(model: nn.Module, data: TensorDataset, learning_rate: float, seed: int) -> float:
    """Train for one epoch; return the mean loss. The same seed gives the same bits."""
    torch.set_num_threads(1)  # sums are split by threads: their number would show in the last bits
    shuffled = DataLoader(data, BATCH_SIZE, shuffle=True, generator=torch.Generator().manual_seed(seed))
    optimizer = torch.optim.SGD(model.parameters(), learning_rate, momentum=0.9, nesterov=True)
    criterion = _loss()
    model.train()
    total = 0.0
    for images, labels in shuffled:
        optimizer.zero_grad()
        loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(labels)
    return total / len(data)


def _dice(found: torch.Tensor, true: torch.Tensor) -> float:
    return 2 * (found & true).sum().item() / max((found.sum() + true.sum()).item(), 1)


@torch.no_grad()
def evaluate(model: nn.Module, data: TensorDataset) -> tuple[float, list[float]]:
    """Return the loss, and the Dice score of grey and of white matter."""
    torch.set_num_threads(1)
    images, labels = data.tensors
    model.eval()
    logits = model(images)
    found = logits.argmax(1, keepdim=True)
    dice = [_dice(found == kind, labels == kind) for kind in range(1, NUM_CLASSES)]
    return _loss()(logits, labels).item(), dice
