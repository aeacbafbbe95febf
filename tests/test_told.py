"""How pixels become a model's input, said on a command line: refused alike by all that take it."""

import importlib

import pytest

COMMANDS = {"predict": "image.jpg", "measure": "other", "export": "out.onnx"}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mean", "0.5"], "--mean and --std go together"),
        (["--mean", "0", "0", "--std", "1", "1"], "one number of grey or three of R G B"),
        (["--mean", "nan", "--std", "1"], "--mean: expected a number in 0 to 1, got nan"),
        (["--mean", "0", "--std", "0"], "--std: expected a number above 0 and up to 1, got 0"),
        (["--mean", "123.675", "--std", "1"], "got 123.675; pixels are in 0..1 here: divide"),
        (["--mean", "0", "--std", "58.4"], "got 58.4; pixels are in 0..1 here: divide"),
        (["--crop-ratio", "7"], "--crop-ratio: expected a share in 0 to 1, got 7"),
        (["--crop-ratio", "x"], "--crop-ratio: expected a share in 0 to 1, got x"),
        (["--mean", "0.5,0.5,0.5"], "--mean: expected a number in 0 to 1, got 0.5,0.5,0.5; pixels"),
    ],
)
def test_preprocessing_that_makes_no_sense_is_refused_first(command, arguments, message, capsys):
    main = importlib.import_module(f"spvit_jax.{command}.__main__").main
    with pytest.raises(SystemExit) as stopped:
        main(["nosuch.safetensors", COMMANDS[command], *arguments])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_a_litert_file_takes_an_image_at_least(capsys):
    main = importlib.import_module("spvit_jax.export.__main__").main
    with pytest.raises(SystemExit):
        main(["nosuch.safetensors", "out.tflite", "--batch", "0"])
    assert "--batch: expected 1 or more, got 0" in capsys.readouterr().err
