"""Reads tests/fixtures/published.npz: the published implementation's own numbers."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pdfast.config.schema import Config, load_config
from pdfast.diffusion import angles
from pdfast.interop.google.published import views
from pdfast.models.model import Model

DATA = Path(__file__).parent / "fixtures"
PARAMETERIZATIONS = ("x", "eps", "v", "x_eps")  # those of the published code
WEIGHTS = ("constant", "snr", "snr_trunc", "v_mse")  # likewise

_npz = np.load(DATA / "published.npz", allow_pickle=False)


def published(key: str) -> str:
    """Return a key of pdfast as in the file: the published code calls x_eps "both"."""
    return key.replace("x_eps", "both")


def value(key: str) -> Tensor:
    """Return an array as float64 (integers stay integers); images are NCHW."""
    array = torch.from_numpy(np.array(_npz[published(key)]))
    array = array.double() if array.is_floating_point() else array
    return array.permute(0, 3, 1, 2) if array.ndim == 4 else array


def grad_keys(prefix: str) -> list[str]:
    """Return the parameter paths whose gradients are stored for a case."""
    begin = published(f"{prefix}/grad/")
    return [key.removeprefix(begin) for key in _npz.files if key.startswith(begin)]


def config(parameterization: str) -> Config:
    """Return the golden network's config."""
    loaded = load_config(DATA / "published.toml")
    return dataclasses.replace(
        loaded, model=dataclasses.replace(loaded.model, parameterization=parameterization)
    )


def network(parameterization: str) -> str:
    """Return its published network, "x" or "x_eps"; they differ in their channels."""
    return parameterization if parameterization == "x_eps" else "x"


def flax_file(role: str, parameterization: str) -> Path:
    """Return the published checkpoint of the golden "teacher" or "student"."""
    return DATA / published(f"published_{network(parameterization)}_{role}.flax")


def model(role: str, parameterization: str) -> Model:
    """Return the golden "teacher" or "student" with the published weights, in float64."""
    result = Model(config(parameterization).model).double()
    prefix = published(f"{network(parameterization)}/{role}/params/")
    for name, view in views(result.cfg, result.net.state_dict()).items():
        view.copy_(torch.from_numpy(_npz[prefix + name].astype(np.float64)))
    return result.eval()


class Case:
    """Teacher, student, draws and the fast path's rollout of one golden case."""

    def __init__(
        self, parameterization: str, num_steps: int, teacher: Model, student: Model
    ) -> None:
        self.key = f"distill/{parameterization}/N{num_steps}"
        self.parameterization, self.num_steps, self.teacher, self.student = (
            parameterization,
            num_steps,
            teacher,
            student,
        )
        self.x, self.eps = value("data/x"), value(f"{self.key}/eps")
        self.i = value(f"{self.key}/i")
        phi = self.teacher.schedule.phi
        self.phi_t = phi((self.i + 1) / num_steps)
        self.phi_mid = phi((self.i + 0.5) / num_steps)
        self.z_t = angles.diffuse(self.x, self.eps, self.phi_t)
        with torch.no_grad():
            self.out_t = self.teacher.forward_at_angle(self.z_t, self.phi_t)
            self.z_mid = angles.ddim_step(
                self.z_t, self.out_t, self.phi_t, self.phi_mid, parameterization
            ).z
            self.out_mid = self.teacher.forward_at_angle(self.z_mid, self.phi_mid)
        self.y_target = angles.target(
            self.z_t,
            self.out_t,
            self.out_mid,
            self.phi_t,
            self.phi_mid,
            self.i == 0,
            parameterization,
        )

    def golden(self, name: str) -> Tensor:
        """Return a published number of this case."""
        return value(f"{self.key}/{name}")

    def check_rollout(self, tol: float) -> None:
        """Check rollout and target against the published ones."""
        parameterization = self.parameterization
        assert relative(self.z_t, self.golden("z_t")) < tol
        x_t = angles.predict_x(self.z_t, self.out_t, self.phi_t, parameterization)
        assert relative(x_t, self.golden("teacher_x_t")) < tol
        assert relative(self.z_mid, self.golden("z_mid")) < tol
        x_mid = angles.predict_x(self.z_mid, self.out_mid, self.phi_mid, parameterization)
        assert relative(x_mid, self.golden("teacher_x_mid")) < tol
        x_target = x_of(self.y_target, self.z_t, self.phi_t, parameterization)
        assert relative(x_target, self.golden("x_target")) < tol


def x_of(y: Tensor, z: Tensor, phi: Tensor, parameterization: str) -> Tensor:
    """Return the x of a y in the parameterization's own space (for "x_eps", v)."""
    return angles.predict_x(z, y, phi, "v" if parameterization == "x_eps" else parameterization)


def relative(a: Tensor, b: Tensor) -> float:
    """Return ||a - b|| / ||b||."""
    return float((a - b).detach().norm() / b.norm())


def relative_per_image(a: Tensor, b: Tensor) -> Tensor:
    """Return ||a - b|| / ||b|| of each image, in float64."""
    a, b = a.double().flatten(1), b.double().flatten(1)
    return (a - b).norm(dim=1) / b.norm(dim=1)
