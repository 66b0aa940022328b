"""Files that attack, crash or mislead the loaders: each is refused by name, and the next file still parses."""

import gzip
import io
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from pathlib import Path

import pytest

from indexer.errors import TandemError
from indexer.loaders import Limits, Loader
from indexer.loaders.isolation import filter_steps

ROOT = Path(__file__).resolve().parents[1]
OASIS = "urn:oasis:names:tc:opendocument:xmlns"
ODT = f'xmlns:office="{OASIS}:office:1.0" xmlns:text="{OASIS}:text:1.0"'


@pytest.fixture(scope="module")
def loader():
    with Loader() as shared:
        yield shared


@pytest.fixture
def refuse(loader, tmp_path):
    """Parse a bad file: the error it raises, once the same loader has parsed a good file after it."""

    def refuse(name: str, content: bytes, using: Loader | None = None) -> TandemError:
        path, good = tmp_path / name, tmp_path / "good.txt"
        path.write_bytes(content)
        good.write_text("still here")
        with pytest.raises(TandemError) as caught:
            (using or loader).parse(path)
        assert [document.text for document in (using or loader).parse(good)] == ["still here"]
        assert name in caught.value.happened
        return caught.value

    return refuse


def pack(parts: dict[str, bytes | str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as container:
        for name, content in parts.items():
            container.writestr(name, content)
    return buffer.getvalue()


def odt(body: str, doctype: str = "") -> bytes:
    inner = f"<office:body><office:text>{body}</office:text></office:body>"
    return pack({"content.xml": f"{doctype}<office:c {ODT}>{inner}</office:c>"})


def slow_html() -> bytes:
    """An honest page that takes seconds to read: a table of 400,000 rows."""
    return ("<table>" + "<tr><td>word word</td><td>other</td></tr>" * 400_000 + "</table>").encode()


# --- content that is not what the name says


@pytest.mark.parametrize("content", [b"", b" \n\t\n", b"\xef\xbb\xbf\r\n", "\u200b\u2060".encode()])
@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.html", "a.csv"])
def test_a_file_without_text(refuse, name, content):
    assert "has no text" in refuse(name, content).happened


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"text\0with a NUL", "not text"),
        ("a.md", bytes(range(256)) * 20, "not text"),
        ("a.csv", gzip.compress(os.urandom(4000)), "not text"),
        ("a.json", b"{'a': 1}", "not JSON"),
        ("a.json", b"[" * 200_000, "not JSON"),
        ("a.txt.gz", b"not gzip", "gzip"),
        ("a.txt.gz", gzip.compress(b"words " * 500)[:-20], "too early"),
        ("a.txt.gz", gzip.compress(gzip.compress(b"words")), "not text"),
        ("a.eml", b"no headers here", "no mail headers"),
        ("a.mbox", b"Subject: x\n\ntext", "not a mailbox"),
        ("a.docx", b"PK\x03\x04 then garbage", "zip container"),
        ("a.docx", pack({"a.txt": "x"}), "no main document part"),
        ("a.xlsx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600, "password-protected"),
        ("a.odt", odt("<text:p>never closed"), "not well-formed"),
        ("a.epub", pack({"mimetype": "application/epub+zip"}), "META-INF/container.xml is missing"),
        ("a.pdf", b"%PDF-1.7\n" + bytes(range(256)) * 30, "not a complete PDF"),
        ("a.pdf", b"hello", "not a complete PDF"),
    ],
)
def test_a_file_that_is_not_what_its_name_says(refuse, name, content, said):
    error = refuse(name, content)
    assert said in error.happened
    assert error.do


def test_a_damaged_zip_part_is_named(refuse):
    intact = odt("<text:p>" + "many words " * 100 + "</text:p>")
    place = intact.index(b"content.xml") + 40
    assert "content.xml is damaged" in refuse("a.odt", intact[:place] + b"\xff" * 8 + intact[place + 8 :]).happened


def test_a_pdf_with_a_password_is_refused(refuse):
    # The standard security handler with an unknown user password (PDF 32000-1, section 7.6.3).
    secret = "<" + "41" * 32 + ">"
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [] /Count 0 >>",
        f"<< /Filter /Standard /V 1 /R 2 /P -4 /O {secret} /U {secret} >>",
    ]
    out, offsets = "%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    ids = "<" + "42" * 16 + ">"
    out += f"xref\n0 4\n0000000000 65535 f \n{table}trailer << /Size 4 /Root 1 0 R /Encrypt 3 0 R /ID [{ids}{ids}] >>\n"
    out += f"startxref\n{out.index('xref')}\n%%EOF"
    assert "password" in refuse("a.pdf", out.encode()).happened


# --- names and places


def test_names_that_are_refused_before_reading(loader, tmp_path):
    (tmp_path / "a.exe").write_bytes(b"MZ")
    (tmp_path / "folder.md").mkdir()
    os.mkfifo(tmp_path / "pipe.txt")
    for name, said in [("a.exe", "no format"), ("folder.md", "not a file"), ("pipe.txt", "not a file")]:
        with pytest.raises(TandemError, match=said):
            loader.parse(tmp_path / name)
    with pytest.raises(TandemError) as missing:
        loader.parse(tmp_path / "gone.md")
    assert missing.value.code == "not_found"


def test_a_name_that_is_not_unicode(loader, tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")
    Path(path).write_text("words and more words\nand a line")
    (document,) = loader.parse(path)
    assert document.title == "caf"
    document.title.encode()


# --- bombs


def test_a_large_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "big.txt"
    with path.open("wb") as stream:
        stream.truncate(3_000_000_000)  # sparse: it takes no space, and reading it would take gigabytes
    with Loader() as loader:
        started = time.monotonic()
        with pytest.raises(TandemError, match=r"3,000,000,000 bytes, 200,000,000 allowed") as caught:
            loader.parse(path)
        assert caught.value.code == "too_large"
        assert time.monotonic() - started < 1


def test_a_gzip_bomb(refuse):
    bomb = gzip.compress(b"\n" * 500_000_000, compresslevel=1)
    error = refuse("bomb.txt.gz", bomb)
    assert "inflates to more than 400,000,000 bytes" in error.happened
    assert error.code == "too_large"


def test_a_zip_bomb(refuse):
    bomb = odt("<text:p>" + "a" * 40_000_000 + "</text:p>")
    assert len(bomb) < 100_000
    error = refuse("bomb.odt", bomb)
    assert "inflates more than 200 times" in error.happened
    assert error.code == "too_large"


def test_a_zip_of_many_entries(refuse):
    assert "30,000 entries" in refuse("many.docx", pack({str(number): "" for number in range(30_000)})).happened


def test_a_zip_whose_parts_are_large_together(refuse):
    noise = os.urandom(600_000).hex()
    with Loader(Limits(inflated_bytes=1_000_000)) as small:
        error = refuse("large.odt", odt(f"<text:p>{noise}</text:p>"), small)
    assert "inflate to more than 1,000,000 bytes" in error.happened


def test_a_zip_that_lies_about_its_size(refuse):
    honest = odt("<text:p>" + os.urandom(100_000).hex() + "</text:p>")
    size = len(zipfile.ZipFile(io.BytesIO(honest)).read("content.xml"))
    lying = honest.replace(size.to_bytes(4, "little"), (100).to_bytes(4, "little"))
    assert lying != honest
    assert "is damaged" in refuse("liar.odt", lying).happened


@pytest.mark.parametrize(
    "doctype",
    [
        "<!DOCTYPE x ["
        + '<!ENTITY a0 "lol">'
        + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
        + "]>",
        '<!DOCTYPE x [<!ENTITY a9 SYSTEM "file:///etc/hostname">]>',
        '<!DOCTYPE x [<!ENTITY % p SYSTEM "http://127.0.0.1:9/x.dtd"> %p;]>',
    ],
)
def test_xml_entities(refuse, doctype):
    error = refuse("bomb.odt", odt("<text:p>&a9;</text:p>", doctype))
    assert "declares XML entities" in error.happened or "undefined entity" in error.happened


def test_elements_nested_without_end(refuse):
    deep = odt("<text:section>" * 20_000 + "<text:p>x</text:p>" + "</text:section>" * 20_000)
    assert "nested too deeply" in refuse("deep.odt", deep).happened


def test_deep_html_is_read_whole_or_refused(refuse, loader, tmp_path):
    path = tmp_path / "deep.html"
    path.write_text("<div>" * 200 + "kept" + "</div>" * 200)
    assert loader.parse(path)[0].text == "kept"
    endless = b"<p>before</p>" + b"<div>" * 30_000 + b"lost" + b"</div>" * 30_000
    assert "nested too deeply" in refuse("endless.html", endless).happened


def test_too_many_characters(refuse):
    with Loader(Limits(characters=1000)) as small:
        error = refuse("long.txt", b"word " * 300, small)
    assert "1,500 characters of text, 1,000 allowed" in error.happened
    assert error.code == "too_large"


# --- limits of the process


def test_a_memory_bomb(refuse):
    # Forty bytes of row make a list of 16,384 cells: the ratio of no zip guard.
    s = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    types = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006/relationships"

    def relations(kind: str, target: str) -> str:
        entry = f'<Relationship Id="r1" Type="{types}/{kind}" Target="{target}"/>'
        return f'<Relationships xmlns="{package}">{entry}</Relationships>'

    rows = "".join(f'<row><c r="XFD{number}"><v>{number * 7919}</v></c></row>' for number in range(1, 60_000))
    bomb = pack(
        {
            "_rels/.rels": relations("officeDocument", "xl/workbook.xml"),
            "xl/_rels/workbook.xml.rels": relations("worksheet", "s.xml"),
            "xl/workbook.xml": f'<workbook xmlns="{s}" xmlns:r="{types}"><sheet name="a" r:id="r1"/></workbook>',
            "xl/s.xml": f'<worksheet xmlns="{s}">{rows}</worksheet>',
        }
    )
    assert len(bomb) < 1_000_000
    with Loader(Limits(memory_bytes=600 << 20)) as small:
        error = refuse("bomb.xlsx", bomb, small)
    assert "needed more than 0.586 GiB of memory" in error.happened
    assert error.code == "too_large"


def test_a_file_that_takes_too_long(refuse):
    with Loader(Limits(wall_seconds=1.0)) as hasty:
        started = time.monotonic()
        error = refuse("slow.html", slow_html(), hasty)
        assert time.monotonic() - started < 6
    assert "took longer than 1 seconds" in error.happened
    assert error.code == "timeout"


def test_a_file_that_takes_too_much_processor_time(refuse):
    with Loader(Limits(cpu_seconds=1)) as frugal:
        error = refuse("slow.html", slow_html(), frugal)
    assert "used more than 1 seconds of processor time" in error.happened
    assert error.code == "timeout"


@pytest.mark.skipif(sys.platform != "linux", reason="reads the processor clock of another process")
def test_processor_time_is_counted_for_each_file(tmp_path):
    path = tmp_path / "a.html"
    path.write_bytes(slow_html()[:300_000] + b"</table>")
    with Loader(Limits(cpu_seconds=2)) as frugal:
        frugal.parse(path)
        assert frugal._child is not None
        first, clock = (
            frugal._child.pid,
            (~frugal._child.pid << 3) | 2,
        )  # the clock of that process (linux/posix-timers.h)
        while time.clock_gettime(clock) < 4:  # together over the limit, none alone
            assert len(frugal.parse(path)) == 1
        assert frugal._child.pid == first


def test_a_child_that_dies_in_the_middle_of_a_file(refuse):
    with Loader() as doomed:

        def kill() -> None:
            time.sleep(1.0)
            assert doomed._child is not None
            os.kill(doomed._child.pid, signal.SIGSEGV)

        killer = threading.Thread(target=kill)
        killer.start()
        error = refuse("slow.html", slow_html(), doomed)
        killer.join()
    assert "made its parser crash (SIGSEGV)" in error.happened


def test_a_child_that_died_while_idle_is_replaced(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("words")
    with Loader() as loader:
        loader.parse(path)
        assert loader._child is not None
        os.kill(loader._child.pid, signal.SIGKILL)
        loader._child.wait()
        assert loader.parse(path)[0].text == "words"


def test_threads_share_a_loader(loader, tmp_path):
    texts = [f"words of file {number}" for number in range(20)]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text)
    found: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: loader.parse(tmp_path / f"{n}.txt")[0].text}))
        for n in range(len(texts))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(len(texts))] == texts


def test_a_small_file_costs_two_milliseconds(loader, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("A few words.\n" * 50)
    loader.parse(path)

    def timed() -> float:
        started = time.perf_counter()
        loader.parse(path)
        return time.perf_counter() - started

    assert min(timed() for _ in range(20)) < 0.002


def confined(code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process that has given up the rights the loader's child gives up."""
    source = "from indexer.loaders.isolation import confine\nconfine(2 << 30)\n" + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('127.0.0.1', 9), timeout=1)",
        "import socket; socket.getaddrinfo('localhost', 80)",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.execv('/bin/true', ['true'])",
    ],
)
def test_the_child_reaches_nothing_outside(code):
    result = confined(code)
    assert result.returncode == 1
    assert "PermissionError" in result.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the system call filter is Linux's")
def test_native_code_cannot_open_a_socket():
    result = confined("import ctypes; print(ctypes.CDLL(None).socket(2, 1, 0)); open('/proc/self/stat').close()")
    assert (result.stdout.strip(), result.returncode) == ("-1", 0), result.stderr


@pytest.mark.parametrize(
    ("architecture", "number", "allowed"),
    [(1, 0, True), (1, 41, False), (1, 42, True), (1, 59, False), (1, 60, True), (2, 0, False), (1, 0x40000000, False)],
)
def test_the_system_call_filter(architecture, number, allowed):
    """Run the program as the kernel does (linux/filter.h): a call is refused by number, and whole by architecture."""
    steps, place, value = filter_steps(1, [41, 59]), 0, 0
    while True:
        opcode, if_true, if_false, operand = steps[place]
        place += 1
        if opcode == 0x06:
            break
        if opcode == 0x20:
            value = architecture if operand == 4 else number
        else:
            place += if_true if (value == operand if opcode == 0x15 else value >= operand) else if_false
    assert operand == (0x7FFF0000 if allowed else 0x00050001)


def test_the_child_writes_nothing(tmp_path):
    result = confined(f"open({str(tmp_path / 'x')!r}, 'w').write('a' * 100_000)")
    assert "File too large" in result.stderr


def test_the_child_sees_no_keys(monkeypatch, tmp_path):
    monkeypatch.setenv("TANDEM_ADMIN_KEY", "secret")
    (tmp_path / "a.txt").write_text("words")
    with Loader() as loader:
        loader.parse(tmp_path / "a.txt")
        assert loader._child is not None
        environment = Path(f"/proc/{loader._child.pid}/environ")
        if not environment.exists():
            pytest.skip("no /proc here")
        assert b"secret" not in environment.read_bytes()
        assert b"PYTHONPATH" in environment.read_bytes()


def test_a_library_in_the_working_folder_is_not_imported(monkeypatch, tmp_path):
    for module in ("lxml", "charset_normalizer", "defusedxml"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit('hijacked')")
    (tmp_path / "a.html").write_text("<p>words</p>")
    monkeypatch.chdir(tmp_path)
    with Loader() as loader:
        assert loader.parse("a.html")[0].text == "words"
