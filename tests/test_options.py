"""Options of commands as dataclasses: argparse is made of the fields, and gives them back."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from mood_submission.cli.command import run_command
from mood_submission.runtime.option_types import ending_in, port_option, positive
from mood_submission.runtime.options import DefaultsShown, add_options, option, options_of


@dataclass(frozen=True, kw_only=True)
class Budget:
    minutes: float | None = option("so long", default=None, one_of="budget")
    steps: int | None = option("so many", default=None, one_of="budget")


@dataclass(frozen=True, kw_only=True)
class Options:
    budget: Budget
    folder: Path = option("where to", "-o", "--out", metavar="DIR")
    kinds: tuple[str, ...] = option("some", choices=("a", "b"), default=("a",))
    sizes: tuple[int, ...] | None = option("of levels (default: published)", default=None)
    rate: float = option("of learning", default=0.5)
    batch_size: int = option("slices", type=positive, default=4)
    again: bool = option("go on", default=False)
    names: str | None = option("these", default=None, not_with="names")
    names_file: str | None = option("those", default=None, not_with="names")
    inner: int = 7


def parser(**defaults) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(formatter_class=DefaultsShown)
    add_options(made, Options, **defaults)
    return made


def read(words: str, **defaults) -> Options:
    return options_of(Options, parser(**defaults).parse_args(words.split()))


def test_what_is_not_given_has_the_field_s_default_or_the_command_s():
    assert read("-o x --steps 3") == Options(budget=Budget(steps=3), folder=Path("x"))
    assert read("-o x --steps 3", rate=0.1).rate == 0.1
    assert read("-o x --steps 3 --rate 2", rate=0.1).rate == 2


def test_types_are_the_fields():
    found = read("--out x --minutes 1.5 --kinds b a --sizes 4 8 --batch-size 2 --again")
    assert found == Options(
        budget=Budget(minutes=1.5), folder=Path("x"), kinds=("b", "a"), sizes=(4, 8), batch_size=2, again=True
    )


@pytest.mark.parametrize(
    "words, told",
    [
        ("--steps 3", "-o/--out"),
        ("-o x", "one of the arguments --minutes --steps"),
        ("-o x --steps 3 --minutes 1", "not allowed with"),
        ("-o x --steps 1 --names a --names-file b", "not allowed with"),
        ("-o x --steps many", "invalid int value"),
        ("-o x --steps 1 --batch-size 0", "expected a number of at least 1"),
        ("-o x --steps 1 --kinds c", "invalid choice"),
        ("-o x --steps 1 --inner 8", "unrecognized arguments: --inner"),
    ],
)
def test_wrong_words_are_refused(words, told, capsys):
    with pytest.raises(SystemExit) as stopped:
        read(words)
    assert stopped.value.code == 2 and told in capsys.readouterr().err


def test_help_tells_defaults_once():
    text = " ".join(parser(rate=0.25).format_help().split())
    assert "of learning (default: 0.25)" in text and "slices (default: 4)" in text
    assert "of levels (default: published)" in text and text.count("of levels") == 1
    assert "go on" in text and "go on (default" not in text and "so long (default" not in text


def test_a_file_s_name_ends_as_it_must():
    assert ending_in(".npz")("a/B.NPZ") == Path("a/B.NPZ")
    with pytest.raises(argparse.ArgumentTypeError, match="expected a name ending in .npz, found 'a.nii'"):
        ending_in(".npz")("a.nii")


def test_a_port_is_one_that_machines_have():
    assert port_option("0") == 0 and port_option("65535") == 65535
    for text in ("65536", "-1", "http"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected a port, 0 to 65535, found"):
            port_option(text)


def test_a_name_without_dashes_is_a_word_at_its_place():
    @dataclass(frozen=True, kw_only=True)
    class Words:
        source: Path = option("from", "source", metavar="FROM")
        most: tuple[int, ...] = option("of these", "most")
        out: Path | None = option("to", default=None)

    made = argparse.ArgumentParser()
    add_options(made, Words)
    found = options_of(Words, made.parse_args(["a", "1", "2"]))
    assert found == Words(source=Path("a"), most=(1, 2))
    with pytest.raises(SystemExit):
        made.parse_args(["a"])


def test_choices_may_be_known_only_as_the_command_starts():
    known = ["a"]

    @dataclass(frozen=True, kw_only=True)
    class Named:
        name: str = option("one of these", choices=lambda: known)

    known.append("b")
    made = argparse.ArgumentParser()
    add_options(made, Named)
    assert options_of(Named, made.parse_args(["--name", "b"])) == Named(name="b")
    with pytest.raises(SystemExit):
        made.parse_args(["--name", "c"])


def test_defaults_and_help_may_be_known_only_as_the_command_starts(monkeypatch):
    @dataclass(frozen=True, kw_only=True)
    class Started:
        place: str = option(lambda: f"now {os.environ['PLACE']}", default=lambda: os.environ["PLACE"])
        count: int = option("how many", type=positive, default=lambda: os.environ["COUNT"])

    def made() -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser()
        add_options(parser, Started)
        return parser

    for place, count in (("here", 1), ("there", 2)):
        monkeypatch.setenv("PLACE", place)
        monkeypatch.setenv("COUNT", str(count))
        assert options_of(Started, made().parse_args([])) == Started(place=place, count=count)
        assert f"now {place}" in made().format_help()
    assert Started(count=3) == Started(place="there", count=3)
    assert options_of(Started, made().parse_args(["--place", "a"])).place == "a"
    monkeypatch.setenv("COUNT", "none")
    with pytest.raises(SystemExit):
        made().parse_args([])


@dataclass(frozen=True, kw_only=True)
class Number:
    number: int = option("a number", "number")
    most: int | None = option("of these", default=None)

    def __post_init__(self) -> None:
        if self.most is not None and self.most < self.number:
            raise argparse.ArgumentError(None, "--most is below the number")


def root(options: Number) -> list[str]:
    if options.number < 0:
        raise ValueError(f"expected a number from 0 on,\nfound {options.number}")
    return [f"{options.number**0.5:g}"] if options.number else ["none", "\n\x1b"]


def test_errors_of_other_kinds_are_told_in_one_line_where_a_command_expects_them(capsys):
    def out_of_memory(options: Number) -> list[str]:
        raise RuntimeError("out of memory:\n4 GiB")

    def run(**more) -> int:
        return run_command(argparse.ArgumentParser(prog="root"), Number, out_of_memory, ["9"], **more)

    assert run(also=(RuntimeError,)) == 1 and capsys.readouterr().err == "root: out of memory: 4 GiB\n"
    with pytest.raises(RuntimeError):
        run()


def test_a_command_prints_what_it_found_or_what_was_wrong_in_one_line(capsys):
    def run(*words: str) -> tuple[int, str, str]:
        try:
            status = run_command(argparse.ArgumentParser(prog="root"), Number, root, words)
        except SystemExit as stopped:
            status = stopped.code
        return (status, *capsys.readouterr())

    assert run("9") == (0, "3\n", "")
    assert run("--", "-4") == (1, "", "root: expected a number from 0 on, found -4\n")
    assert run("--", "0") == (0, "none\n\\x0a\\x1b\n", "")
    status, out, err = run("9", "--most", "4")
    assert (status, out) == (2, "") and err.endswith("root: error: --most is below the number\n")
