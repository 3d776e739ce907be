"""PatchCore: a memory bank of patch features of good pictures; far from all of them = abnormal.

Source: Roth et al., "Towards Total Recall in Industrial Anomaly Detection", arXiv 2106.08265.
Learns in one pass and without gradients, which makes it the baseline everybody compares with.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from blemish.dataset import Dataset
from blemish.detector import DetectorConfig
from blemish.nn.backbone import Backbone
from blemish.remembering import Rememberer, RememberingConfig
from blemish.types import Prediction, Preprocessing


@dataclass(frozen=True, kw_only=True)
class PatchCoreConfig(RememberingConfig):
    """What can be chosen for PatchCore."""


class PatchCore(Rememberer):
    """The detector; see the module's docstring."""

    config: PatchCoreConfig
    # "paper" keeps as many entries as 10 % of the patches of some 200 pictures (section 4.2).
    presets: ClassVar[Mapping[str, DetectorConfig]] = {
        "paper": PatchCoreConfig(
            backbone="wide_resnet50_2.tv_in1k", image_size=(224, 224), strides=(8, 16), coreset_size=16_384
        ),
        "small": PatchCoreConfig(),
        "tiny": PatchCoreConfig(image_size=(64, 64), coreset_size=64, candidates=2_000, projection=16, blur=2.0),
    }

    def learn(self, data: Dataset, preprocessing: Preprocessing) -> None:
        """Fills the memory bank with a coreset of the training patches; the backbone stays as it is."""
        self.memorise(data, preprocessing)

    @property
    def shown_backbone(self) -> Backbone:
        """Its own."""
        return self.backbone

    def look_and_show(self, image: Tensor) -> tuple[Prediction[Tensor], Mapping[int, Tensor]]:
        """As `forward`, and the backbone's feature maps by stride."""
        features = self.see(image)
        return self.compare(features, image.shape[-2:]), features


DETECTOR = PatchCore
