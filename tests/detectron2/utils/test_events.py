"""EventStorage keeps what was put; writers write each value once, smoothed where it is noisy."""

import json
import statistics

import pytest
import torch

from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
    has_event_storage,
)


def read_lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_innermost_storage_is_found():
    with pytest.raises(ValueError, match="with EventStorage"):
        get_event_storage()
    assert not has_event_storage()
    with EventStorage() as outer:
        with EventStorage(5) as inner:
            assert get_event_storage() is inner and inner.iter == inner.iteration == 5
        assert get_event_storage() is outer and has_event_storage()


def test_scalars_keep_history_and_latest():
    with EventStorage() as storage:
        for i in range(3):
            storage.put_scalar("a", torch.tensor([float(i)]))
            storage.put_scalars(b=2 * i, c=i, smoothing_hint=False)
            storage.step()
        assert storage.history("a").values() == [(0.0, 0), (1.0, 1), (2.0, 2)]
        assert storage.latest() == {"a": (2.0, 2), "b": (4.0, 2), "c": (2.0, 2)}
        assert storage.smoothing_hints() == {"a": True, "b": False, "c": False}
        assert set(storage.histories()) == {"a", "b", "c"}
        with pytest.raises(KeyError, match="'d'.*'a', 'b', 'c'"):
            storage.history("d")
        with pytest.raises(ValueError, match="'a'.*smoothing_hint"):
            storage.put_scalar("a", 1.0, smoothing_hint=False)
        storage.iter = 10.0
        assert storage.iter == 10


def test_name_scopes_prefix_and_end():
    with EventStorage() as storage:
        with pytest.raises(RuntimeError), storage.name_scope("eval/"):
            storage.put_scalar("ap", 1)
            raise RuntimeError
        storage.put_scalar("ap", 2)
        assert storage.latest() == {"eval/ap": (1.0, 0), "ap": (2.0, 0)}


def test_smoothing_is_the_median_over_a_window_of_iterations():
    values = [(7 * i) % 11 for i in range(30)]
    with EventStorage() as storage:
        for i, value in enumerate(values):
            storage.put_scalar("each", value)
            storage.put_scalar("last", value, smoothing_hint=False)
            if i % 3 == 0:
                storage.put_scalar("third", value)
            storage.step()
        smoothed = storage.latest_with_smoothing_hint(9)
        assert storage.count_samples("each", 9) == 9 and storage.count_samples("third", 9) == 3
    assert smoothed["each"] == (statistics.median(values[-9:]), 29)
    assert smoothed["third"] == (statistics.median(values[21:28:3]), 27)
    assert smoothed["last"] == (values[-1], 29)


def test_json_has_one_line_for_each_iteration_with_news(tmp_path):
    periods = {"every": 1, "third": 3, "fifth": 5}
    path = tmp_path / "metrics.json"
    with EventStorage() as storage:
        writer = JSONWriter(str(path))
        for now in range(12):
            for name, period in periods.items():
                if now % period == 0:
                    storage.put_scalar(name, now, smoothing_hint=False)
            if now % 4 == 3:
                writer.write()
                writer.write()  # there is nothing new
            storage.step()
        writer.close()
    news = {0: "fifth", 3: "every third", 5: "fifth", 6: "third", 7: "every"}
    news |= {9: "third", 10: "fifth", 11: "every"}
    assert read_lines(path) == [
        {"iteration": at} | dict.fromkeys(names.split(), float(at)) for at, names in news.items()
    ]


def test_json_of_a_resumed_run_is_appended(tmp_path):
    path = tmp_path / "metrics.json"
    for start in (0, 5):
        with EventStorage(start) as storage:
            writer = JSONWriter(str(path))
            storage.put_scalar("loss", start)
            writer.write()
            writer.close()
    assert [line["iteration"] for line in read_lines(path)] == [0, 5]


def test_tensorboard_gets_scalars_images_and_histograms(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with EventStorage() as storage:
        writer = TensorboardXWriter(str(tmp_path))
        storage.put_image("picture", torch.zeros(3, 4, 5, dtype=torch.uint8))
        storage.put_histogram("weights", torch.tensor([[0.0, 1.0], [1.0, 4.0]]), bins=4)
        for i in range(3):
            storage.put_scalar("loss", i, smoothing_hint=False)
            writer.write()
            storage.step()
        writer.close()
        assert storage._vis_data == [] and storage._histograms == []
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(0, 0.0), (1, 1.0), (2, 2.0)]
    (image,) = events.Images("picture")
    assert (image.width, image.height) == (5, 4)
    (histogram,) = (e.histogram_value for e in events.Histograms("weights"))
    assert (histogram.min, histogram.max, histogram.num, histogram.sum) == (0, 4, 4, 6)
    assert sum(histogram.bucket) == 4


def printed(caplog, printer: CommonMetricPrinter) -> str:
    caplog.clear()
    with caplog.at_level("INFO", logger="detectron2.utils.events"):
        printer.write()
    return " ".join(record.getMessage() for record in caplog.records)


@pytest.fixture
def logs_propagate(monkeypatch):
    """Let caplog see records even after some test has set up the package's logger."""
    import logging

    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)


def test_printer_shows_progress_only_with_a_known_end(caplog, logs_propagate):
    with EventStorage() as storage:
        with_end, without_end = CommonMetricPrinter(10), CommonMetricPrinter()
        for _ in range(5):
            storage.put_scalars(time=2.0, data_time=0.5, total_loss=1.0, loss_mask=0.25)
            storage.put_scalar("lr", 0.01, smoothing_hint=False)
            storage.put_scalar("[metric]iou", 0.75)
            storage.step()
        text = printed(caplog, with_end)
        for part in ("50%", "eta: 0:00:08", "iter: 5", "total_loss: 1", "loss_mask: 0.25"):
            assert part in text
        for part in ("time: 2.0000", "data_time: 0.5000", "lr: 0.01", "[metric]iou: 0.75"):
            assert part in text
        assert storage.latest()["eta_seconds"][0] == 8.0
        assert "eta" not in printed(caplog, without_end)


def test_printer_measures_time_itself_and_is_silent_after_the_end(caplog, logs_propagate):
    with EventStorage() as storage:
        printer = CommonMetricPrinter(3)
        assert "eta" not in printed(caplog, printer)
        storage.step()
        assert "eta: 0:00:00" in printed(caplog, printer)
        storage.iter = 3
        assert printed(caplog, printer) == ""


def test_writers_must_say_how_they_write():
    with pytest.raises(TypeError):
        EventWriter()
