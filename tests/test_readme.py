"""The README and the manual say what is true: commands and settings exist and are all listed, links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from service.cli import app
from service.given import PREFIX
from service.settings import Settings

ROOT = Path(__file__).parent.parent
MANUAL = ROOT / "corpora" / "manual"
PAGES = sorted(MANUAL.glob("*.md"))
TEXTS = {page: page.read_text("utf-8") for page in [ROOT / "README.md", *PAGES]}


def test_the_two_commands_and_the_first_code_come_early() -> None:
    lines = TEXTS[ROOT / "README.md"].splitlines()
    first_code = next(number for number, line in enumerate(lines, 1) if line.startswith("    "))
    assert first_code <= 20
    assert any(line.startswith("    pip install . && tandem up") for line in lines[:20])
    assert any(line.startswith("    pip install '.[test]' && pytest") for line in lines)


def test_the_tree_names_files_that_exist() -> None:
    text = TEXTS[ROOT / "README.md"]
    folder = ""
    for line in text[text.index("## What is where") : text.index("`indexer` imports")].splitlines():
        if match := re.match(r"    (  )?([\w.]+/?(?:[\w/]+)?) ", line):
            name = match.group(2)
            if match.group(1) is None:
                folder = name
                assert (ROOT / name).exists(), name
            else:
                assert (ROOT / folder / name).exists(), name


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TEXTS[page]):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_commands_in_the_texts_exist(page: Path) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for line in re.findall(r"(?:^|`|\$ |&& )tandem ([a-z][^`\n#]*)", TEXTS[page], re.MULTILINE):
        words = line.split()
        assert words[0] in commands, f"{page.name}: tandem {line}"
        command = commands[words[0]]
        sub = getattr(command, "commands", None)
        if sub and len(words) > 1 and re.fullmatch(r"[a-z]+(-[a-z]+)*", words[1]):
            assert words[1] in sub, f"{page.name}: tandem {line}"
            command = sub[words[1]]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        for word in words:
            if re.fullmatch(r"--[a-z-]+", word):
                assert word in known, f"{page.name}: tandem {line}"


def test_every_setting_is_in_the_manual_with_its_default() -> None:
    table = TEXTS[MANUAL / "configuration.md"]
    for name, field in Settings.model_fields.items():
        row = next(
            (line for line in table.splitlines() if line.startswith(f"| `{name}` | `{PREFIX}{name.upper()}` |")), None
        )
        assert row, f"configuration.md has no row for {name}"
        assert field.description and field.description in row, f"configuration.md: description of {name}"
    rows = set(re.findall(r"^\| `(\w+)` \| `TANDEM_", table, re.MULTILINE))
    assert rows == set(Settings.model_fields)


def test_every_command_has_help_and_is_in_the_manual() -> None:
    text = TEXTS[MANUAL / "command-line.md"]
    runner = CliRunner()
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        assert f"tandem {name}" in text
        for path in ([name], *([name, sub] for sub in getattr(command, "commands", ()))):
            assert runner.invoke(app, [*path, "--help"]).exit_code == 0
            assert f"tandem {' '.join(path)}" in text, path


def test_tables_of_options_list_the_options_of_their_commands() -> None:
    listed: dict[str, set[str]] = {}
    for section in re.split(r"^## tandem ", TEXTS[MANUAL / "command-line.md"], flags=re.MULTILINE)[1:]:
        for options, meaning in re.findall(r"^\| (`-.*?) \| (.*) \|$", section, re.MULTILINE):
            # In a group of commands the meaning begins with "of `tandem pairs split`: ".
            named = re.match(r"of (`tandem [a-z -]+`(?: and )?)+", meaning)
            for command in re.findall(r"`tandem ([a-z -]+)`", named[0]) if named else [section.splitlines()[0]]:
                listed.setdefault(command, set()).update(re.findall(r"`(--?[a-z-]+)", options))
    assert len(listed) >= 10
    for path, options in listed.items():
        command = get_command(app)
        for word in path.split():
            command = command.commands[word]  # type: ignore[attr-defined]
        # The page says once that commands with results have --json.
        assert options | {"--json"} == {option for item in command.params for option in item.opts if option[0] == "-"}


def test_every_route_is_in_the_manual() -> None:
    script = """
from service.api import adapters, allowances, ask, documents, feedback, health, reindex, uploading
from service.api.openai import routes
routers = [ask.ask_router, documents.documents_router, health.health_router, reindex.reindex_router]
routers += [uploading.uploading_router, adapters.adapters_router]
routers += [allowances.allowances_router, feedback.feedback_router]
for router in (*routers, routes.openai_router):
    for route in router(None).routes:
        print(sorted(route.methods)[0], route.path)
"""
    routes = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    text = TEXTS[MANUAL / "http-api.md"]
    for route in routes.splitlines():
        method, path = route.split()
        assert re.search(re.escape(f"{method} {path.split('{')[0].rstrip('/')}"), text), route


def test_the_manual_has_its_pages() -> None:
    assert len(PAGES) >= 10
    for page in PAGES:
        assert TEXTS[page].startswith("# "), page.name


@pytest.mark.slow
def test_the_example_is_what_comes_out(server_url: str) -> None:
    text = TEXTS[ROOT / "README.md"]
    asked = re.findall(r'^    \$ tandem ask "(.+)"\n((?:    .*\n|\n(?=    \[))+)', text, re.MULTILINE)
    assert len(asked) == 2
    for question, shown in asked:
        command = [str(Path(sys.executable).with_name("tandem")), "ask", question, "--url", server_url]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert said.split() == shown.split()
