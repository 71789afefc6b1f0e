from wsis.benchmarks.maskrefinenet import measure, print_table


def test_the_benchmark_measures_all_that_its_table_promises(capsys):
    rows = measure(encoder="resnet18", size=64, instances=3, repeats=1)
    assert [row.what.split(",")[0] for row in rows[:2]] == ["refinement", "input tensors"]
    assert rows[1].reached and rows[1].figure == 21.25 and rows[2].figure >= 1
    print_table(rows)
    assert capsys.readouterr().out.count("\n") == 5
