"""The report: what it shows, that it runs nothing that a file's name says, and the page in a real browser."""

import base64
import gzip
import html
import io
import json
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT, mood, needs_linux, words_of, write_nifti

from mood_submission.cli.view import server

pytestmark = pytest.mark.slow
pytest.importorskip("matplotlib", reason="matplotlib is not installed (requirements-dev.txt)")

HOSTILE = [
    "<img src=x onerror=alert(1)>.nii.gz",
    "quo\"te's & ümläut <script>.nii.gz",
    "dots..nii.gz",
    "{{ 7 * 7 }}.nii.gz",
]
AFFINE = np.array([[-2.0, 0, 0, 30], [0, 2.0, 0, -20], [0, 0, 4.0, -5], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def report(measured, blobs, tmp_path_factory):
    """A report of volumes with hostile names, made in one go with their predictions; its folder."""
    folder = tmp_path_factory.mktemp("report")
    for name, file in zip(HOSTILE, sorted(blobs.iterdir()) * 2):
        image = nib.load(file)
        write_nifti(folder / "in" / name, image.get_fdata(dtype=np.float32), AFFINE)
    run = mood(
        "predict --region brain --task pixel -i", folder / "in", "-o", folder / "out", "--weights", measured,
        "--slices 4 --restorations 1 --html", folder / "page",
    )  # fmt: skip
    assert run.returncode == 0 and "index.html" in run.stderr, run.stderr
    return folder


def test_the_page_holds_everything_and_runs_no_name(report):
    page = (report / "page" / "index.html").read_text()
    assert "<img src=x" not in page and "&lt;img src=x onerror=alert(1)&gt;.nii.gz" in page
    assert (
        "quo&#34;te&#39;s &amp; ümläut &lt;script&gt;.nii.gz" in page
        and "{{ 7 * 7 }}.nii.gz" in page
        and "49.nii.gz" not in page
    )
    assert page.count("as expected</figcaption>") >= 12  # three planes of each
    assert page.count("<section") == 4 and "http" not in page.split("<script>")[0].replace("http-equiv", "")
    assert sorted(p.name for p in (report / "page" / "data").iterdir()) == [f"{i}.js" for i in range(4)]
    assert (report / "page" / "NIIVUE.txt").exists() and (report / "page" / "findings" / "findings.json").exists()


def test_the_most_anomalous_comes_first(report):
    page = (report / "page" / "index.html").read_text()
    peaks = {name: float(nib.load(report / "out" / name).get_fdata().max()) for name in HOSTILE}
    first = min(peaks, key=lambda name: (-peaks[name], name))
    assert page.index('id="volume-0"') < page.index('id="volume-1"')
    assert (
        html.escape(first, quote=True).replace("&quot;", "&#34;").replace("&#x27;", "&#39;") in page.split("</li>")[0]
    )


def test_layers_lie_where_the_file_lies(report):
    """A voxel of the viewer's small volumes is at its place in the world, whatever the file's orientation."""
    text = (report / "page" / "data" / "0.js").read_text()
    layers = json.loads(text[text.index("=") + 1 :].rstrip().rstrip(";"))
    image = nib.Nifti1Image.from_stream(io.BytesIO(gzip.decompress(base64.b64decode(layers["volume"]))))
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S") and {"volume", "scores", "findings"} <= set(layers)
    corners = [image.affine @ [*corner, 1] for corner in ((0, 0, 0), np.array(image.shape) - 1)]
    file = nib.load(report / "in" / HOSTILE[0])
    wanted = [file.affine @ [27, 0, 0, 1], file.affine @ [0, 23, 11, 1]]
    assert np.allclose(corners, wanted)


def test_the_command_makes_the_same_page_of_files(report, measured, tmp_path):
    run = mood(
        "report -i", report / "in", "-p", report / "out", "-o", tmp_path, "--findings", report / "page" / "findings", "--weights", measured
    )  # fmt: skip
    assert run.returncode == 0 and "4 volumes" in run.stdout, run.stderr
    one, other = ((folder / "index.html").read_text().split("<footer>")[0] for folder in (report / "page", tmp_path))
    assert one.count("<img") == other.count("<img") and one.count("<tr data-place") == other.count("<tr data-place") > 0


def test_what_is_missing_is_told_in_one_line(report, tiny_weights, tmp_path):
    (tmp_path / "empty").mkdir()
    for words, told in (
        (["report -i", report / "in", "-p", tmp_path / "empty", "-o", tmp_path / "r"], "pixel scores"),
        (
            [
                "report -i",
                report / "in",
                "-p",
                report / "out",
                "-o",
                tmp_path / "r",
                "--findings",
                tmp_path / "empty",
            ],
            "findings.json",
        ),
        (["view", tmp_path / "empty"], "index.html"),
    ):
        run = mood(*words)
        assert run.returncode == 1 and run.stderr.count("\n") == 1 and told in run.stderr, run.stderr


def test_what_must_be_installed_is_told(report, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("matplotlib", "mood_submission.output.report"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run = mood("report -i", report / "in", "-p", report / "out", "-o", tmp_path)
    assert run.returncode == 1 and run.stderr.count("\n") == 1 and "mood-submission[report]" in run.stderr


def test_the_server_answers_only_who_knows_the_token(report):
    serving, address = server(report / "page", 0)
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    try:
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address) as answer:
            assert answer.status == 200 and answer.headers["Cache-Control"] == "no-store"
        base, token = address.rsplit("/", 2)[0], address.rsplit("/", 2)[1]
        for path in (
            "",
            "index.html",
            "wrong/index.html",
            f"{token}/data/",
            f"{token}/../../in/",
            f"{token}/%2e%2e/out/",
        ):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"{base}/{path}")
    finally:
        serving.shutdown()
        thread.join()
        serving.server_close()


@needs_linux
def test_ctrl_c_ends_the_server(report):
    command = [sys.executable, "-m", "mood_submission", *words_of("view", report / "page")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("http://127.0.0.1:")
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0 and "Traceback" not in process.stderr.read()


# --- in a real browser -----------------------------------------------------------------------------------------------

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = "--no-sandbox --disable-quic --use-gl=angle --use-angle=swiftshader --enable-unsafe-swiftshader --ignore-gpu-blocklist"


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (requirements-dev.txt)")
    if BROWSER is None:
        pytest.skip("no chromium is installed")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=BROWSER, args=FLAGS.split())
        yield launched
        launched.close()


def painted(page) -> np.ndarray:
    """What the viewer's canvas shows, (H, W, 3)."""
    from matplotlib import image

    shot = page.locator("#viewer-canvas").screenshot()
    return (image.imread(io.BytesIO(shot), format="png")[..., :3] * 255).astype(int)


@pytest.mark.parametrize("width", [360, 1600])
@pytest.mark.parametrize("scheme", ["file", "http"])
def test_the_page_works_in_a_browser(browser, report, width, scheme):
    serving, address = server(report / "page", 0)
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    page = browser.new_page(viewport={"width": width, "height": 800})
    errors, elsewhere = [], []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    here = (Path(report / "page").as_uri(), address.rsplit("/", 1)[0], "data:", "blob:")
    page.on("request", lambda request: elsewhere.append(request.url) if not request.url.startswith(here) else None)
    page.on("dialog", lambda shown: errors.append(f"a name was run: {shown.message}"))
    try:
        page.goto(f"{here[0]}/index.html" if scheme == "file" else address)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.click('button[data-view="0"] >> nth=0')
        page.wait_for_selector('dialog[data-ready="0"]', timeout=60_000)
        page.wait_for_timeout(1500)
        shown = painted(page)
        assert (shown.max(-1) > 60).mean() > 0.01  # the volume is drawn
        coloured = lambda picture: (picture.max(-1) - picture.min(-1) > 40).mean()  # noqa: E731
        page.evaluate("view.opts.crosshairWidth = 0")
        page.fill("#threshold", "0")
        page.fill("#opacity", "100")
        page.wait_for_timeout(1500)
        full = painted(page)
        page.fill("#opacity", "0")
        page.wait_for_timeout(1500)
        assert coloured(full) > coloured(painted(page)) + 0.01  # the overlay is drawn, and the slider takes it away
        before = page.evaluate("dialog.dataset.at")
        assert page.locator("#viewer-findings button").count() >= 1
        page.locator("#viewer-findings button").last.click()
        assert page.evaluate("dialog.dataset.at") is not None and (before is not None)
        page.keyboard.press("Escape")
        assert not page.evaluate("dialog.open")
        assert errors == [] and elsewhere == []
    finally:
        page.close()
        serving.shutdown()
        thread.join()
        serving.server_close()
