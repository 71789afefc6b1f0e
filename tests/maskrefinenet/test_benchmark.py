import pytest
import torch

from maskrefinenet import MaskRefineNet
from wsis.benchmarks.maskrefinenet import measure, plain_twin, print_table


@pytest.mark.parametrize("size", [64, 160, 320])  # 2, 5 and 10 cells deep down; dilations 3, 6, 9
def test_layers_in_their_fast_form_equal_the_plain_ones(size):
    torch.manual_seed(0)
    network = MaskRefineNet(2, encoder="resnet18").double()
    torch.nn.init.normal_(network.head.weight)
    twin = plain_twin(network)
    x = torch.randn(2, 7, size, size, dtype=torch.double)
    weights = torch.randn(2, 2, size, size, dtype=torch.double)
    results = []
    for net in (network, twin):
        logits = net(x)
        (logits * weights).sum().backward()
        results.append((logits, {name: p.grad for name, p in net.named_parameters()}))
    (got, got_gradients), (want, want_gradients) = results
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(got_gradients, want_gradients)


def test_the_benchmark_measures_all_that_its_table_promises(capsys):
    rows = measure(encoder="resnet18", size=64, instances=3, repeats=1)
    assert [row.what.split(",")[0] for row in rows[:2]] == ["refinement", "input tensors"]
    assert rows[1].reached and rows[1].figure == 21.25 and rows[2].figure >= 1
    print_table(rows)
    assert capsys.readouterr().out.count("\n") == 5
