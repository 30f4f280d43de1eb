"""The recipes of docs/reach.md, by their very text, in a session with a tunnel `office`."""

import contextlib
import json
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.forwards import gateways
from support.manager import ctl, installed, user_manager
from support.processes import wait_for
from support.programs import FAR, HOME, Place
from support.stage import Stage

pytestmark = [pytest.mark.long, pytest.mark.distribution]

PAGE = (Path(__file__).parents[2] / "docs/reach.md").read_text()


def block(start: str) -> str:
    """The code block, of any language, whose text begins so."""
    (found,) = re.findall(rf"^```\w+\n({re.escape(start)}.*?)^```$", PAGE, re.M | re.S)
    return str(found)


@pytest.fixture(scope="module")
def session(
    stage: Stage, bus_program: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    with user_manager(bus_program) as manager, installed(manager):
        made = Place(tmp_path_factory.mktemp("place"), Path(stage.unpacked))
        _fill(made.directory)
        yield made
        made.close()


@pytest.fixture
def place(session: Place) -> Iterator[Place]:
    session.clear()
    yield session
    with contextlib.suppress(AssertionError):  # not every test brings it up
        ctl("down", "office")
    assert gateways() == set()


@pytest.fixture
def up(place: Place) -> Place:
    """The tunnel is up, with a proxy where the page has it."""
    ctl("up", "--proxy=1080", "office")
    return place


def _fill(directory: Path) -> None:
    """What the web server of intranet.example serves."""
    (directory / "index.html").write_text("welcome")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-C"]
    source = directory / "source"
    for command in (
        ["git", "init", "--quiet", str(source)],
        [*git, str(source), "commit", "--quiet", "--allow-empty", "--message=first"],
        ["git", "clone", "--quiet", "--bare", str(source), str(directory / "project.git")],
        ["git", "-C", str(directory / "project.git"), "update-server-info"],
    ):
        subprocess.run(command, check=True)
    simple = directory / "simple/project"
    simple.mkdir(parents=True)
    wheel = "project-1.0-py3-none-any.whl"
    (simple / "index.html").write_text(f'<a href="{wheel}">{wheel}</a>')
    info = "project-1.0.dist-info"
    with zipfile.ZipFile(simple / wheel, "w") as file:
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: project\nVersion: 1.0\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")
    (directory / "debian").mkdir()
    (directory / "debian/Packages").write_text("")


def run(place: Place, commands: str) -> str:
    done = place.run(f"set -euo pipefail; {commands}")
    assert done.returncode == 0, f"{commands}\n{done.stdout}{done.stderr}{place.log()}"
    return done.stdout


def test_proxy_and_forwards(place: Place) -> None:
    shown = run(place, block("wg4netnsctl up office"))
    assert "127.0.0.1:1080 -> proxy\n" in shown
    assert "127.0.0.1:8080 -> intranet.example:80\n" in shown
    (left,) = re.findall(r"^\d+ +(\w+) .*\n\Z", ctl("forwards", "office"), re.M)
    assert left == "remote"


def test_git_curl_and_pip(up: Place) -> None:
    shown = run(up, block("git -c http.proxy"))
    assert "welcome" in shown
    assert (up.work / "project/.git").is_dir()
    assert (up.work / "project-1.0-py3-none-any.whl").is_file()


@pytest.fixture
def ssh_config() -> Iterator[None]:
    config = HOME / ".ssh/config"
    before = config.read_text()
    config.write_text(f"{before}\n{block('Host intranet.example')}")
    yield
    config.write_text(before)


def test_ssh_and_git_over_it(up: Place, ssh_config: None) -> None:
    assert "10.236.1.2" in run(up, "ssh intranet.example 'echo $SSH_CONNECTION'")
    run(up, "git clone ssh://intranet.example/~/project.git")
    assert (up.work / "project/.git").is_dir()


def test_apt(up: Place) -> None:
    lines = up.work / "sources.list"
    lines.write_text("deb [trusted=yes] http://intranet.example/debian ./\n")
    for name in ("lists/partial", "cache/archives/partial"):
        (up.work / name).mkdir(parents=True)
    settings = {
        "Dir::Etc::SourceList": lines,
        "Dir::Etc::SourceParts": "-",
        "Dir::State::Lists": up.work / "lists",
        "Dir::Cache": up.work / "cache",
        "Debug::NoLocking": "1",
    }
    own = "".join(f" -o {name}={value}" for name, value in settings.items())
    shown = run(up, block("wg4netnsctl proxy --listen").rstrip("\n") + own)
    assert "http://intranet.example/debian" in shown
    assert any("intranet.example" in path.name for path in (up.work / "lists").iterdir())


def test_a_database_client(up: Place) -> None:
    """The page's forward, with a web server as the database and curl as its client."""
    up.spawn(
        "wg4netnsctl", "exec", "far", "--", "python3", "-m", "http.server", "--bind", FAR, "5432"
    )
    wait_for(lambda: ctl("exec", "far", "--", "ss", "-Hltn", "sport = :5432"), "it listens")
    forward, _ = block("wg4netnsctl forward office").splitlines()
    path = '"$XDG_RUNTIME_DIR/.s.PGSQL.5432"'
    shown = run(up, f"{forward}; curl --silent --fail --unix-socket {path} http://db/")
    assert "welcome" in shown


def test_systemd_socket_proxyd(up: Place) -> None:
    command = block("systemd-socket-activate").replace("\\\n", " ").strip()
    request = "until curl --silent --fail --max-time 10 http://127.0.0.1:8080/; do sleep 0.1; done"
    assert "welcome" in run(up, f"timeout 20 {command} & {request}; kill $!")


def test_forwards_of_a_unit(place: Place) -> None:
    drop_in = HOME / ".config/systemd/user/wg4netns@office.service.d/forwards.conf"
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text(block("# systemctl --user edit wg4netns@office"))
    try:
        run(place, "systemctl --user daemon-reload; systemctl --user start wg4netns@office")
        kinds = [each["kind"] for each in json.loads(ctl("forwards", "--json", "office"))]
        assert kinds == ["proxy", "remote"]
        run(place, "curl --silent --fail --proxy socks5h://127.0.0.1:1080 http://intranet.example/")
    finally:
        run(place, "systemctl --user stop wg4netns@office")
        shutil.rmtree(drop_in.parent)
        run(place, "systemctl --user daemon-reload")


def browser(program: str) -> pytest.MarkDecorator:
    """Browsers are large, so that few runs have them."""
    installed = bool(shutil.which(program))
    return pytest.mark.skipif(not installed, reason="scripts/test --long installs browsers")


@browser("chromium")
def test_chromium(up: Place) -> None:
    command = block("chromium --proxy-server").strip().replace("$HOME/office", "own")
    headless = command.replace("chromium ", "chromium --headless --dump-dom ", 1)
    assert "welcome" in run(up, headless)


@browser("firefox-esr")
def test_firefox(up: Place) -> None:
    (up.work / "own/user.js").write_text(block("user_pref"))
    asked = "http://intranet.example/by-firefox"
    run(up, f"firefox-esr --headless --profile own --screenshot {up.work}/page.png {asked}")
    assert "GET /by-firefox HTTP/1.1" in up.log()
