"""The endpoints of the explorer's page, without a browser. Run: pytest tests/web/test_explorer.py"""

from __future__ import annotations

import base64
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from infogan_ray.cli.main import DONE, FAILED, USAGE, main
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.load_model import load
from infogan_ray.web import inference
from infogan_ray.web.explorer.app import make_app
from infogan_ray.web.explorer.auth import COOKIE
from infogan_ray.web.explorer.model_catalog import ModelCatalog
from infogan_ray.web.inference import MAX_BYTES
from infogan_ray.web.reports.search import write_search_report
from tests.conftest import tiny_images
from tests.servers import Proxy
from tests.web.test_search_report import make_search

TOKEN = "a-token-for-this-test"
LAST = "step_00000006"


@pytest.fixture
def store(finished: Path, tmp_path: Path) -> Path:
    """A folder with a run, a model folder, and another folder."""
    shutil.copytree(finished, tmp_path / "store" / "tiny")
    shutil.copytree(finished / "model", tmp_path / "store" / "pulled")
    (tmp_path / "store" / "notes").mkdir()
    return tmp_path / "store"


@pytest.fixture
def bars(tmp_path: Path) -> Path:
    images, labels = tiny_images()
    np.savez(tmp_path / "bars.npz", images=images, labels=labels)
    return tmp_path / "bars.npz"


def client_of(path: str | Path, token: str | None = None, data: Path | None = None) -> TestClient:
    catalog = ModelCatalog(open_storage(path), None if data is None else str(data))
    return TestClient(make_app(catalog, token), base_url="http://127.0.0.1:8710", follow_redirects=False)


@pytest.fixture
def client(store: Path, bars: Path) -> TestClient:
    return client_of(store, data=bars)


def cells(content: bytes, columns: int, size: int = 16) -> np.ndarray:
    """The images (N, size, size) of a grid with ``columns`` columns."""
    picture = np.asarray(Image.open(io.BytesIO(content)).convert("L"))
    rows = picture.shape[0] // size
    return picture.reshape(rows, size, columns, size).swapaxes(1, 2).reshape(rows * columns, size, size).copy()


def from_data_url(address: str) -> bytes:
    assert address.startswith("data:image/png;base64,")
    return base64.b64decode(address.partition(",")[2])


def test_the_library_lists_runs_searches_and_models_with_their_pictures(store: Path, client: TestClient) -> None:
    found = client.get("/api/library").json()
    rows = {row["id"]: row for row in found["rows"]}
    assert set(rows) == {"tiny", "pulled"} and found["left_out"] == 0
    assert rows["tiny"]["state"] == "finished" and rows["tiny"]["step"] == 6
    assert any("bound" in text for text in rows["tiny"]["measured"])
    picture = client.get("/api/picture", params={"id": "tiny", "step": rows["tiny"]["picture"]})
    assert picture.headers["content-type"] == "image/png"
    assert picture.content == (store / "tiny" / "samples" / "step_00000006.png").read_bytes()
    assert client.get("/api/picture", params={"id": "pulled"}).content == (store / "pulled/samples.png").read_bytes()
    traversal = client.get("/api/picture", params={"id": "tiny", "step": 3, "code": "cat0"}).content
    assert traversal == (store / "tiny" / "traversals" / "step_00000003_cat0.png").read_bytes()


def test_the_library_shows_later_changes(store: Path, client: TestClient) -> None:
    assert client.get("/api/library").json()["rows"][0]["state"] == "finished"
    RunDirectory(open_storage(store / "tiny")).set_status("running", 7, stored=6)
    rows = {row["id"]: row for row in client.get("/api/library").json()["rows"]}
    assert rows["tiny"]["state"] == "running" and rows["tiny"]["step"] == 7


def test_a_search_lists_its_trials_and_each_trial_opens(tmp_path: Path, finished: Path) -> None:
    search = make_search(
        tmp_path / "store", [{"objective.lambda_categorical": 0.5}, {"objective.lambda_categorical": 2.0}]
    )
    write_search_report(search)
    shutil.copytree(finished, tmp_path / "store" / search.name / "trials" / "trial_0000", dirs_exist_ok=True)
    for root, prefix in ((tmp_path / "store", f"{search.name}/"), (tmp_path / "store" / search.name, "")):
        client = client_of(root)
        if prefix:
            [row] = client.get("/api/library").json()["rows"]
            assert (row["id"], row["kind"], row["report"]) == (search.name, "search", True)
        trials = client.get("/api/library", params={"id": search.name if prefix else ""}).json()
        own = f"{prefix}trials/trial_0000"
        assert own in [row["id"] for row in trials["rows"]] and all("values" in row for row in trials["rows"])
        assert client.get("/api/model", params={"id": own}).json()["best"]
        report = client.get("/report", params={"id": trials["search"]})
        assert report.content == (tmp_path / "store" / search.name / "report.html").read_bytes()
        assert report.headers["content-security-policy"].startswith("sandbox allow-scripts;")


def test_a_model_is_described_with_codes_bounds_and_checkpoints(client: TestClient) -> None:
    about = client.get("/api/model", params={"id": "tiny"}).json()
    assert [code["code"] for code in about["codes"]] == ["cat0", "uniform0"]
    assert about["codes"][0]["choices"] == [0, 1, 2] and about["codes"][1]["reach"] == [-2, 2]
    assert about["codes"][1]["inside"] == [-1, 1] and about["size"] == 16
    assert [checkpoint["step"] for checkpoint in about["checkpoints"]] == [3, 6] and about["pictures"] == [3, 6]
    assert "mi/cat0" in about["checkpoints"][0]["metrics"] and about["best"] in ("step_00000003", LAST)
    pulled = client.get("/api/model", params={"id": "pulled"}).json()
    assert pulled["kind"] == "model" and len(pulled["checkpoints"]) == 1 and pulled["best"] == ""


def test_a_grid_equals_the_output_of_the_shown_command(store: Path, client: TestClient, tmp_path: Path) -> None:
    body = {"id": "tiny", "checkpoint": LAST, "codes": {"cat0": 2, "uniform0": 0.5}, "seed": 7}
    grid = client.post("/api/grid", json=body)
    assert grid.headers["content-type"] == "image/png"
    path = client.get("/api/model", params={"id": "tiny"}).json()["checkpoints"][-1]["path"]
    command = f"sample {path} -n 64 --set cat0=2 uniform0=0.5 --seed 7 -o {tmp_path}/a.npz"
    assert main(shlex.split(command)) == DONE
    assert np.array_equal(cells(grid.content, 8), np.load(tmp_path / "a.npz")["images"][..., 0])
    other = client.post("/api/grid", json={**body, "seed": 8}).content
    assert other != grid.content and client.post("/api/grid", json=body).content == grid.content


def test_noise_stays_the_same_when_codes_change() -> None:
    """'z locked': only the code of the chosen image changes."""
    model = load_spec()
    first = inference.latents_at(model, inference.Point(codes={"uniform0": 0.0}, seed=3, index=11))
    second = inference.latents_at(model, inference.Point(codes={"uniform0": 1.0}, seed=3, index=11))
    assert (first != second).sum() == 1
    assert torch.equal(first[0], model.latents(64, {"uniform0": 0.0}, 3)[11])


def load_spec() -> inference.InfoGAN:
    from infogan_ray.models.infogan import InfoGAN
    from tests.conftest import tiny_config

    spec = tiny_config().model_spec(16, 1)
    return InfoGAN(spec, *spec.build(), open_storage("none"))


def test_strips_change_one_code_of_the_chosen_image(store: Path, client: TestClient) -> None:
    at = {"codes": {"uniform0": 0.25}, "seed": 5, "index": 9}
    found = client.post("/api/strips", json={"id": "tiny", "checkpoint": LAST, "at": at}).json()
    grid = client.post("/api/grid", json={"id": "tiny", "checkpoint": LAST, "codes": at["codes"], "seed": 5}).content
    assert np.array_equal(cells(from_data_url(found["picture"]), 1)[0], cells(grid, 8)[9])
    assert found["at"]["uniform0"] == 0.25 and found["at"]["cat0"] in (0, 1, 2)
    strips = {strip["code"]: strip for strip in found["strips"]}
    assert strips["cat0"]["values"] == [0, 1, 2] and strips["uniform0"]["values"][0] == -2
    own = cells(from_data_url(strips["cat0"]["picture"]), 3)[int(found["at"]["cat0"])]
    assert np.array_equal(own, cells(grid, 8)[9]), "the cell of the current value is the chosen image"
    model = load(store / "tiny" / "checkpoints" / LAST)
    changed = model.generate(model.latents(64, {**at["codes"], "cat0": 1}, 5)[9:10])[0, 0].numpy()
    assert np.abs(cells(from_data_url(strips["cat0"]["picture"]), 3)[1].astype(int) - changed).max() <= 1


def test_a_walk_starts_and_ends_at_its_points(client: TestClient) -> None:
    start, end = {"codes": {"cat0": 0, "uniform0": -1}, "seed": 1}, {"codes": {"cat0": 2}, "seed": 2, "index": 5}
    body = {"id": "tiny", "checkpoint": LAST, "walk": {"start": start, "end": end, "columns": 5}}
    images = cells(client.post("/api/walk", json=body).content, 5)
    for place, at in ((0, start), (-1, end)):
        strips = client.post("/api/strips", json={"id": "tiny", "checkpoint": LAST, "at": at}).json()
        assert np.abs(images[place].astype(int) - cells(from_data_url(strips["picture"]), 1)[0]).max() <= 1
    assert not np.array_equal(images[2], images[0]) and not np.array_equal(images[2], images[-1])


def test_a_real_image_is_encoded_and_reconstructed(store: Path, client: TestClient, bars: Path) -> None:
    offered = client.get("/api/real", params={"id": "tiny", "checkpoint": LAST, "seed": 1}).json()
    index = offered["indices"][3]
    answer = client.post("/api/pick", json={"id": "tiny", "checkpoint": LAST, "index": index, "seed": 4}).json()
    assert answer["label"] == offered["labels"][3]
    original = cells(from_data_url(answer["picture"]), 1)
    assert np.array_equal(original[0], cells(from_data_url(offered["picture"]), len(offered["indices"]))[3])
    model = load(store / "tiny" / "checkpoints" / LAST)
    expected = model.encode(torch.from_numpy(original).unsqueeze(1))
    assert answer["reading"]["cat0"] == expected["cat0"][0] and answer["codes"]["cat0"] == answer["reading"]["cat0"]
    assert answer["reading"]["uniform0_std"] == pytest.approx(float(expected["uniform0_std"][0]))
    [best, *_], [mean] = answer["rows"]["cat0"], answer["rows"]["uniform0"]
    assert best["label"] == f" = {expected['cat0'][0]}" and best["words"].endswith("%") and "±" in mean["words"]
    again = model.sample(8, answer["codes"], seed=4)[:, 0].numpy()
    assert np.array_equal(cells(from_data_url(answer["reconstructions"]), 8), again)
    buffer = io.BytesIO()
    Image.fromarray(original[0]).convert("RGB").resize((48, 32)).save(buffer, "JPEG")
    sent = client.post("/api/encode", params={"id": "tiny", "checkpoint": LAST, "seed": 4}, content=buffer.getvalue())
    assert set(sent.json()["codes"]) == {"cat0", "uniform0"}


def test_a_name_is_stored_and_used_at_once(store: Path, client: TestClient) -> None:
    assert client.post("/api/names", json={"id": "tiny", "names": {"uniform0": "slant"}}).json() == {
        "names": {"uniform0": "slant"}
    }
    assert client.get("/api/model", params={"id": "tiny"}).json()["codes"][1]["name"] == "slant"
    assert load(store / "tiny").names == {"uniform0": "slant"}
    refused = client.post("/api/names", json={"id": "tiny", "names": {"uniform0": "cat0"}})
    assert refused.status_code == 400 and "give another" in refused.json()["error"]


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/api/grid", b"{", 400, "the body is not JSON"),
        ("/api/grid", {"id": "nobody", "checkpoint": LAST}, 404, "nobody"),
        ("/api/grid", {"id": "tiny", "checkpoint": "step_00000009"}, 404, "step_00000009"),
        ("/api/grid", {"id": "tiny", "checkpoint": "../../x"}, 404, "is not a checkpoint"),
        ("/api/grid", {"id": "../store/tiny", "checkpoint": LAST}, 404, "is not a model, run or search here"),
        ("/api/grid", {"id": "/etc", "checkpoint": LAST}, 404, "is not a model, run or search here"),
        ("/api/grid", {"id": "tiny", "checkpoint": LAST, "codes": {"cat0": 3}}, 400, "valid are the categories 0 to 2"),
        ("/api/grid", {"id": "tiny", "checkpoint": LAST, "seed": -1}, 400, "seed is -1"),
        ("/api/strips", {"id": "tiny", "checkpoint": LAST, "columns": 9999}, 400, "columns is 9999"),
        ("/api/strips", {"id": "tiny", "checkpoint": LAST, "at": {"index": 64}}, 400, "at.index is 64"),
        ("/api/pick", {"id": "tiny", "checkpoint": LAST, "index": 10**9}, 400, "there are"),
        ("/api/encode?id=tiny&checkpoint=step_00000006", b"no image", 400, "this is not an image"),
        ("/api/encode?id=tiny&checkpoint=step_00000006", b"x" * (MAX_BYTES + 1), 413, "too large"),
        ("/api/grid", {"id": "pulled", "checkpoint": LAST}, 404, "pulled"),
        ("/api/grid", {"id": "tiny"}, 404, "name one of its checkpoints"),
        ("/api/names", {"id": "tiny", "names": {"uniform7": "slant"}}, 400, "this model has cat0, uniform0"),
        ("/api/nothing", {}, 404, "/api/nothing"),
    ],
)  # fmt: skip
def test_bad_requests_are_refused_in_one_line(
    client: TestClient, path: str, body: bytes | dict, status: int, message: str
) -> None:
    answer = client.post(path, content=body if isinstance(body, bytes) else json.dumps(body))
    assert answer.status_code == status and message in answer.json()["error"]
    assert len(answer.json()["error"].splitlines()) == 1


def test_a_malformed_number_is_refused_by_every_endpoint(client: TestClient) -> None:
    for path, name in (("/api/real", "seed"), ("/api/picture", "step")):
        answer = client.get(path, params={"id": "tiny", "checkpoint": LAST, name: "1e3"})
        assert answer.status_code == 400 and f"{name} is '1e3'" in answer.json()["error"]


def test_an_image_with_too_many_pixels_is_refused(client: TestClient) -> None:
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    assert len(buffer.getvalue()) < 1_000_000
    answer = client.post("/api/encode", params={"id": "tiny", "checkpoint": LAST}, content=buffer.getvalue())
    assert answer.status_code == 400 and "pixels" in answer.json()["error"]


def test_a_link_out_of_the_folder_is_not_followed(store: Path, client: TestClient, finished: Path) -> None:
    (store / "link").symlink_to(finished)
    assert client.get("/api/model", params={"id": "link"}).status_code == 404
    assert "link" not in [row["id"] for row in client.get("/api/library").json()["rows"]]


def test_a_broken_checkpoint_is_reported_and_the_others_open(store: Path, client: TestClient) -> None:
    path = store / "tiny" / "checkpoints" / LAST / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    broken = client.post("/api/grid", json={"id": "tiny", "checkpoint": LAST})
    assert broken.status_code == 502 and "SHA-256 differs" in broken.json()["error"]
    assert client.post("/api/grid", json={"id": "tiny", "checkpoint": "step_00000003"}).status_code == 200


def test_requests_from_other_hosts_and_pages_are_refused(client: TestClient) -> None:
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 403
    assert client.get("/", headers={"Host": "localhost:1234"}).status_code == 200
    names = {"id": "tiny", "names": {"cat0": "digit"}}
    assert client.post("/api/names", json=names, headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.post("/api/names", json=names, headers={"Origin": "http://127.0.0.1:8710"}).status_code == 200
    page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"] and "http" not in page.text.replace(
        "http-equiv", ""
    )


def test_a_token_is_required_if_it_is_set(store: Path) -> None:
    client = client_of(store, TOKEN)
    for path in ("/", "/api/library", "/static/main.js", "/report?id=tiny", "/?token=wrong"):
        assert client.get(path, headers={"Host": "any.example"}).status_code == 401
    assert client.post(f"/api/names?token={TOKEN}", json={}).status_code == 401
    redirect = client.get(f"/?token={TOKEN}&x=1")
    assert redirect.status_code == 303 and redirect.headers["location"] == "/?x=1"
    assert (
        "httponly" in redirect.headers["set-cookie"].lower()
        and "samesite=strict" in redirect.headers["set-cookie"].lower()
    )
    assert client.cookies.get(COOKIE) == TOKEN and client.get("/").status_code == 200
    assert client_of(store, TOKEN).get("/", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_every_file_of_the_page_exists_and_contacts_no_other_machine(client: TestClient) -> None:
    import infogan_ray.web.explorer

    parts = sorted((Path(infogan_ray.web.explorer.__path__[0]) / "static").iterdir())
    assert {"index.html", "explorer.css", "main.js"} <= {part.name for part in parts}
    for part in parts:
        answer = client.get(f"/static/{part.name}")
        assert answer.status_code == 200 and answer.headers["x-content-type-options"] == "nosniff"
        assert "://" not in part.read_text().replace("http://www.w3.org/2000/svg", ""), part
    assert client.get("/static/..%2Fapp.py").status_code == 404


def test_a_bucket_is_explored_like_a_folder(finished: Path, proxy: Proxy) -> None:
    root = open_storage(proxy.uri("explored"))
    for path in finished.rglob("*"):
        if path.is_file():
            folder = root / "tiny"
            for part in path.relative_to(finished).parts[:-1]:
                folder = folder / part
            folder.write(path.name, path.read_bytes())
    client = client_of(root.uri)
    [row] = client.get("/api/library").json()["rows"]
    assert row["id"] == "tiny" and client.get("/api/picture", params={"id": "tiny", "step": row["picture"]}).content
    about = client.get("/api/model", params={"id": "tiny"}).json()
    assert about["checkpoints"][-1]["path"].startswith("'s3://")
    assert client.post("/api/grid", json={"id": "tiny", "checkpoint": LAST}).status_code == 200


# The command ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(store: Path) -> Iterator[str]:
    """The address that ``infogan explore STORE`` prints."""
    command = [sys.executable, "-m", "infogan_ray", "explore", str(store), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith(f"explorer of {store}: http://127.0.0.1:")
        yield line.split()[-1]
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_the_command_prints_a_working_address_and_ends_with_ctrl_c(served: str) -> None:
    with urllib.request.urlopen(f"{served}api/root", timeout=20) as answer:
        assert json.load(answer)["kind"] == "storage"


def test_a_public_address_requires_a_token(store: Path) -> None:
    command = [sys.executable, "-m", "infogan_ray", "explore", str(store), "--port", "0", "--host", "0.0.0.0"]
    environment = {name: value for name, value in os.environ.items() if name != "INFOGAN_TOKEN"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        port, token = address.partition("/?token=")[0].rpartition(":")[2], address.partition("/?token=")[2]
        assert len(token) >= 32
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20)
        request = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"Authorization": f"Bearer {token}"})
        assert urllib.request.urlopen(request, timeout=20).status == 200
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


def test_bad_arguments_of_explore_are_refused_in_one_line(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["explore", str(store / "nothing")]) == USAGE
    assert "nothing does not exist; name a model folder" in capsys.readouterr().err
    assert main(["explore", str(store), "--port", "70000"]) == USAGE
    assert "port is 70000; valid are 0 to 65535" in capsys.readouterr().err
    assert main(["explore", str(store), "--data", "no-such"]) == USAGE
    assert "data is 'no-such': neither a dataset" in capsys.readouterr().err
    monkeypatch.setenv("INFOGAN_TOKEN", "short")
    assert main(["explore", str(store)]) == USAGE
    monkeypatch.delenv("INFOGAN_TOKEN")
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["explore", str(store), "--port", str(taken.getsockname()[1])]) == FAILED
    assert "give another --port" in capsys.readouterr().err


def test_without_the_extra_the_command_names_the_install_command(store: Path) -> None:
    blocked = (
        "import sys; sys.modules['uvicorn'] = None\nfrom infogan_ray.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", blocked, "explore", str(store)], capture_output=True, text=True)
    assert done.returncode == FAILED and "pip install 'infogan-ray[serve]'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
