"""A run directory whose models are pdfast's U-Net or custom networks."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from pdfast.config.class_names import merged
from pdfast.config.schema import Config, Parameterization
from pdfast.console.progress import Screen
from pdfast.models import checkpoint
from pdfast.models.custom import Network
from pdfast.models.model import Model
from pdfast.runs.run import Run
from pdfast.storage.digests import UNKNOWN, Digest


class Networks(NamedTuple):
    """Custom networks of a run: the initial ones of its models. None: pdfast's U-Net."""

    teacher: Network | None = None
    student: Network | None = None


BUILT_IN = Networks()


class ModelRun(Run):
    """A run that reads and writes models; see `Run`."""

    def __init__(
        self,
        path: Path,
        config: Config,
        screen: Screen,
        data: Digest = UNKNOWN,
        networks: Networks = BUILT_IN,
        class_names: tuple[str, ...] = (),
    ) -> None:
        """Open the run; `class_names` are the data's, for models that have none of their own."""
        super().__init__(path, config, screen, data)
        self.networks, self.class_names = networks, class_names

    @property
    def student_parameterization(self) -> Parameterization:
        """Parameterization of the run's students."""
        student = self.networks.student
        return self.config.model.parameterization if student is None else student.parameterization

    def save_model(self, model: Model, model_dir: Path, **facts: Any) -> None:
        """Write a model of the run, with `facts` in its manifest."""
        self._name_classes(model)
        self.make_model(lambda: checkpoint.save_model(model, model_dir, **facts))

    def load(self, model_dir: Path, device: torch.device) -> Model:
        """Load a model of the run; raise UsageError if it belongs to another network."""
        is_teacher = model_dir == self.teacher_dir
        network = self.networks.teacher if is_teacher else self.networks.student
        model = checkpoint.load_model(model_dir, device, network)
        self._name_classes(model)
        return model

    def _name_classes(self, model: Model) -> None:
        model.class_names = merged(model.class_names, self.class_names, model.num_classes)
