"""Which reader takes a folder of image weights, by its model_type."""

from __future__ import annotations

from astra_mpi.models.vision.clip import Clip, ClipVision, Siglip, SiglipVision
from astra_mpi.models.vision.deit import DeiT
from astra_mpi.models.vision.dinov2 import Dinov2, Dinov2WithRegisters
from astra_mpi.models.vision.vit import ViT
from astra_mpi.models.vision.vit_likes import ViTMAE, ViTMSN

READERS: dict[str, type[ViT]] = {
    "deit": DeiT,
    "dinov2": Dinov2,
    "dinov2_with_registers": Dinov2WithRegisters,
    "clip_vision_model": ClipVision,
    "clip": Clip,
    "siglip_vision_model": SiglipVision,
    "siglip": Siglip,
    "vit_mae": ViTMAE,
    "vit_msn": ViTMSN,
}
