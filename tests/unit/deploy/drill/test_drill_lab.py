"""
The fleet file of a lab of the drill.
"""

import stat

import yaml

from deploy.drill.drill_lab import DrillLab


def test_a_kept_lab_keeps_its_fleet_file(tmp_path, monkeypatch):
    """
    In the lab's own folder, and the operator is told where: that of the drill is deleted.
    """
    monkeypatch.setenv("SLIPWAY_LAB_DIR", str(tmp_path / "lab"))
    work, model = tmp_path / "work", tmp_path / "model"
    for folder in (work, model, tmp_path / "lab-drill7"):
        folder.mkdir()
    (model / "live_prompts.json").write_text('["a"]')
    told = []
    one = DrillLab(7, 2, (model, model), work, told.append)
    one.write_fleet_file()
    (work / "other").write_text("")

    one.leave_up()

    kept = tmp_path / "lab-drill7" / "drill7.yml"
    assert kept.read_bytes() == (work / "drill7.yml").read_bytes()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert yaml.safe_load(kept.read_text())["hosts"].keys() == {"n1", "n2"}
    assert told == [f"lab 7 is left up: inv status --hosts {kept}"]


def test_a_lab_that_did_not_come_up_has_none(tmp_path, monkeypatch):
    monkeypatch.setenv("SLIPWAY_LAB_DIR", str(tmp_path / "lab"))
    (tmp_path / "live_prompts.json").write_text('["a"]')
    told = []

    DrillLab(7, 2, (tmp_path, tmp_path), tmp_path, told.append).leave_up()

    assert told == []
