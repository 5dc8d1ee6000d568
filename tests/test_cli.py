from pathlib import Path

import pytest
import yaml

from nlzoo import cli
from nlzoo.registry import VIDEO, base_of, places_of

CHARADES = "i3d_nl_charades"


def parse(*argv):
    return cli.parse(argv, cli.recipe_parser())


def test_merge_goes_key_by_key():
    merged = cli.merge({"a": {"b": 1, "c": 2}, "d": [1, 2]}, {"a": {"b": 3}, "d": [4]})
    assert merged == {"a": {"b": 3, "c": 2}, "d": [4]}


@pytest.mark.parametrize("name", cli.recipe_names())
def test_recipes_parse_by_name_and_path(name):
    config = parse("--recipe", name)
    assert config == parse("--recipe", f"recipes/{name}.yaml")
    assert config.run == f"runs/{name}"
    head = (Path(cli.__file__).parent.parent / "recipes" / f"{name}.yaml").read_text()
    for word in ("# Source:", "# Expected:", "# Hardware:", "# Command:"):
        assert word in head


def test_options_override_recipes_and_recipes_merge(tmp_path):
    (tmp_path / "local.yaml").write_text("task: {init_args: {lr: 0.5}}\ntrainer: {max_steps: 7}\n")
    config = parse(
        *("--recipe", "i3d_nl_kinetics", f"--recipe={tmp_path}/local.yaml"),
        *("--trainer.max_steps", "9", "--task.non_local.form", "dot_product", "--data", "videos"),
    )
    assert config.task.init_args.lr == 0.5
    assert config.task.init_args.weight_decay == 1e-4
    assert config.trainer.max_steps == 9
    assert config.task.init_args.non_local["form"] == "dot_product"
    assert config.data.init_args.path == "videos"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        (("--task.non_local.norm", "null"), {"norm": None}),
        (("--task.init_args.non_local.norm=null",), {"norm": None}),
        (("--task.non_local.places", "res3:1 res4:1,3"), {"places": "res3:1 res4:1,3"}),
        (("--task.non_local.res3.groups", "4"), {"res3": {"groups": 4}}),
        (("--task.non_local.res3", "{groups: 4}"), {"res3": {"groups": 4}}),
    ],
)
def test_keys_of_keys_are_as_in_a_recipe(option, value):
    config = parse("--recipe", "i3d_nl_kinetics", *option)
    assert config.task.init_args.non_local == {"form": "embedded_gaussian", **value}


def test_keys_of_keys_are_laid_over_the_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "make_sample", lambda: tmp_path)
    config = parse("--recipe", "i3d_nl_kinetics", "--task.arch.width", "8", "--sample")
    assert config.task.init_args.arch["width"] == 8


def test_effective_recipe_parses_to_the_same(tmp_path):
    config = parse("--recipe", "c2d_nl_kinetics", "--task.lr", "0.25", "--seed", "3")
    path = tmp_path / "recipe.yaml"
    path.write_text(cli.recipe_text(config))
    again = parse("--recipe", str(path), "--run", config.run)
    assert again == config
    assert yaml.safe_load(path.read_text())["seed"] == 3


@pytest.mark.parametrize("name", cli.recipe_names())
def test_the_sample_keeps_kind_depth_and_places(name, tmp_path, monkeypatch):
    for make in ("make_sample", "make_images", "make_actions", "make_coco"):
        monkeypatch.setattr(cli, make, lambda: tmp_path)
    plain, sample = parse("--recipe", name), parse("--recipe", name, "--sample")
    assert sample.data.init_args.path == str(tmp_path)
    for section in ("task", "data"):
        assert sample[section].class_path == plain[section].class_path
    networks = [one.task.init_args for one in (plain, sample)]
    places = [places_of(network.model, network.non_local) for network in networks]
    assert bool(places[0]) == bool(places[1])
    if base_of(networks[0].model) in VIDEO:  # the other samples have networks of their own
        assert places[0] == places[1]
        assert networks[0].model == networks[1].model


def test_the_sample_of_charades_keeps_depth_blocks_and_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "make_actions", lambda: tmp_path)
    task, data = (parse("--recipe", CHARADES, "--sample")[key] for key in ("task", "data"))
    assert data.class_path == "nlzoo.data.charades.Charades"
    assert data.init_args.path == str(tmp_path)
    assert (data.init_args.pool, data.init_args.val) == ("max", "test")
    assert (task.init_args.model, task.init_args.pretrained) == ("i3d_r101_nl5", "")
    assert task.init_args.non_local["res3"] == {"groups": 4}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "no recipe: --recipe NAME, one of c2d_kinetics"),
        (("--sample",), "no recipe: --recipe NAME, one of c2d_kinetics"),
        (("--recpie", "i3d_nl_kinetics"), "unknown key '--recpie'; did you mean '--recipe'"),
        (
            ("--recipe", "i3d_nl_kinetics", "--sample", "--data", "x"),
            "--sample brings data of its own: leave --data out, or --sample",
        ),
        (("--recipe", "zzz"), "no recipe 'zzz'; there are c2d_kinetics, .*, videos_timm_finetune$"),
        (("--recipe", "i3d_nl_kinetic"), "did you mean 'i3d_nl_kinetics'"),
        (("--recipe", "i3d_kinetics", "--task.lrr", "1"), "unknown key 'lrr'; did you mean 'lr'"),
        (("--recipe", "i3d_kinetics", "--data.batchsize", "1"), "did you mean 'batch_size'"),
        (("--recipe", "i3d_kinetics", "--trainer.max_step", "1"), "did you mean 'max_steps'"),
        (("--recipe", "i3d_kinetics", "--task.lr", "fast"), "task.lr: expected float, got 'fast'"),
        (
            ("--recipe", "i3d_kinetics", "--trainer.max_steps", "x"),
            "trainer.max_steps: expected int, got 'x'",
        ),
        (("--recipe", "i3d_kinetics", "--nonsense"), "unknown key 'nonsense'"),
        (("--recipe", "i3d_kinetics", "--task.arhc.width", "8"), "'arhc'; did you mean 'arch'"),
        (("--recipe", "i3d_kinetics", "--data.crop.size", "8"), "data.crop: expected"),
        (("--data.help",), r"--data.help of what\? list the keys: --data.help Kinetics\|"),
    ],
)
def test_wrong_options_are_named(argv, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message.replace("(", r"\(")) as error:
        parse(*argv)
    assert "\n" not in str(error.value)


def test_a_cpu_is_not_flooded_with_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(cli.os, "cpu_count", lambda: 2)
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    cli.check_devices(cli.Trainer(devices=2, **options))
    with pytest.raises(ValueError, match=r"devices = 99: .* 2 cores and no GPU; give 2"):
        cli.check_devices(cli.Trainer(devices=99, **options))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("taks: {}", "unknown key 'taks'; did you mean 'task'"),
        ("task: {class_path: VideoClasification}", "VideoClasification"),
        ("task: {class_path: Classification, init_args: {modle: x}}", "did you mean 'model'"),
        ("just text", "is not a recipe"),
        ("a: [", "line 1: not valid YAML"),
        ("task:", r"wrong\.yaml: task is empty; give its keys, or remove it"),
        ("data: 3", "data is 3; give its keys"),
        ("task: {class_path: Classification, init_args: }", r"task\.init_args is empty"),
        ("trainer:", "trainer is empty; give its keys"),
        ("trainer: {max_step: 3}", "did you mean 'max_steps'"),
    ],
)
def test_wrong_recipes_are_named(tmp_path, text, message):
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        parse("--recipe", "i3d_kinetics", "--recipe", str(tmp_path / "wrong.yaml"))
