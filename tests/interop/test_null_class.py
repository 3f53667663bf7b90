"""A label for no class in diffusers' class table, in import and export."""

import json
import re

import diffusers_files as df
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler
from diffusers.utils import logging

import pdfast
from pdfast.cli.main import main
from pdfast.config.schema import NetConfig
from pdfast.diffusion.conditioning import NO_CLASS, Conditioning
from pdfast.errors import PdfastError, UsageError
from pdfast.interop.diffusers import card
from pdfast.interop.diffusers.export import check_timesteps
from pdfast.interop.diffusers.load import load_diffusers
from pdfast.models.guidance import guided
from pdfast.models.model import Model

pytestmark = pytest.mark.usefixtures("handlers")
TOL = 1e-5
FIELDS = {
    "image_size": 8,
    "channels": 1,
    "ch": 16,
    "emb_ch": 64,
    "ch_mult": (1,),
    "num_res_blocks": 1,
    "attn_resolutions": (),
    "groups": 8,
    "num_classes": 3,
}


@pytest.fixture(autouse=True)
def _quiet_and_small(monkeypatch):
    monkeypatch.setattr("pdfast.models.model.SAMPLE_BATCH", 4)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


@pytest.mark.parametrize(("none", "labels"), [(4, [0, 1, 2, 3]), (1, [0, 2, 3, 4])])
def test_a_pipeline_with_a_class_for_none(none, labels, tmp_path, capsys):
    """The other labels keep their order as classes; the label for no class becomes -1."""
    net = df.unet(num_class_embeds=5)
    scheduler = DDIMScheduler(timestep_spacing="trailing", prediction_type="v_prediction")
    df.save(tmp_path / "p", net, scheduler, DDIMPipeline)
    args = ["import", str(tmp_path / "p"), "--from", "diffusers", "--out", str(tmp_path / "m")]
    assert main([*args, "--null-class", str(none)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"label {none} is no class: the model has classes 0 .. 3, and can be guided" in said
    assert ("labels above 1 are one less here" in said) == (none == 1)
    model = pdfast.load(tmp_path / "m")
    assert (model.num_classes, model.label_dropout > 0) == (4, True)
    z, t = df.noise(model, 5), torch.tensor([999, 700, 400, 100, 0])
    given = torch.tensor([*labels, none])
    with torch.no_grad():
        theirs = net(z, t, class_labels=given).sample
        phi = model.schedule.phi((t.double() + 1) / 1000)
        ours = model.forward_at_angle(z, phi, Conditioning(torch.tensor([0, 1, 2, 3, NO_CLASS])))
    assert df.apart(ours, theirs) < TOL < 0.1 * theirs.abs().max()
    assert guided(model, 1.5).sample(2, 2).isfinite().all()


def test_a_class_for_none_that_is_not_there(tmp_path, capsys):
    df.save(tmp_path / "five", df.unet(num_class_embeds=5))
    df.save(tmp_path / "one", df.unet(num_class_embeds=1))
    df.save(tmp_path / "none", df.unet())
    for name, said in (
        ("five", "--null-class 5: "),
        ("one", "has no label beside it"),
        ("none", "has no classes"),
    ):
        with pytest.raises(UsageError, match=said):
            load_diffusers(str(tmp_path / name), null_class=5 if name == "five" else 0)
    out = tmp_path / "own"
    pdfast.export(model_of(), out, quiet=True)
    with pytest.raises(UsageError, match=r"pdfast\.json says which label is no class"):
        load_diffusers(str(out), null_class=3)


def model_of(**fields):
    """A model with random weights that has learned no class, -1."""
    generator = torch.Generator().manual_seed(5)
    model = Model(NetConfig(**(FIELDS | {"label_dropout": 0.2} | fields))).eval()
    with torch.no_grad():
        for p in model.parameters():
            std = (2 / p[0].numel()) ** 0.5 if p.ndim > 1 else 0.2
            p.copy_(torch.randn(p.shape, generator=generator) * std)
    return model


def test_an_export_has_a_row_for_no_class(tmp_path, monkeypatch):
    """The last label is no class, the card's loop guides samples, and an import restores it."""
    model, out = model_of(), tmp_path / "out"
    pdfast.export(model, out, quiet=True)
    pipe = df.opened(out)
    assert pipe.unet.config.num_class_embeds == 4
    k, z = torch.tensor([0, 500, 1000, 1023]), df.noise(model)
    with torch.no_grad():
        theirs = pipe.unet(z, k, class_labels=torch.tensor([3, 3, 0, 2])).sample
        phi = model.schedule.phi((k + 1) / 1024)
        ours = model.forward_at_angle(z, phi, Conditioning(torch.tensor([-1, -1, 0, 2])))
    assert df.apart(ours, theirs) < TOL
    text = (out / "README.md").read_text()
    assert "Label 3 stands for no class." in text
    assert "labels 0 to 2" in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    ran = {}
    exec(code.replace("set_timesteps(64)", "set_timesteps(8)"), ran)
    labels, start = torch.tensor([0, 1, 2, 0]), df.noise(model, seed=0)
    images = guided(model, 1.0).sample(4, 8, label=labels, noise=start) / 2 + 0.5
    assert df.apart(ran["images"], images) < TOL
    assert df.apart(images, model.sample(4, 8, label=labels, noise=start) / 2 + 0.5) > 0.01
    back = load_diffusers(str(out)).model
    assert back.cfg == model.cfg
    torch.testing.assert_close(back.net.state_dict(), model.net.state_dict(), rtol=0, atol=1e-6)
    with pytest.raises(UsageError, match="omit the weight, and apply guidance where it is sam"):
        pdfast.export(model, tmp_path / "guided", guidance=1.0)


def test_a_student_has_none(tmp_path):
    """A model trained without label dropout exports no row for no class."""
    model, out = model_of(label_dropout=0.0), tmp_path / "out"
    pdfast.export(model, out, quiet=True)
    assert json.loads((out / "unet" / "config.json").read_text())["num_class_embeds"] == 3
    assert "no class" not in (out / "README.md").read_text()
    assert load_diffusers(str(out)).model.label_dropout == 0


# ------------------------------------------------------------------------------------------
# The card's numbers of steps


@pytest.mark.parametrize(("grid", "number", "least"), [(100, 5, 29), (50, 2, 29), (20, 0, 0)])
def test_one_timestep_too_many(grid, number, least):
    """The card's count matches diffusers; steps that divide T get no extra timestep."""
    scheduler = DDIMScheduler(num_train_timesteps=grid, timestep_spacing="trailing")
    longer = []
    for steps in range(1, grid + 1):
        scheduler.set_timesteps(steps)
        if len(scheduler.timesteps) != steps:
            assert (len(scheduler.timesteps), scheduler.timesteps[-1]) == (steps + 1, -1)
            longer.append(steps)
        if grid % steps == 0:
            check_timesteps(scheduler, steps)
    assert (len(longer), min(longer, default=0)) == (number, least)
    said = f"For {number} of the numbers 1 to {grid}, the first of them {least}, it also makes one"
    assert said in card._extra(grid) if number else card._extra(grid) == ""


def test_steps_that_diffusers_does_not_make_are_refused(tmp_path, monkeypatch):
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    for steps in (61, 64):
        with pytest.raises(PdfastError, match=f"does not make {steps} equal steps of 1000 times"):
            check_timesteps(scheduler, steps)
    made = DDIMScheduler.set_timesteps

    def one_more(self, steps, *args):
        made(self, steps, *args)
        self.timesteps = torch.cat([self.timesteps, torch.tensor([-1])])

    monkeypatch.setattr(DDIMScheduler, "set_timesteps", one_more)
    with pytest.raises(PdfastError, match="does not make 64 equal steps of 1024 timesteps, and"):
        pdfast.export(model_of(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_card_names_the_numbers_that_divide(tmp_path):
    betas = {"schedule": "linear", "timesteps": 100, "betas": (0.001, 0.12), "label_dropout": 0.0}
    pdfast.export(model_of(**betas), tmp_path / "out", quiet=True)
    text = (tmp_path / "out" / "README.md").read_text()
    text = " ".join(text.split())
    assert "numbers that divide 100 are safe: 1, 2, 4, 5, 10, 20, 25, 50, 100; the" in text
    assert "set_timesteps(50)" in text
    assert "For 5 of the numbers 1 to 100, the first of them 29, it also makes one" in text
