"""Released files: fetched from a local server, resumed, and checked for keys and shapes."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from gdown.download import GoogleDriveFileToDownload

import wsis.download
from wsis import released
from wsis.cli.main import program
from wsis.download import split_file_id

LABELS = json.dumps({"images": [{"id": 1}], "annotations": [], "categories": []}).encode()


@pytest.fixture
def server():
    """Serves `server.files[name]`; cuts the first answer after `server.cut` bytes; logs ranges."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = self.server.files.get(self.path.strip("/"))
            if body is None:
                self.send_error(404)
                return
            start = int(self.headers.get("Range", "bytes=0-")[6:].split("-")[0])
            self.server.starts.append(start)
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body) - start))
            self.send_header("Content-Disposition", 'attachment; filename="file"')
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.end_headers()
            cut, self.server.cut = self.server.cut, None
            self.wfile.write(body[start:cut])
            self.close_connection = True

        def log_message(self, *arguments):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.files, http.starts, http.cut = {}, [], None
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield http
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def fetch(server, tmp_path):
    def run(*kinds):
        url = f"http://127.0.0.1:{server.server_port}/"
        words = ["--subset", "10p", "--output", str(tmp_path), "--base-url", url]
        return program("download", [*words, "--what", *kinds])

    return run


def file_id(kind):
    return released.read_releases()["10p"].ids[kind]


def synthetic(kind, tmp_path, **changes):
    """A checkpoint with the released keys and shapes; one stored number a tensor keeps it small."""
    shapes = released.expected_shapes(kind) | changes
    state = {key: torch.zeros(()).expand(shape) for key, shape in shapes.items() if shape != "gone"}
    path = tmp_path / "synthetic.pth"
    content = {"model_state" if kind == "maskrefinenet" else "model": state}
    torch.save({**content, "best_AP": np.float64(0.31)}, path)  # as the reference stores it
    return path.read_bytes()


def test_the_table_has_every_subset_and_file():
    table = released.read_releases()
    assert list(table) == ["1p", "2p", "5p", "10p", "20p", "30p", "40p", "50p"]
    assert all(len(ident) == 33 for row in table.values() for ident in row.ids.values())
    assert table["5p"].test_dev_ap == 33.7


@pytest.mark.parametrize("kind", ["teacher", "student", "maskrefinenet"])
def test_a_checkpoint_with_the_released_keys_is_accepted(server, fetch, tmp_path, kind, capsys):
    server.files[file_id(kind)] = synthetic(kind, tmp_path)
    assert fetch(kind) == 0
    assert released.released_path(tmp_path, "10p", kind).exists()
    assert "every key and shape" in capsys.readouterr().out
    requests = len(server.starts)
    assert fetch(kind) == 0 and len(server.starts) == requests
    assert "already there" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["teacher", "maskrefinenet"])
def test_prefixes_of_distributed_training_are_accepted(tmp_path, kind):
    shapes = released.expected_shapes(kind)
    state = {f"module.{key}": torch.zeros(()).expand(shape) for key, shape in shapes.items()}
    path = tmp_path / "prefixed.pth"
    torch.save({"model_state" if kind == "maskrefinenet" else "model": state}, path)
    assert released.verify(path, kind).startswith(f"{len(shapes)} tensors")


def test_differing_keys_are_named_and_the_file_is_not_used(server, fetch, tmp_path, capsys):
    changes = {"head.weight": (3, 64, 1, 1), "head.bias": "gone", "extra.weight": (1,)}
    server.files[file_id("maskrefinenet")] = synthetic("maskrefinenet", tmp_path, **changes)
    assert fetch("maskrefinenet") == 1
    message = capsys.readouterr().err
    for part in ("1 missing (head.bias)", "1 unexpected (extra.weight)", "(head.weight)"):
        assert part in message
    assert not released.released_path(tmp_path, "10p", "maskrefinenet").exists()
    assert (tmp_path / "10p" / "maskrefinenet.pth.broken").exists()


def test_an_interrupted_download_goes_on(server, fetch, tmp_path, capsys):
    body = LABELS + b" " * 3_000_000
    server.files[file_id("pseudo_labels")], server.cut = body, 2_000_000
    assert fetch("pseudo_labels") == 1
    assert "remedy" in capsys.readouterr().err
    assert fetch("pseudo_labels") == 0
    assert 0 < server.starts[-1] <= 2_000_000
    assert (tmp_path / "10p" / "pseudo_labels.json").read_bytes() == body


def test_the_split_is_two_files_under_their_names(server, fetch, tmp_path):
    for kind in ("s", "w"):
        server.files[f"instances_train2017_10p_{kind}.json"] = LABELS
    assert fetch("split") == 0
    for kind in ("s", "w"):
        path = released.released_path(tmp_path, "10p", f"split_{kind}")
        assert path.name == f"instances_train2017_10p_{kind}.json" and path.read_bytes() == LABELS


def test_a_file_of_the_split_is_looked_up_in_its_folder(monkeypatch):
    listed = [
        GoogleDriveFileToDownload(id=f"id_{subset}", path=f"sub/{name}", local_path=f"x/{name}")
        for subset in ("5p", "10p")
        for name in [f"instances_train2017_{subset}_s.json"]
    ]
    monkeypatch.setattr(wsis.download.gdown, "download_folder", lambda **options: listed)
    assert split_file_id("instances_train2017_10p_s.json") == "id_10p"
    with pytest.raises(OSError, match="has no instances_train2017_40p_s.json"):
        split_file_id("instances_train2017_40p_s.json")


@pytest.mark.parametrize("body", [b"<html>quota exceeded</html>", b"{}"])
@pytest.mark.parametrize("kind", ["pseudo_labels", "maskrefinenet"])
def test_another_file_is_refused(server, fetch, capsys, kind, body):
    server.files[file_id(kind)] = body
    assert fetch(kind) == 1
    assert released.FILE_NAMES[kind] in capsys.readouterr().err


def test_a_missing_file_is_reported_and_the_others_are_fetched(server, fetch, tmp_path, capsys):
    server.files[file_id("pseudo_labels")] = LABELS
    assert fetch("teacher", "pseudo_labels") == 1
    assert (tmp_path / "10p" / "pseudo_labels.json").exists()
    assert file_id("teacher") in capsys.readouterr().err
